"""Statistics of one pass over the frames for given centroids: number and sum of the frames nearest
to each.

Sums are accumulated as integers in a tiny unit. Integer addition rounds nothing, so the order does
not matter: one thread, four ranks or a resumed run get the same bits. Float sums would differ in
their last digits and drift apart over the iterations.

Tensor letters: N frames, n frames of a chunk, D width of a frame, K clusters.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hubert_pretrain import distributed
from hubert_pretrain.clustering import assign
from hubert_pretrain.clustering.engines.frame_summary import FrameSummary
from hubert_pretrain.clustering.engines.threads import for_each_chunk
from hubert_pretrain.clustering.frame_source import RankFrames
from hubert_pretrain.progress import progress, silent

INTEGER_BITS = 62
"""Of the 63 bits of an int64, one stays free for rounding."""


@dataclass(frozen=True)
class ClusterStatistics:
    """Over the frames of all ranks."""

    sums: Tensor
    """(K, D) float64: sum of the frames nearest to each centroid."""
    counts: Tensor
    """(K,) int64: number of these frames."""
    inertia: float
    """Sum of squared distances to the nearest centroids, in float32 precision."""


class Accumulator:
    """Accumulates the statistics of chunks of frames for one set of centroids."""

    def __init__(self, centroids: Tensor, summary: FrameSummary, device: torch.device) -> None:
        """
        Args:
            centroids: (K, D) float32.
            summary: of all frames that will be added: it bounds the sums, and gives the centre.
            device: computes the matrix products.
        """
        self._summary = summary
        self._device = device
        weight, bias = assign.score_weights(centroids.cpu(), torch.from_numpy(summary.centre))
        self._weight = weight.float().contiguous().to(device)
        self._bias = bias.float().to(device)
        # Units such that no sum overflows: |sum of x| <= N largest, and the gain of a frame, its
        # best score (see assign.score_weights), is at most |x - centre|^2 / 2 <= 2 D largest^2.
        largest = max(summary.largest, 1e-30)
        total = summary.total
        dim = centroids.shape[1]
        self._unit = 2.0 ** (INTEGER_BITS - math.ceil(math.log2(2 * total * largest)))
        self._gain_unit = 2.0 ** (INTEGER_BITS - math.ceil(math.log2(8 * total * dim * largest**2)))
        self._sums = torch.zeros(len(centroids), dim, dtype=torch.int64, device=device)
        self._counts = torch.zeros(len(centroids), dtype=torch.int64, device=device)
        self._gain = torch.zeros(1, dtype=torch.int64, device=device)
        self._lock = threading.Lock()

    def add(self, start: int, stop: int, frames: NDArray[np.float32]) -> None:
        """Accumulates a chunk (n, D). May be called from several threads."""
        chunk = torch.from_numpy(frames).to(self._device)
        if self._device.type == "cpu":
            sums, counts, gain = self._of_chunk_on_cpu(chunk)
        else:
            sums, counts, gain = self._of_chunk_on_gpu(chunk)
        integer_sums = (sums * self._unit).round().long()
        integer_gain = (gain * self._gain_unit).round().long()
        with self._lock:
            self._sums += integer_sums
            self._counts += counts
            self._gain += integer_gain

    def _of_chunk_on_cpu(self, chunk: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Sums (K, D), counts (K,) and gain (1,) of a chunk (n, D)."""
        sums = torch.zeros(self._sums.shape, dtype=torch.float64)
        counts = torch.zeros_like(self._counts)
        gain = torch.zeros(1, dtype=torch.float64)
        # float32 sums within a block, float64 sums over blocks.
        for block, ids, scores in assign.score_blocks(chunk, self._weight, self._bias):
            gain += scores.gather(1, ids[:, None]).sum(dtype=torch.float64)
            counts += torch.bincount(ids, minlength=len(counts))
            sums += torch.zeros(sums.shape).index_add_(0, ids, block)
        return sums, counts, gain

    def _of_chunk_on_gpu(self, chunk: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The same on a GPU, where a chunk is a single block."""
        ((_, ids, scores),) = assign.score_blocks(chunk, self._weight, self._bias)
        # Sums as a product with ones and zeros: `index_add_` adds in another order each time.
        members = torch.nn.functional.one_hot(ids, len(self._counts)).to(chunk.dtype)  # (n, K)
        sums = (members.T @ chunk).double()
        counts = members.sum(0).long()
        return sums, counts, scores.amax(1).sum(dtype=torch.float64)

    def total(self) -> ClusterStatistics:
        """Statistics over all ranks."""
        sums = distributed.sum_over_ranks(self._sums.cpu())
        counts = distributed.sum_over_ranks(self._counts.cpu())
        gain = distributed.sum_over_ranks(self._gain.cpu())
        # A score is half of what a centroid gains over the centre (see assign.score_weights).
        inertia = self._summary.total_variance - 2 * float(gain) / self._gain_unit
        return ClusterStatistics(sums.double() / self._unit, counts, max(0.0, inertia))


def cluster_statistics(
    shard: RankFrames,
    centroids: Tensor,
    summary: FrameSummary,
    device: torch.device,
    advance: Callable[[], None] = silent,
) -> ClusterStatistics:
    """One pass over the frames of all ranks. Every rank calls it and gets the same result.
    `advance` is called after each chunk of this rank.
    """
    accumulator = Accumulator(centroids, summary, device)
    for_each_chunk(shard, accumulator.add, advance)
    return accumulator.total()


@dataclass(frozen=True)
class FitMeasures:
    """Fit of centroids to frames."""

    inertia: float
    """Sum of squared distances to the nearest centroids."""
    counts: NDArray[np.int64]
    """(K,): frames of each cluster."""


def measure_fit(shard: RankFrames, centroids: Tensor) -> FitMeasures:
    """Inertia and cluster sizes for centroids (K, D) float32 on the CPU, over all ranks.

    Exact: each distance is computed from a difference, not from inner products.
    """
    weight, bias = assign.float32_weights(centroids)
    inertia = torch.zeros(1, dtype=torch.float64)
    counts = torch.zeros(len(centroids), dtype=torch.int64)
    lock = threading.Lock()

    def add(start: int, stop: int, frames: NDArray[np.float32]) -> None:
        chunk_inertia = torch.zeros(1, dtype=torch.float64)
        chunk_counts = torch.zeros_like(counts)
        for block, ids, _ in assign.score_blocks(torch.from_numpy(frames), weight, bias):
            distances = (block - centroids[ids]).square_().sum(dim=1)  # (n,)
            chunk_inertia += distances.sum(dtype=torch.float64)
            chunk_counts += torch.bincount(ids, minlength=len(counts))
        with lock:
            inertia.add_(chunk_inertia)
            counts.add_(chunk_counts)

    with progress(len(shard.chunks()), "k-means, inertia") as advance:
        for_each_chunk(shard, add, advance)
    distributed.sum_over_ranks(inertia)
    distributed.sum_over_ranks(counts)
    return FitMeasures(float(inertia), counts.numpy())
