"""What one pass over the frames tells about centroids: how many frames are nearest to each, and
their sums.

Sums are kept as whole numbers of a tiny unit. Adding whole numbers rounds nothing, so the order
does not matter: one thread, four ranks or a resumed run get the same bits, where sums of floats
would differ in their last digits and drift apart over the iterations. Tensor alphabet: N frames, D
width, K clusters, n frames of a block.
"""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hubert_pretrain import distributed
from hubert_pretrain.clustering import assign
from hubert_pretrain.clustering.engines.frame_summary import FrameSummary
from hubert_pretrain.clustering.engines.threads import over_chunks
from hubert_pretrain.clustering.frame_source import RankFrames

SPARE_BITS = 62
"""Of the 63 of a whole number; one is left for rounding."""


@dataclass(frozen=True)
class Statistics:
    """Of all frames, over all ranks."""

    sums: Tensor
    """(K, D) float64: of the frames nearest to each centroid."""
    counts: Tensor
    """(K,) int64: their number."""
    inertia: float
    """Sum of squared distances to the nearest centroids, to float32's precision."""


class Accumulator:
    """Gathers the statistics of chunks for one set of centroids."""

    def __init__(self, centroids: Tensor, survey: FrameSummary, device: torch.device) -> None:
        """
        Args:
            centroids: (K, D) float32. survey: of the frames that will come, all of them: how large
            they can get, and their centre. device: where products are computed.
        """
        self._survey = survey
        self._device = device
        weight, bias = assign.score_weights(centroids.cpu(), torch.from_numpy(survey.centre))
        self._weight = weight.float().contiguous().to(device)
        self._bias = bias.float().to(device)
        # |sum of x| <= N largest, and a gain is at most |x - centre|^2 / 2 <= 2 D largest^2.
        largest = max(survey.largest, 1e-30)
        total = survey.total
        dim = centroids.shape[1]
        self._unit = 2.0 ** (SPARE_BITS - math.ceil(math.log2(2 * total * largest)))
        self._gain_unit = 2.0 ** (SPARE_BITS - math.ceil(math.log2(8 * total * dim * largest**2)))
        self._totals = torch.zeros(len(centroids), dim, dtype=torch.int64, device=device)
        self._counts = torch.zeros(len(centroids), dtype=torch.int64, device=device)
        self._gain = torch.zeros(1, dtype=torch.int64, device=device)
        self._lock = threading.Lock()

    def add(self, start: int, stop: int, frames: NDArray[np.float32]) -> None:
        """Counts a chunk (n, D) in. Safe to call from several threads."""
        chunk = torch.from_numpy(frames).to(self._device)
        sums, counts, gain = (self._on_cpu if self._device.type == "cpu" else self._on_device)(
            chunk
        )
        sums = (sums * self._unit).round().long()
        gain = (gain * self._gain_unit).round().long()
        with self._lock:
            self._totals += sums
            self._counts += counts
            self._gain += gain

    def _on_cpu(self, chunk: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        sums = torch.zeros(self._totals.shape, dtype=torch.float64)
        counts = torch.zeros_like(self._counts)
        gain = torch.zeros(1, dtype=torch.float64)
        for block, ids, scores in assign.score_blocks(
            chunk, self._weight, self._bias
        ):  # so many are added up in float32
            gain += scores.gather(1, ids[:, None]).sum(dtype=torch.float64)
            counts += torch.bincount(ids, minlength=len(counts))
            sums += torch.zeros(sums.shape).index_add_(0, ids, block)
        return sums, counts, gain

    def _on_device(self, chunk: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        ((_, ids, scores),) = assign.score_blocks(chunk, self._weight, self._bias)
        # A product with ones and zeros: `index_add_` would add in another order each time.
        members = torch.nn.functional.one_hot(ids, len(self._counts)).to(chunk.dtype)  # (n, K)
        return (
            (members.T @ chunk).double(),
            members.sum(0).long(),
            scores.amax(1).sum(dtype=torch.float64),
        )

    def total(self) -> Statistics:
        """Over all ranks."""
        totals, counts, gain = (
            distributed.sum_over_ranks(each.cpu())
            for each in (self._totals, self._counts, self._gain)
        )
        return Statistics(
            totals.double() / self._unit,
            counts,
            max(0.0, self._survey.scatter - 2 * float(gain) / self._gain_unit),
        )


def statistics(
    shard: RankFrames, centroids: Tensor, survey: FrameSummary, device: torch.device
) -> Statistics:
    """One pass over the frames of all ranks. Every rank calls it and gets the same."""
    accumulator = Accumulator(centroids, survey, device)
    over_chunks(shard, accumulator.add)
    return accumulator.total()


@dataclass(frozen=True)
class Fit:
    """How well centroids fit frames."""

    inertia: float
    """Sum of squared distances to the nearest centroids."""
    counts: NDArray[np.int64]
    """(K,): frames of each."""


def measure(shard: RankFrames, centroids: Tensor) -> Fit:
    """Exactly: each distance is computed as one, not as a difference of large numbers. Centroids
    (K, D) float32 on the CPU.
    """
    weight, bias = (each.float().contiguous() for each in assign.score_weights(centroids))
    totals = torch.zeros(1, dtype=torch.float64)
    counts = torch.zeros(len(centroids), dtype=torch.int64)
    lock = threading.Lock()

    def add(start: int, stop: int, part: NDArray[np.float32]) -> None:
        inertia = torch.zeros(1, dtype=torch.float64)
        found = torch.zeros_like(counts)
        for block, ids, _ in assign.score_blocks(torch.from_numpy(part), weight, bias):
            inertia += (block - centroids[ids]).square_().sum(dim=1).sum(dtype=torch.float64)
            found += torch.bincount(ids, minlength=len(counts))
        with lock:
            totals.add_(inertia)
            counts.add_(found)

    over_chunks(shard, add)
    distributed.sum_over_ranks(totals)
    distributed.sum_over_ranks(counts)
    return Fit(float(totals), counts.numpy())
