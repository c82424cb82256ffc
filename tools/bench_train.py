"""A training step of ours against torchaudio's and transformers' HuBERT: the same shapes, batch and
options, steps in turn.

    python tools/bench_train.py    # the rows of this machine: CPU, or GPU if there is one
    python tools/bench_train.py --rows tiny_step --pairs 15

Each step is forward, loss on the masked frames, backward, clipping and AdamW, after two that do not
count (in which a GPU compiles our layers, as `trainer.compile=layers` does; fp32 products and
cuDNN's attention are off or on for all as `trainer.tf32=false` has them). Peers get what their
users give them: torchaudio its own pretraining model and loss (arXiv:2106.07447 as in its recipe),
transformers its encoder with a linear head. Layer drop is off on all sides, so that every step does
the same work. Peak memory is that of a process of its own.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hubert_pretrain.frames import SAMPLE_RATE
from hubert_pretrain.interop.transformers_writer import import_transformers
from hubert_pretrain.model.compile import compile_network
from hubert_pretrain.model.config import HubertConfig
from hubert_pretrain.model.flops import training_flops_per_second
from hubert_pretrain.model.heads import CodebookHead
from hubert_pretrain.model.hubert import Hubert
from hubert_pretrain.model.precision import set_matmul_precision
from hubert_pretrain.pretrain.loss import SupervisedLayer, masked_prediction_loss
from hubert_pretrain.tools import benchmarking

K = 500
LARGE = {
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
    "projection_size": 768,
}
LAYER_NORM = {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True}
QUIET = {"layerdrop": 0.0}
NO_DROPOUT = {
    "hidden_dropout": 0.0,
    "attention_dropout": 0.0,
    "activation_dropout": 0.0,
    "feat_proj_dropout": 0.0,
}
TINY = {
    "conv_dim": [64] * 7,
    "hidden_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 512,
}
TINY_MORE = {
    "num_conv_pos_embeddings": 32,
    "num_conv_pos_embedding_groups": 8,
    "projection_size": 64,
}


@dataclass(frozen=True)
class Work:
    """Network and batch of a row."""

    config: HubertConfig
    rows: int
    seconds: float
    device: str
    large: bool = False


WORKS = {
    "base_step": Work(HubertConfig(**QUIET), 4, 10.0, "cpu"),
    "tiny_step": Work(HubertConfig(**QUIET, **TINY, **TINY_MORE), 8, 4.0, "cpu"),
    "base_step_gpu": Work(HubertConfig(**QUIET), 64, 15.0, "cuda"),
    "large_step": Work(
        HubertConfig(**QUIET, **LARGE, **LAYER_NORM, **NO_DROPOUT), 24, 15.0, "cuda", large=True
    ),
}
Step = Callable[[], Tensor]


@dataclass
class Batch:
    """Noise, targets and a mask of 53 % of the frames."""

    waveform: Tensor
    targets: Tensor
    mask: Tensor
    masked_frames: int

    @staticmethod
    def of(work: Work) -> Batch:
        """The batch of a work on its device, the same for everyone."""
        torch.manual_seed(0)
        samples = round(work.seconds * SAMPLE_RATE)
        frames = work.config.grid.num_frames(samples)
        hidden = round(0.53 * frames)
        mask = torch.stack([torch.randperm(frames) < hidden for _ in range(work.rows)])
        waveform = torch.randn(work.rows, samples)
        targets = torch.randint(0, K, (work.rows, frames))
        return Batch(
            waveform.to(work.device),
            targets.to(work.device),
            mask.to(work.device),
            hidden * work.rows,
        )


def ours(work: Work, batch: Batch) -> Step:
    """`hubert_pretrain`, as its training module runs it; on a GPU with `trainer.compile=layers`."""
    model = Hubert(work.config).to(work.device).train()
    head = CodebookHead(work.config.hidden_size, work.config.projection_size, K)
    head.to(work.device)
    if work.device == "cuda":
        compile_network(model, "layers")

    def loss() -> Tensor:
        output = model(batch.waveform, mask=batch.mask)
        return masked_prediction_loss(
            [SupervisedLayer(head, output.last)],
            batch.targets,
            batch.mask,
            output.feature_penalty,
            n_clusters=(K,),
            masked_frames=batch.masked_frames,
            normaliser=batch.masked_frames,
        ).loss

    return optimised(loss, nn.ModuleList([model, head]), work)


def peer_transformers(work: Work, batch: Batch) -> Step:
    """`transformers.HubertModel` with a linear layer over the clusters."""
    transformers = import_transformers()
    theirs = transformers.HubertConfig()
    fields = {
        name: value for name, value in vars(work.config).items() if hasattr(theirs, name)
    }  # they are named as there
    model = transformers.HubertModel(transformers.HubertConfig(**fields)).to(work.device).train()
    head = nn.Linear(work.config.hidden_size, K).to(work.device)

    def loss() -> Tensor:
        hidden = model(batch.waveform, mask_time_indices=batch.mask).last_hidden_state
        return F.cross_entropy(head(hidden[batch.mask]).float(), batch.targets[batch.mask])

    return optimised(loss, nn.ModuleList([model, head]), work)


def peer_torchaudio(work: Work, batch: Batch) -> Step:
    """`torchaudio.models.hubert_pretrain_model` with the loss of its recipe: logits of hidden
    frames, feature penalty.
    """
    import torchaudio

    config = work.config
    conv = [*zip(config.conv_dim, config.conv_kernel, config.conv_stride, strict=True)]
    model = torchaudio.models.hubert_pretrain_model(
        extractor_mode="layer_norm" if config.feat_extract_norm == "layer" else "group_norm",
        extractor_conv_layer_config=conv,
        extractor_conv_bias=config.conv_bias,
        encoder_embed_dim=config.hidden_size,
        encoder_projection_dropout=config.feat_proj_dropout,
        encoder_pos_conv_kernel=config.num_conv_pos_embeddings,
        encoder_pos_conv_groups=config.num_conv_pos_embedding_groups,
        encoder_num_layers=config.num_hidden_layers,
        encoder_num_heads=config.num_attention_heads,
        encoder_attention_dropout=config.attention_dropout,
        encoder_ff_interm_features=config.intermediate_size,
        encoder_ff_interm_dropout=config.activation_dropout,
        encoder_dropout=config.hidden_dropout,
        encoder_layer_norm_first=config.do_stable_layer_norm,
        encoder_layer_drop=0.0,
        mask_prob=0.8,
        mask_selection="static",
        mask_other=0.0,
        mask_length=10,
        no_mask_overlap=False,
        mask_min_space=1,
        mask_channel_prob=0.0,
        mask_channel_selection="static",
        mask_channel_other=0.0,
        mask_channel_length=10,
        no_mask_channel_overlap=False,
        mask_channel_min_space=1,
        skip_masked=False,
        skip_nomask=True,
        num_classes=K,
        final_dim=config.projection_size,
        feature_grad_mult=config.conv_gradient_scale,
    )
    model = model.to(work.device).train()

    def loss() -> Tensor:
        logits, _, penalty = model(batch.waveform, batch.targets)
        return (
            F.cross_entropy(logits.float(), logits.new_zeros(len(logits), dtype=torch.long))
            + 10 * penalty
        )

    return optimised(loss, model, work)


CONTENDERS: dict[str, Callable[[Work, Batch], Step]] = {
    "ours": ours,
    "torchaudio": peer_torchaudio,
    "transformers": peer_transformers,
}


def optimised(loss: Callable[[], Tensor], modules: nn.Module, work: Work) -> Step:
    """Forward, backward, clipping and update; bf16 on a GPU."""
    parameters = list(modules.parameters())
    optimizer = torch.optim.AdamW(
        parameters, lr=1e-4, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.01, fused=True
    )

    def step() -> Tensor:
        with torch.autocast(work.device, torch.bfloat16, enabled=work.device == "cuda"):
            value = loss()
        value.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 10.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return value.detach()

    return step


def seconds_of(step: Step, device: str) -> float:
    """Wall time of one step, with the device at rest before and after."""
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    step()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def peak_megabytes(name: str, contender: str, work: Work) -> float:
    """Peak memory of two steps in a process of its own, beyond what the imports take."""
    command = [
        sys.executable,
        __file__,
        "--memory-of",
        contender,
        "--rows",
        name,
        "--batch-rows",
        str(work.rows),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout.splitlines()[-1])


def measure_memory(contender: str, work: Work) -> float:
    """In that process."""
    batch = Batch.of(work)
    Path("/proc/self/clear_refs").write_text(
        "5"
    )  # the peak counts from here: imports have one of their own
    before = status_megabytes("VmRSS")
    step = CONTENDERS[contender](work, batch)
    for _ in range(2):
        step()
    return (
        torch.cuda.max_memory_allocated() / 2**20
        if work.device == "cuda"
        else status_megabytes("VmHWM") - before
    )


def status_megabytes(field: str) -> float:
    """A line of Linux's account of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{field}:"))


