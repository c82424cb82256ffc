"""Expected speed of a training step on a GPU, from counts: operations, bytes and kernels.

    python tools/roofline.py    # the table of docs/benchmarks.md

The device computes products at a share of its peak, and everything else at a share of its memory
bandwidth, one after the other; the host launches kernels meanwhile. Per second of audio:

    seconds = max(F / (peak * PRODUCT_SHARE) + B / (bandwidth * MEMORY_SHARE), N * LAUNCH_SECONDS)

F: operations of the step (model/flops.py). B: bytes that its kernels read and write. N: kernels of
a forward and backward pass, divided by the audio in it. With shares of 1 and measured speeds it is
what this machine can do; the shares below are assumptions for a data sheet.
"""

from __future__ import annotations

from dataclasses import dataclass

from hubert_pretrain.model.config import HubertConfig
from hubert_pretrain.model.flops import training_flops_per_second

PRODUCT_SHARE = 0.7
"""Products of Base's sizes in bf16, against the data sheet."""
MEMORY_SHARE = 0.85
"""Pointwise kernels and norms, against the data sheet's bandwidth."""
LAUNCH_SECONDS = 8e-6
"""Host time of one kernel of an uncompiled step: Python, autograd and the launch itself."""


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """Speeds that a step can reach."""

    product_flops: float
    memory_bytes: float
    """Per second."""
    launch_seconds: float

    @staticmethod
    def of_data_sheet(peak_flops: float, bandwidth: float) -> Gpu:
        """From figures of a data sheet: operations and bytes per second."""
        return Gpu(
            product_flops=peak_flops * PRODUCT_SHARE,
            memory_bytes=bandwidth * MEMORY_SHARE,
            launch_seconds=LAUNCH_SECONDS,
        )


@dataclass(frozen=True, kw_only=True)
class Work:
    """Of a step, per second of audio."""

    flops: float
    memory_bytes: float
    kernels: float


@dataclass(frozen=True)
class Expectation:
    """Seconds per second of audio."""

    products: float
    memory: float
    launches: float

    @property
    def audio_seconds_per_second(self) -> float:
        """The speed of training."""
        return 1 / max(self.products + self.memory, self.launches)

    @property
    def limit(self) -> str:
        """The larger side: "device" or "host"."""
        return "host" if self.launches > self.products + self.memory else "device"


def expect(work: Work, gpu: Gpu) -> Expectation:
    """The formula of this module."""
    return Expectation(
        products=work.flops / gpu.product_flops,
        memory=work.memory_bytes / gpu.memory_bytes,
        launches=work.kernels * gpu.launch_seconds,
    )


@dataclass(frozen=True, kw_only=True)
class Counts:
    """Counts of one forward and backward pass."""

    memory_bytes_per_second: float
    """Per second of audio."""
    kernels: int
    """Of the pass, whatever its audio."""
    unit_seconds: float
    """Audio of a micro-batch."""


BASE = Counts(memory_bytes_per_second=252e6, kernels=936, unit_seconds=93.75)
"""Base, bf16-mixed, uncompiled: tools/census.py."""


def work_of(counts: Counts, flops: float, fuse: int) -> Work:
    """The work of a network with `fuse` micro-batches in a pass.

    flops: per second of audio.
    """
    return Work(
        flops=flops,
        memory_bytes=counts.memory_bytes_per_second,
        kernels=counts.kernels / (fuse * counts.unit_seconds),
    )


DATA_SHEETS = {
    "H200": (989e12, 4.8e12),
    "H100 SXM": (989e12, 3.35e12),
    "A100 80 GB": (312e12, 2.04e12),
}
"""Operations per second in bf16, and bytes per second of the memory."""


def table() -> str:
    """The expectation for Base on some GPUs, as Markdown."""
    flops = training_flops_per_second(HubertConfig())
    lines = [
        "| GPU | fuse | products | memory | launches | audio-s/s | MFU | limit |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, (peak, bandwidth) in DATA_SHEETS.items():
        for fuse in (1, 8):
            work = work_of(BASE, flops, fuse)
            found = expect(work, Gpu.of_data_sheet(peak, bandwidth))
            rate = found.audio_seconds_per_second
            times = (found.products, found.memory, found.launches)
            cells = " | ".join(f"{1e6 * each:.0f} us" for each in times)
            lines.append(
                f"| {name} | {fuse} | {cells} | {rate:,.0f} | {rate * flops / peak:.0%} | "
                f"{found.limit} |"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
