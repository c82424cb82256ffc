"""One pass over all frames before k-means: finite check, moments, and a random sample shared by all
ranks.

Tensor letters: N frames of all ranks, n frames of the sample, D width of a frame.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hubert_pretrain import distributed, seeds
from hubert_pretrain.clustering.engines.threads import for_each_chunk
from hubert_pretrain.clustering.frame_source import CHUNK_FRAMES, RankFrames
from hubert_pretrain.errors import DataError
from hubert_pretrain.progress import progress


@dataclass(frozen=True)
class FrameSummary:
    """Statistics of all frames, bit-identical on every rank."""

    sample: Tensor
    """(n, D) float32: frames drawn evenly from all frames, in random order, so that any prefix is a
    sample too."""
    sums: NDArray[np.float64]
    """(D,): sum over all frames."""
    squares: float
    """Sum of |x|^2 over all frames."""
    largest: float
    """Largest absolute value in any frame."""
    total: int
    """N."""

    @cached_property
    def centre(self) -> NDArray[np.float64]:
        """(D,): the mean frame."""
        return self.sums / self.total

    @property
    def total_variance(self) -> float:
        """Sum of squared distances to the mean frame: the inertia of a single cluster."""
        return max(0.0, self.squares - self.total * float(np.square(self.centre).sum()))


def summarise(shard: RankFrames, *, sample_frames: int, seed: int) -> FrameSummary:
    """Reads every frame once.

    Each rank fills its own rows of tables that are zero elsewhere. Adding such tables over ranks
    rounds nothing, so the result does not depend on the number of ranks.

    Raises DataError, on every rank, naming the first frame that holds NaN or infinity.
    """
    dim = shard.dim
    num_chunks = -(-shard.total // CHUNK_FRAMES)
    # One row per chunk: sums (D), sum of squares, largest value, 1 + first non-finite frame.
    table = torch.zeros(num_chunks, dim + 3, dtype=torch.float64)
    squares_column = dim
    largest_column = dim + 1
    nonfinite_column = dim + 2
    rows, positions = _draw_sample(shard.total, sample_frames, seed)
    sample = torch.zeros(len(rows), dim)

    def read_chunk(start: int, stop: int, array: NDArray[np.float32]) -> None:
        frames = torch.from_numpy(array)  # (chunk, D)
        chunk_start = shard.start + start

        # Frames of this chunk that belong to the sample.
        first, last = np.searchsorted(rows, [chunk_start, shard.start + stop])
        sampled = frames[torch.from_numpy(rows[first:last] - chunk_start)]
        sample[torch.from_numpy(positions[first:last])] = sampled

        entry = table[chunk_start // CHUNK_FRAMES]
        largest = float(frames.abs().max())
        if np.isfinite(largest):
            entry[:dim] = frames.sum(0, dtype=torch.float64)
            entry[squares_column] = frames.double().square().sum()
            entry[largest_column] = largest
        else:
            is_bad = frames.isfinite().all(dim=1).logical_not()
            entry[nonfinite_column] = 1 + int(is_bad.nonzero()[0])

    with progress(len(shard.chunks()), "k-means, first pass") as advance:
        for_each_chunk(shard, read_chunk, advance)
    distributed.sum_over_ranks(table)
    bad_chunks = table[:, nonfinite_column].nonzero()
    if len(bad_chunks):
        chunk = int(bad_chunks[0])
        frame = chunk * CHUNK_FRAMES + int(table[chunk, nonfinite_column]) - 1
        raise DataError(f"frame {frame} of {shard.total} holds NaN or infinity; fix the features")
    distributed.sum_over_ranks(sample)
    totals = table.sum(0).numpy()
    return FrameSummary(
        sample=sample,
        sums=totals[:dim],
        squares=float(totals[squares_column]),
        largest=float(table[:, largest_column].max()),
        total=shard.total,
    )


def _draw_sample(total: int, count: int, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """`count` of `total` frames: one from each of `count` equal intervals, ascending; and the
    position of each in the sample.
    """
    generator = seeds.generator(seed, "k-means sample")
    if total <= count:
        rows = np.arange(total)
    else:
        points = (np.arange(count) + generator.random(count)) * (total / count)
        rows = np.minimum(np.floor(points).astype(np.int64), total - 1)
    return rows, generator.permutation(len(rows))
