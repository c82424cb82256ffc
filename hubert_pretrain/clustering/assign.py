"""The nearest of many centroids, as one matrix product. N frames, D width, K clusters."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

BLOCK_BYTES = 2 << 20
"""Of the scores of a matrix product on a CPU: they stay in the cache, and there are few calls, for
which threads wait on each other.
"""
DEVICE_FRAMES = 1 << 15
"""Frames per matrix product on a GPU."""


def block_frames(n_clusters: int) -> int:
    """Frames per matrix product on a CPU, a power of two: 4,096 up to K=100, 1,024 with K=500."""
    return 1 << min(max(6, (BLOCK_BYTES // (4 * n_clusters)).bit_length() - 1), 12)


def score_weights(centroids: Tensor, centre: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Weight (D, K) and bias (K,) in float64 such that x @ weight + bias = (|x - centre|^2 - |x -
    c|^2) / 2, largest for the nearest c.

    Any centre will do; the default, the mean centroid, keeps the numbers, and what is rounded of
    them in float32, small.
    """
    exact = centroids.double()
    centre = exact.mean(0) if centre is None else centre
    return (exact - centre).T, -(exact.square().sum(-1) - centre.square().sum()) / 2


def score_blocks(
    frames: Tensor, weight: Tensor, bias: Tensor
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Frames (N, D) block by block: the frames (n, D), the ids (n,) int64 of their largest scores,
    and the scores (n, K).

    On a CPU the scores of a block are overwritten by those of the next: arrays of their own would
    take three times as long, which the system needs to clear their pages.
    """
    on_cpu = frames.device.type == "cpu"
    size = block_frames(len(bias)) if on_cpu else DEVICE_FRAMES
    scratch = weight.new_empty(min(size, len(frames)), len(bias)) if on_cpu else None
    for block in frames.split(size):
        scores = torch.addmm(
            bias, block, weight, out=None if scratch is None else scratch[: len(block)]
        )
        # NumPy's takes a tenth of the time of torch's.
        yield (
            block,
            torch.from_numpy(scores.numpy().argmax(axis=1)) if on_cpu else scores.argmax(dim=1),
            scores,
        )


def assign(frames: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Ids (N,) int64 of frames (N, D), however many they are."""
    return torch.cat([ids for _, ids, _ in score_blocks(frames, weight, bias)])