def matmul_flops(device: str) -> float:
    """FLOP/s of a large matrix product in the precision of the step: what MFU is measured
    against.
    """
    size, dtype = (8192, torch.bfloat16) if device == "cuda" else (2048, torch.float32)
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))

    def product() -> Tensor:
        return a @ b

    product()
    return 2 * size**3 / min(seconds_of(product, device) for _ in range(5))


def compare(name: str, work: Work, pairs: int) -> dict[str, Any]:
    """All contenders in turn, `pairs` rounds; ours against the faster peer of each round."""
    batch = Batch.of(work)
    steps = {contender: make(work, batch) for contender, make in CONTENDERS.items()}
    sides = {
        contender: functools.partial(seconds_of, step, work.device)
        for contender, step in steps.items()
    }
    times = benchmarking.in_turns(sides, pairs, warm_up=2)
    peak_flops = matmul_flops(work.device)
    steps.clear()
    sides.clear()
    rates = {
        contender: [work.rows * work.seconds / spent for spent in found]
        for contender, found in times.items()
    }
    rate = {contender: statistics.median(found) for contender, found in rates.items()}
    fastest = max(
        (contender for contender in rates if contender != "ours"),
        key=lambda contender: rate[contender],
    )
    memory = {contender: peak_megabytes(name, contender, work) for contender in CONTENDERS}
    flops = rate["ours"] * training_flops_per_second(
        work.config, clip_seconds=work.seconds, n_clusters=K
    )
    return {
        "unit": "audio-seconds per second",
        **benchmarking.compared(rates["ours"], rates[fastest]),
        "fastest_peer": fastest,
        "peers": {
            contender: round(value, 2) for contender, value in rate.items() if contender != "ours"
        },
        "pairs": pairs,
        "megabytes": {contender: round(value) for contender, value in memory.items()},
        "memory_ratio": round(memory["ours"] / memory[fastest], 3),
        "tflops": round(flops / 1e12, 3),
        "mfu": round(flops / peak_flops, 3),
        "rows": work.rows,
        "seconds": work.seconds,
        "precision": "bf16" if work.device == "cuda" else "fp32",
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    here = [
        name
        for name, work in WORKS.items()
        if work.device == ("cuda" if torch.cuda.is_available() else "cpu")
    ]
    parser.add_argument("--rows", nargs="+", choices=list(WORKS), default=here, help="what to time")
    parser.add_argument("--pairs", type=int, default=7, help="rounds of one step each")
    parser.add_argument(
        "--batch-rows", type=int, help="utterances per step, where the default does not fit"
    )
    parser.add_argument("--memory-of", choices=list(CONTENDERS), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    set_matmul_precision(tf32=False)
    works = {name: WORKS[name] for name in arguments.rows}
    if arguments.batch_rows:
        works = {name: replace(work, rows=arguments.batch_rows) for name, work in works.items()}
    if arguments.memory_of:
        print(measure_memory(arguments.memory_of, next(iter(works.values()))))
        return
    rows = {}
    for name, work in works.items():
        if work.device == "cuda" and not torch.cuda.is_available():
            sys.exit(f"{name}: no NVIDIA GPU here")
        rows[name] = compare(name, work, arguments.pairs)
        print(f"{name}: {json.dumps(rows[name])}", flush=True)
    benchmarking.print_json("train", rows, gpu=torch.cuda.is_available())


if __name__ == "__main__":
    main()
