"""The cosine head of the paper against a plain softmax: head and loss alone, and whole steps.

    python tools/bench_heads.py --pairs 5
    python tools/bench_heads.py tiny --pairs 15

Each row is a network: head and loss of the masked frames, forwards and backwards, and the step of
tools/bench_train.py with each head, in turns. Figures are processor seconds of this process, which
other jobs change least; `ratio` is cosine over softmax. Kernels and bytes are counted: every
operation that reads or writes memory, views left out.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from hubert_pretrain.tools.bench_train import WORKS, Batch, K, Work, optimised
from hubert_pretrain.tools.census import Count
from torch import Tensor, nn

from hubert_pretrain.model.flops import head_macs, training_flops_per_second
from hubert_pretrain.model.heads import CodebookHead, SoftmaxHead, pretraining_head
from hubert_pretrain.model.hubert import Hubert
from hubert_pretrain.pretrain.loss import SupervisedLayer, masked_prediction_loss
from hubert_pretrain.tools import benchmarking

ROWS = {"tiny": "tiny_step", "base": "base_step"}
HEADS = ("cosine", "softmax")
Figures = dict[str, Any]


def head_of(name: str, work: Work) -> CodebookHead | SoftmaxHead:
    """A new head of a network."""
    size = work.config.projection_size if name == "cosine" else None
    return pretraining_head(work.config.hidden_size, K, size)


def head_and_loss(name: str, work: Work, batch: Batch) -> Callable[[], None]:
    """Forwards and backwards through head and loss, from the output of the network."""
    head = head_of(name, work)
    state = torch.randn(*batch.mask.shape, work.config.hidden_size, requires_grad=True)

    def run() -> None:
        loss_of(batch, head, state, torch.zeros(())).backward()
        head.zero_grad(set_to_none=True)
        state.grad = None

    return run


def loss_of(batch: Batch, head: nn.Module, state: Tensor, penalty: Tensor) -> Tensor:
    """The loss of a step."""
    return masked_prediction_loss(
        [SupervisedLayer(head, state)],
        batch.targets,
        batch.mask,
        penalty,
        n_clusters=(K,),
        masked_frames=batch.masked_frames,
        normaliser=batch.masked_frames,
    ).loss


def whole_step(name: str, work: Work, batch: Batch) -> Callable[[], Any]:
    """A step of the network with that head."""
    model = Hubert(work.config).train()
    head = head_of(name, work)

    def loss() -> Tensor:
        output = model(batch.waveform, mask=batch.mask)
        return loss_of(batch, head, output.last, output.feature_penalty)

    return optimised(loss, nn.ModuleList([model, head]), work)


def processor_seconds(work: Callable[[], Any]) -> float:
    """Of one call, all threads."""
    begin = time.process_time()
    work()
    return time.process_time() - begin


def compare(sides: Mapping[str, Callable[[], Any]], pairs: int) -> Figures:
    """Processor seconds of both heads, in turns."""
    timed = {name: (lambda run=run: processor_seconds(run)) for name, run in sides.items()}
    found = benchmarking.in_turns(timed, pairs, warm_up=1)
    ratios = [a / b for a, b in zip(*(found[name] for name in HEADS), strict=True)]
    return {
        **{f"{name}_seconds": statistics.median(found[name]) for name in HEADS},
        "ratio": statistics.median(ratios),
        "ratio_min": min(ratios),
        "ratio_max": max(ratios),
    }


def measure(work: Work, pairs: int) -> Figures:
    """Head and loss alone with its counts, and whole steps."""
    batch = Batch.of(work)
    alone = {name: head_and_loss(name, work, batch) for name in HEADS}
    counts: Figures = {}
    for name, run in alone.items():
        run()
        with Count() as count:
            run()
        counts[f"{name}_kernels"] = count.kernels
        counts[f"{name}_megabytes"] = count.bytes / 1e6
        macs = head_macs(work.config, K, batch.masked_frames, head=name)
        flops = 6 * macs / (work.rows * work.seconds)  # forwards and backwards
        total = training_flops_per_second(
            work.config, clip_seconds=work.seconds, n_clusters=K, head=name
        )
        counts[f"{name}_share_of_operations"] = flops / total
    steps = {name: whole_step(name, work, batch) for name in HEADS}
    return {
        "masked_frames": batch.masked_frames,
        "n_clusters": K,
        **counts,
        "head_and_loss": compare(alone, 4 * pairs),
        "step": compare(steps, pairs),
        "pairs": pairs,
    }


def main(words: Sequence[str] | None = None) -> int:
    """Prints the figures of each row, and all of them as one line of JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("rows", nargs="*", help=f"any of {', '.join(ROWS)} (default: all)")
    parser.add_argument("--pairs", type=int, default=5, help="steps with each head")
    options = parser.parse_args(words)
    if unknown := [name for name in options.rows if name not in ROWS]:
        parser.error(f"no row {unknown[0]!r}; choose from {', '.join(ROWS)}")
    rows = {name: measure(WORKS[ROWS[name]], options.pairs) for name in options.rows or list(ROWS)}
    benchmarking.print_json("heads", rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
