"""The training step of a recipe in its own trainer; or a bare step of ours against torchaudio's and
transformers' HuBERT.

    python tools/bench_train.py --recipe base_ls960
    python tools/bench_train.py --recipe base_ls960 trainer.fuse=1 --audio FOLDER
    python tools/bench_train.py    # the rows of this machine: CPU, or GPU if there is one
    python tools/bench_train.py --rows tiny_step --pairs 15

With --recipe the pretraining stage trains some steps: loader, meter, accumulation, callbacks,
precision, fuse and compile as the recipe and the overrides say (tools/bench_recipe.py). Each row
below it is a bare step on one batch, the sides in turn: forward, loss on the masked frames,
backward, clipping and AdamW, after two that do not count (in which a GPU compiles our layers, as
`trainer.compile=parts` does; fp32 products and cuDNN's attention are off or on for all as
`trainer.tf32=false` has them). Peers get what their users give them: torchaudio its own pretraining
model and loss (arXiv:2106.07447 as in its recipe), transformers its encoder with a linear head;
with --compile-peers also under torch.compile, which a GPU gets by default where there is a C
compiler. A peer that fails is named with its reason. Layer drop is off on all sides, so that every
step does the same work. Peak memory is that of a process of its own. MFU is the share of the data
sheet's peak (training/utilisation.py); beside it stands the speed of a large matrix product.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hubert_pretrain.errors import HubertPretrainError
from hubert_pretrain.frames import SAMPLE_RATE
from hubert_pretrain.interop.transformers_writer import import_transformers
from hubert_pretrain.model.compile import Compiler
from hubert_pretrain.model.config import HubertConfig
from hubert_pretrain.model.flops import training_flops_per_second
from hubert_pretrain.model.heads import CodebookHead
from hubert_pretrain.model.hubert import Hubert
from hubert_pretrain.model.precision import set_matmul_precision
from hubert_pretrain.pretrain.loss import (
    SupervisedLayer,
    masked_prediction_loss,
    predict_frames,
)
from hubert_pretrain.tools import bench_recipe, benchmarking
from hubert_pretrain.tools.command import report
from hubert_pretrain.training.utilisation import peak_flops

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
    """`hubert_pretrain`, as its training module runs it; on a GPU with `trainer.compile=parts`."""
    model = Hubert(work.config).to(work.device).train()
    head = CodebookHead(work.config.hidden_size, work.config.projection_size, K)
    head.to(work.device)
    predict = predict_frames
    if work.device == "cuda":
        compiler = Compiler()
        compiler.compile_network(model)
        predict = compiler(predict_frames)

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
            predict=predict,
        ).loss

    return optimised(loss, nn.ModuleList([model, head]), work)


def peer_transformers(work: Work, batch: Batch, *, compiled: bool = False) -> Step:
    """`transformers.HubertModel` with a linear layer over the clusters."""
    transformers = import_transformers()
    theirs = transformers.HubertConfig()
    fields = {
        name: value for name, value in vars(work.config).items() if hasattr(theirs, name)
    }  # they are named as there
    model = transformers.HubertModel(transformers.HubertConfig(**fields)).to(work.device).train()
    head = nn.Linear(work.config.hidden_size, K).to(work.device)
    if compiled:
        model.compile()

    def loss() -> Tensor:
        hidden = model(batch.waveform, mask_time_indices=batch.mask).last_hidden_state
        return F.cross_entropy(head(hidden[batch.mask]).float(), batch.targets[batch.mask])

    return optimised(loss, nn.ModuleList([model, head]), work)


def peer_torchaudio(work: Work, batch: Batch, *, compiled: bool = False) -> Step:
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
    if compiled:
        model.compile()

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
    "torchaudio_compiled": functools.partial(peer_torchaudio, compiled=True),
    "transformers_compiled": functools.partial(peer_transformers, compiled=True),
}


def contenders(compile_peers: str, device: str) -> list[str]:
    """Names of the sides. `auto` compiles peers on a GPU."""
    compiled = compile_peers == "yes" or (compile_peers == "auto" and device == "cuda")
    return [name for name in CONTENDERS if compiled or not name.endswith("_compiled")]


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


def peak_megabytes(name: str, contender: str, work: Work) -> float | None:
    """Peak memory of two steps in a process of its own, beyond what the imports take; None when it
    failed there.
    """
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
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return float(done.stdout.splitlines()[-1]) if done.returncode == 0 else None


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


def compare(name: str, work: Work, pairs: int, sides: Sequence[str]) -> dict[str, Any]:
    """All sides in turn, `pairs` rounds; ours against the fastest peer."""
    device = torch.device(work.device)
    batch = Batch.of(work)
    steps: dict[str, Step] = {}
    failed: dict[str, str] = {}
    for side in sides:
        try:
            step = CONTENDERS[side](work, batch)
            for _ in range(2):
                step()
            steps[side] = step
        except Exception as error:
            if side == "ours":
                raise
            failed[side] = f"{type(error).__name__}: {first_line(error)}"
    turns = {
        side: functools.partial(benchmarking.device_seconds_of, step, device)
        for side, step in steps.items()
    }
    times = benchmarking.in_turns(turns, pairs, warm_up=0)
    product = benchmarking.matmul_flops(device)
    steps.clear()
    turns.clear()
    rates = {
        side: [work.rows * work.seconds / spent for spent in found] for side, found in times.items()
    }
    rate = {side: statistics.median(found) for side, found in rates.items()}
    memory = {side: peak_megabytes(name, side, work) for side in rates}
    flops = rate["ours"] * training_flops_per_second(
        work.config, clip_seconds=work.seconds, n_clusters=K
    )
    precision = "bf16-mixed" if device.type == "cuda" else "32-true"
    found = {
        "unit": "audio-seconds per second",
        "ours": rate["ours"],
        "peers": {side: value for side, value in rate.items() if side != "ours"},
        "failed": failed,
        "pairs": pairs,
        "megabytes": memory,
        "tflops": flops / 1e12,
        "mfu": flops / peak_flops(device, precision),
        "mfu_of_product": flops / product,
        "rows": work.rows,
        "seconds": work.seconds,
        "precision": precision,
    }
    if not found["peers"]:
        return found
    fastest = max(found["peers"], key=rate.__getitem__)
    found |= benchmarking.compared(rates["ours"], rates[fastest]) | {"fastest_peer": fastest}
    if memory["ours"] and memory[fastest]:
        found["memory_ratio"] = memory["ours"] / memory[fastest]
    return found


def first_line(error: Exception) -> str:
    """The first line of its message."""
    return next(iter(str(error).splitlines()), "")


def parse(words: Sequence[str] | None) -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    here = [
        name
        for name, work in WORKS.items()
        if work.device == ("cuda" if torch.cuda.is_available() else "cpu")
    ]
    recipe = parser.add_argument_group("a recipe in its own trainer")
    recipe.add_argument("--recipe", help="name of the recipe, or the path of its file")
    recipe.add_argument("--iteration", default="", help="which (default: the first)")
    recipe.add_argument(
        "--windows", type=positive, default=2, help="windows that count, after one that does not"
    )
    recipe.add_argument("--window-steps", type=positive, default=10, help="steps of a window")
    recipe.add_argument(
        "--hours", type=float, default=960.0, help="audio of the corpus (default: %(default)s)"
    )
    recipe.add_argument(
        "--audio", type=Path, help="folder of its audio files, used again and again; else noise"
    )
    recipe.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="of the recipe")
    rows = parser.add_argument_group("bare steps beside peers")
    rows.add_argument("--rows", nargs="+", choices=list(WORKS), default=here, help="what to time")
    rows.add_argument("--pairs", type=positive, default=7, help="rounds of one step each")
    rows.add_argument(
        "--batch-rows", type=positive, help="utterances per step, where the default does not fit"
    )
    rows.add_argument(
        "--compile-peers",
        choices=["auto", "yes", "no"],
        default="auto",
        help="peers under torch.compile too; auto: on a GPU, where there is a C compiler",
    )
    rows.add_argument("--memory-of", choices=list(CONTENDERS), help=argparse.SUPPRESS)
    options = parser.parse_intermixed_args(words)
    if options.overrides and not options.recipe:
        parser.error(f"{options.overrides[0]}: an override of which recipe? Add --recipe NAME")
    if options.compile_peers != "no" and not benchmarking.has_compiler():
        if options.compile_peers == "yes":
            parser.error("--compile-peers yes: no C compiler (gcc, clang) on this machine")
        options.compile_peers = "no"
    return options


def positive(text: str) -> int:
    """A number from 1 on."""
    value = int(text)
    if value < 1:
        raise ValueError
    return value


def main(words: Sequence[str] | None = None) -> int:
    """Prints the figures of each row, and all of them as one line of JSON."""
    options = parse(words)
    if options.recipe:
        try:
            row = bench_recipe.measure(
                bench_recipe.Measurement(
                    recipe=options.recipe,
                    overrides=tuple(options.overrides),
                    iteration=options.iteration,
                    windows=options.windows,
                    window_steps=options.window_steps,
                    hours=options.hours,
                    audio=options.audio,
                )
            )
        except HubertPretrainError as error:
            return report(error)
        benchmarking.print_json("recipe", {options.recipe: row}, gpu=row["device"] == "cuda")
        return 0
    set_matmul_precision(tf32=False)
    works = {name: WORKS[name] for name in options.rows}
    if options.batch_rows:
        works = {name: replace(work, rows=options.batch_rows) for name, work in works.items()}
    if options.memory_of:
        print(measure_memory(options.memory_of, next(iter(works.values()))))
        return 0
    rows = {}
    for name, work in works.items():
        if work.device == "cuda" and not torch.cuda.is_available():
            sys.exit(f"{name}: no NVIDIA GPU here")
        sides = contenders(options.compile_peers, work.device)
        rows[name] = compare(name, work, options.pairs, sides)
        print(f"{name}: {json.dumps(rows[name])}", flush=True)
    benchmarking.print_json("train", rows, gpu=torch.cuda.is_available())
    return 0


if __name__ == "__main__":
    sys.exit(main())
