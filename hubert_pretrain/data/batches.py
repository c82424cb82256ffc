"""Which crops of which utterances make which micro-batch: a pure function of (seed, number), with few shapes and no padding.

Design ideas 4 to 6. Utterances are bucketed by length; a micro-batch of bucket k is a crop of every row to exactly T_k frames. Training
is one endless stream of micro-batches, of which step n takes a fixed stretch, so the only state to resume is the step number, and the
batch of step n is the same on any number of workers and devices.

Shapes: B utterances, T frames.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from hubert_pretrain.errors import DataError
from hubert_pretrain.frames import FrameGrid, samples, seconds
from hubert_pretrain.seeds import derive, permute

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Shape:
    """One static shape: micro-batches of `batch_rows` crops of `num_frames` frames, `masked_frames` hidden in each row."""

    num_frames: int
    batch_rows: int
    masked_frames: int


@dataclass(frozen=True)
class MicroBatch:
    """The crops of one forward pass: row b is frames [starts[b], starts[b] + shape.num_frames) of manifest row rows[b]."""

    index: int
    """Its number in the endless stream; the seed of everything random in it."""
    rows: Ints
    starts: Ints
    shape: Shape


class BatchPlan:
    """The endless stream of micro-batches over the utterances of a split; step n is micro-batches [n * N, (n + 1) * N).

    An epoch of the stream holds as many micro-batches of each bucket as its utterances fill, in shuffled order; those left over
    (fewer than a micro-batch per bucket) differ from epoch to epoch.
    """

    def __init__(
        self,
        rows: Ints,
        num_samples: Ints,
        *,
        grid: FrameGrid,
        seed: int,
        batch_seconds: float,
        micro_batch_seconds: float,
        max_crop_seconds: float,
        min_seconds: float,
        max_shapes: int,
        masked_frames: Callable[[int], int],
    ) -> None:
        """`num_samples` (N,) are the lengths of manifest rows `rows` (N,); `masked_frames` says how many of T frames are hidden.

        Raises DataError when the utterances that are long enough do not fill one micro-batch.
        """
        self.grid, self.seed = grid, seed
        self.micro_batches = max(1, round(batch_seconds / micro_batch_seconds))
        cap = grid.num_frames(samples(min(max_crop_seconds, micro_batch_seconds)))
        lengths, order = _usable_lengths(num_samples, grid, samples(min_seconds))
        budget = micro_batch_seconds

        def batch_rows(num_frames: int) -> int:
            return max(1, int(budget / seconds(grid.num_samples(num_frames))))

        counts = np.bincount(np.minimum(lengths, cap))
        crops = choose_crops(counts, batch_rows, max_shapes) if cap > 0 and len(lengths) else []
        if not crops:
            raise DataError(
                f"{len(lengths)} of {len(rows)} training utterances are at least {min_seconds} s long, which does not fill one "
                f"micro-batch of {micro_batch_seconds} s; lower pretrain.micro_batch_seconds or pretrain.min_seconds, or add audio"
            )
        self.shapes = [Shape(t, batch_rows(t), masked_frames(t)) for t in crops]
        self._rows, self._lengths = rows[order], lengths
        # Bucket k holds the utterances [cuts[k], cuts[k + 1]) in order of length; micro-batches [firsts[k], firsts[k + 1]) of an epoch.
        self._cuts = np.append(np.searchsorted(lengths, crops), len(lengths))
        per_epoch = [int(n) // shape.batch_rows for n, shape in zip(np.diff(self._cuts), self.shapes, strict=True)]
        self._firsts = np.concatenate([[0], np.cumsum(per_epoch)])
        self._left_out = len(rows) - len(lengths) + int(self._cuts[0])
        self._frames_of_step = lru_cache(maxsize=16)(self._count_frames)

    @property
    def epoch_micro_batches(self) -> int:
        """Micro-batches in which every utterance is seen at most once."""
        return int(self._firsts[-1])

    def micro_batch(self, index: int) -> MicroBatch:
        """Number `index` of the stream, in O(B)."""
        epoch, slot = divmod(index, self.epoch_micro_batches)
        bucket, number = self._place(np.array([slot]), epoch)
        k, shape = int(bucket[0]), self.shapes[int(bucket[0])]
        size = int(self._cuts[k + 1] - self._cuts[k])
        within = np.arange(number[0] * shape.batch_rows, (number[0] + 1) * shape.batch_rows)
        chosen = self._cuts[k] + permute(within, size, self.seed, "rows", epoch, k)
        rows, slack = self._rows[chosen], self._lengths[chosen] - shape.num_frames
        starts = [derive(self.seed, "crop", index, row) % (room + 1) for row, room in zip(rows.tolist(), slack.tolist(), strict=True)]
        return MicroBatch(index, rows, np.array(starts, dtype=np.int64), shape)

    def step_frames(self, step: int) -> tuple[int, int]:
        """(hidden frames, all frames) of a whole step over all devices: what the loss is divided by, known before the step runs."""
        return self._frames_of_step(step)

    def cover(self, rows: Ints, num_samples: Ints) -> list[MicroBatch]:
        """Every utterance of another split once, in the middle and in the shapes of training, so that validation compiles nothing new.

        Only the last micro-batch of a shape has fewer rows. Utterances shorter than the smallest shape are left out.
        """
        lengths, order = _usable_lengths(num_samples, self.grid, 0)
        rows = rows[order]
        cuts = np.append(np.searchsorted(lengths, [shape.num_frames for shape in self.shapes]), len(lengths))
        found: list[MicroBatch] = []
        for k, shape in enumerate(self.shapes):
            for first in range(int(cuts[k]), int(cuts[k + 1]), shape.batch_rows):
                part = slice(first, min(first + shape.batch_rows, int(cuts[k + 1])))
                found.append(MicroBatch(len(found), rows[part], (lengths[part] - shape.num_frames) // 2, shape))
        return found

    def describe(self) -> str:
        """One line: shapes, share of the audio that an epoch uses, what is left out."""
        used = sum(
            (int(self._firsts[k + 1] - self._firsts[k])) * shape.batch_rows * shape.num_frames for k, shape in enumerate(self.shapes)
        )
        shapes = ", ".join(f"{shape.batch_rows}x{shape.num_frames}" for shape in self.shapes)
        return (
            f"{len(self._rows)} utterances, {self.epoch_micro_batches} micro-batches per epoch, {self.micro_batches} per step; "
            f"shapes (rows x frames) {shapes}; {used / max(1, int(self._lengths.sum())):.1%} of the audio used; {self._left_out} left out"
        )

    def _place(self, slots: Ints, epoch: int) -> tuple[Ints, Ints]:
        """Slots of an epoch -> (their buckets, their numbers within the bucket)."""
        places = permute(slots, self.epoch_micro_batches, self.seed, "order", epoch)
        buckets = np.searchsorted(self._firsts, places, side="right") - 1
        return buckets, places - self._firsts[buckets]

    def _count_frames(self, step: int) -> tuple[int, int]:
        epochs, slots = np.divmod(np.arange(step * self.micro_batches, (step + 1) * self.micro_batches), self.epoch_micro_batches)
        buckets = [self._place(slots[epochs == epoch], int(epoch))[0] for epoch in np.unique(epochs)]
        shapes = [self.shapes[k] for k in np.concatenate(buckets)]
        return sum(s.batch_rows * s.masked_frames for s in shapes), sum(s.batch_rows * s.num_frames for s in shapes)


def choose_crops(counts: Ints, batch_rows: Callable[[int], int], max_shapes: int, tolerance: float = 0.005) -> list[int]:
    """Crop lengths that lose little audio: the fewest that use as many frames per epoch as the best choice, within `tolerance`.

    `counts[t]` utterances have t frames. An utterance is cropped to the longest crop that fits; a bucket that does not fill one
    micro-batch of `batch_rows(crop)` rows is not made (its utterances go to the next shorter crop), and what does not fill a last
    micro-batch is lost for that epoch. Exact, by dynamic programming over the distinct lengths. Utterances shorter than the shortest crop
    are left out, which only happens to a few at the short end. Empty when nothing fills a micro-batch.
    """
    lengths = np.flatnonzero(counts)
    lengths = lengths[lengths > 0]
    if not len(lengths):
        return []
    below = np.concatenate([[0], np.cumsum(counts[lengths])])  # utterances shorter than lengths[i]
    rows = np.array([batch_rows(int(t)) for t in lengths])[:, None]
    filled = (below[None, :] - below[:-1, None]) // rows  # micro-batches of bucket [i, j)
    used = np.where(filled > 0, filled * rows * lengths[:, None], -np.inf)  # frames of bucket [i, j), (n, n + 1)
    best = np.zeros(len(lengths) + 1)  # frames used by the utterances shorter than lengths[j]
    totals, origins = [], []
    for _ in range(min(max_shapes, len(lengths))):
        candidates = best[:-1, None] + used
        origins.append(candidates.argmax(axis=0))
        best = candidates.max(axis=0)
        totals.append(best[-1])
    if math.isinf(max(totals)):
        return []
    shapes = next(k for k, total in enumerate(totals) if total >= (1 - tolerance) * max(totals))
    crops, end = [], len(lengths)
    for origin in reversed(origins[: shapes + 1]):
        end = int(origin[end])
        crops.append(int(lengths[end]))
    return crops[::-1]


def _usable_lengths(num_samples: Ints, grid: FrameGrid, min_samples: int) -> tuple[Ints, Ints]:
    """Frames of the utterances of at least `min_samples` samples and one frame, ascending, and their places in `num_samples`."""
    frames = grid.num_frames(num_samples)  # type: ignore[arg-type]
    order = np.argsort(frames, kind="stable")
    order = order[(num_samples[order] >= min_samples) & (frames[order] > 0)]  # type: ignore[index]
    return frames[order], order  # type: ignore[index]
