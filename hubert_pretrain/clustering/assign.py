"""Assignment of frames to the nearest centroid, as one matrix product.

Tensor letters: N frames, n frames of a block, D width of a frame, K clusters.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

BLOCK_BYTES = 2 << 20
"""Size of the scores of one matrix product on a CPU: small enough for the cache, large enough for
few calls, at each of which threads wait for each other."""
DEVICE_FRAMES = 1 << 15
"""Frames per matrix product on a GPU."""


def block_frames(n_clusters: int) -> int:
    """Frames per matrix product on a CPU, a power of two: 4,096 up to K=100, 1,024 with K=500."""
    exponent = (BLOCK_BYTES // (4 * n_clusters)).bit_length() - 1
    return 1 << min(max(6, exponent), 12)


def score_weights(centroids: Tensor, centre: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Weight (D, K) and bias (K,), float64, of the scores x @ weight + bias of a frame x.

    The score of centroid c is (|x - centre|^2 - |x - c|^2) / 2, so the nearest centroid has the
    largest. The ranking does not depend on `centre`. The default, the mean centroid, keeps the
    scores small, and with them their rounding errors in float32.
    """
    exact = centroids.double()
    centre = exact.mean(0) if centre is None else centre
    return (exact - centre).T, -(exact.square().sum(-1) - centre.square().sum()) / 2


def float32_weights(centroids: Tensor) -> tuple[Tensor, Tensor]:
    """`score_weights` as contiguous float32, for `assign` and `score_blocks`."""
    weight, bias = score_weights(centroids)
    return weight.float().contiguous(), bias.float().contiguous()


def score_blocks(
    frames: Tensor, weight: Tensor, bias: Tensor
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yields, block by block of frames (N, D): the frames (n, D), the ids (n,) int64 of their
    largest scores, and the scores (n, K).

    On a CPU the scores of a block are overwritten by those of the next one. New memory for each
    block would take three times as long, because the system clears its pages.
    """
    if frames.device.type == "cpu":
        size = block_frames(len(bias))
        scratch = weight.new_empty(min(size, len(frames)), len(bias))
        for block in frames.split(size):
            scores = torch.addmm(bias, block, weight, out=scratch[: len(block)])
            # NumPy's argmax takes a tenth of the time of torch's.
            yield block, torch.from_numpy(scores.numpy().argmax(axis=1)), scores
    else:
        for block in frames.split(DEVICE_FRAMES):
            scores = torch.addmm(bias, block, weight)
            yield block, scores.argmax(dim=1), scores


def assign(frames: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Ids (N,) int64 of the nearest centroids of frames (N, D), for any N."""
    return torch.cat([ids for _, ids, _ in score_blocks(frames, weight, bias)])
