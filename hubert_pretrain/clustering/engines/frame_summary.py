"""One look at all frames before k-means: are they numbers, how large are they, and a random sample
of them that every rank holds.

Tensor alphabet: N frames, D width.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hubert_pretrain import distributed, seeds
from hubert_pretrain.clustering.engines.threads import over_chunks
from hubert_pretrain.clustering.frame_source import CHUNK_FRAMES, RankFrames
from hubert_pretrain.errors import DataError


@dataclass(frozen=True)
class FrameSummary:
    """What is known of the frames; the same on every rank, to the last bit."""

    sample: Tensor
    """(n, D) float32: frames drawn evenly from all of them, in random order, so that any beginning
    of it is a sample too.
    """
    sums: NDArray[np.float64]
    """(D,) over all frames."""
    squares: float
    """Sum of |x|^2 over all frames."""
    largest: float
    """The largest |number| in a frame."""
    total: int
    """N."""

    @cached_property
    def centre(self) -> NDArray[np.float64]:
        """(D,): the mean frame."""
        return self.sums / self.total

    @property
    def scatter(self) -> float:
        """Sum of squared distances to the mean: the inertia of a single cluster."""
        return max(0.0, self.squares - self.total * float(np.square(self.centre).sum()))


def summarise(shard: RankFrames, *, sample_frames: int, seed: int) -> FrameSummary:
    """Reads every frame once. Each rank contributes its chunks to tables that are zero elsewhere:
    adding them up rounds nothing.

    Raises DataError naming the first frame that holds NaN or infinity, on every rank.
    """
    number = -(-shard.total // CHUNK_FRAMES)
    dim = shard.dim
    table = torch.zeros(
        number, dim + 3, dtype=torch.float64
    )  # sums, squares, largest, 1 + first bad row
    rows, places = _draw(shard.total, sample_frames, seed)
    sample = torch.zeros(len(rows), dim)

    def read(start: int, stop: int, part: NDArray[np.float32]) -> None:
        frames = torch.from_numpy(part)
        first, last = np.searchsorted(rows, [shard.start + start, shard.start + stop])
        sample[torch.from_numpy(places[first:last])] = frames[
            torch.from_numpy(rows[first:last] - shard.start - start)
        ]
        entry = table[(shard.start + start) // CHUNK_FRAMES]
        largest = float(frames.abs().max())
        if np.isfinite(largest):
            entry[:dim], entry[dim], entry[dim + 1] = (
                frames.sum(0, dtype=torch.float64),
                frames.double().square().sum(),
                largest,
            )
        else:
            entry[dim + 2] = 1 + int(frames.isfinite().all(dim=1).logical_not().nonzero()[0])

    over_chunks(shard, read)
    distributed.sum_over_ranks(table)
    bad = table[:, dim + 2].nonzero()
    if len(bad):
        frame = int(bad[0]) * CHUNK_FRAMES + int(table[int(bad[0]), dim + 2]) - 1
        raise DataError(f"frame {frame} of {shard.total} holds NaN or infinity; mend the features")
    distributed.sum_over_ranks(sample)
    sums = table.sum(0).numpy()
    return FrameSummary(
        sample, sums[:dim], float(sums[dim]), float(table[:, dim + 1].max()), shard.total
    )


def _draw(total: int, count: int, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """`count` of `total` frames, one from each of `count` equal stretches, ascending; and where in
    the sample each of them goes.
    """
    generator = seeds.generator(seed, "k-means sample")
    if total <= count:
        rows = np.arange(total)
    else:
        rows = np.floor((np.arange(count) + generator.random(count)) * (total / count)).astype(
            np.int64
        )
        rows = np.minimum(rows, total - 1)
    return rows, generator.permutation(len(rows))
