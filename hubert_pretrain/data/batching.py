"""Which crops of which utterances make which micro-batch: a pure function of (seed, number), with
few shapes and no padding.

Design ideas 4 to 6. Utterances are bucketed by length; a micro-batch of bucket k is a crop of every
row to exactly T_k frames. Training is one endless stream of micro-batches, of which step n takes a
fixed stretch, so the only state to resume is the step number, and the batch of step n is the same
on any number of workers and devices.

Several corpora are drawn by their weights (data/corpus_weights.py). Shapes: B utterances, T frames,
C corpora, K buckets.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hubert_pretrain.data.corpus_weights import make_bucket, passes_per_epoch, sampling_weights
from hubert_pretrain.data.length_index import Ints, LengthIndex
from hubert_pretrain.errors import DataError
from hubert_pretrain.frames import FrameGrid, samples, seconds
from hubert_pretrain.seeds import derive, permute


@dataclass(frozen=True)
class BatchShape:
    """One static shape: micro-batches of `batch_rows` crops of `num_frames` frames, `masked_frames`
    hidden in each row.
    """

    num_frames: int
    batch_rows: int
    masked_frames: int


@dataclass(frozen=True)
class MicroBatch:
    """The crops of one forward pass: row b is frames [starts[b], starts[b] + shape.num_frames) of
    manifest row rows[b].
    """

    index: int
    """Its number in the endless stream; the seed of everything random in it."""
    rows: Ints
    starts: Ints
    shape: BatchShape


class BucketSampler:
    """The endless stream of micro-batches over the utterances of a split; step n is micro-batches
    [n * N, (n + 1) * N).

    An epoch of the stream holds as many micro-batches of each bucket as its utterances fill, in
    shuffled order; those left over (fewer than a micro-batch per bucket) differ from epoch to
    epoch. Nothing is kept per utterance: a plan is a few numbers per bucket and views of the
    manifest, made in milliseconds and pickled in kilobytes.
    """

    def __init__(
        self,
        utterances: Sequence[LengthIndex],
        *,
        grid: FrameGrid,
        seed: int,
        batch_seconds: float,
        micro_batch_seconds: float,
        max_crop_seconds: float,
        min_seconds: float,
        max_shapes: int,
        masked_frames: Callable[[int], int],
        corpus_weights: Mapping[str, float] | None = None,
        corpus_temperature: float = 1.0,
    ) -> None:
        """`utterances` are those of each corpus; `masked_frames` says how many of T frames are
        hidden; for weights see `corpus_shares`.

        Raises DataError when the utterances that are long enough do not fill one micro-batch.
        """
        self.grid = grid
        self.seed = seed
        self.utterances = list(utterances)
        self.micro_batches = max(1, round(batch_seconds / micro_batch_seconds))
        cap = grid.num_frames(samples(min(max_crop_seconds, micro_batch_seconds)))
        least = samples(min_seconds)
        shares = sampling_weights(self.utterances, corpus_weights or {}, corpus_temperature)

        def batch_rows(num_frames: int) -> int:
            return max(1, int(micro_batch_seconds / seconds(grid.num_samples(num_frames))))

        counts = np.stack(
            [one.frame_counts(grid, least, cap) for one in self.utterances]
        )  # (C, cap + 1)
        weighted = np.rint(passes_per_epoch(counts @ np.arange(cap + 1), shares) @ counts).astype(
            np.int64
        )
        crops = choose_crops(weighted, batch_rows, max_shapes)
        if not crops:
            raise DataError(
                f"{counts.sum()} of {sum(map(len, self.utterances))} training utterances are at least {min_seconds} s long, which does not "
                f"fill one micro-batch of {micro_batch_seconds} s; lower iterations.NAME.pretrain.micro_batch_seconds or its min_seconds, "
                "or add audio"
            )
        self.shapes = [BatchShape(t, batch_rows(t), masked_frames(t)) for t in crops]
        cuts = _cuts(self.utterances, crops, grid, least)  # (C, K + 1)
        self._repeats = passes_per_epoch(np.diff(cuts) @ np.array(crops), shares)
        self._buckets = [
            make_bucket(cuts[:, k], cuts[:, k + 1] - cuts[:, k], self._repeats, shape.batch_rows)
            for k, shape in enumerate(self.shapes)
        ]
        # Micro-batches [firsts[k], firsts[k + 1]) of an epoch are those of bucket k, before they
        # are shuffled.
        per_epoch = [
            bucket.total // shape.batch_rows
            for bucket, shape in zip(self._buckets, self.shapes, strict=True)
        ]
        self._firsts = np.concatenate([[0], np.cumsum(per_epoch)])
        self._left_out = int(cuts[:, 0].sum())

    @property
    def epoch_micro_batches(self) -> int:
        """Micro-batches in which every utterance is seen at most once (or as often as the weight of
        its corpus says).
        """
        return int(self._firsts[-1])

    def micro_batch(self, index: int) -> MicroBatch:
        """Number `index` of the stream, in O(B)."""
        epoch, slot = divmod(index, self.epoch_micro_batches)
        bucket, number = self._place(np.array([slot]), epoch)
        k = int(bucket[0])
        shape = self.shapes[int(bucket[0])]
        within = np.arange(number[0] * shape.batch_rows, (number[0] + 1) * shape.batch_rows)
        numbers = permute(within, self._buckets[k].total, self.seed, "rows", epoch, k)
        corpora, places = self._buckets[k].draw(numbers, epoch, self.seed, k)
        rows = np.empty(len(within), dtype=np.int64)
        frames = np.empty(len(within), dtype=np.int64)
        for c in np.unique(corpora).tolist():
            mine = corpora == c
            rows[mine] = self.utterances[c].rows(places[mine])
            frames[mine] = self.grid.num_frames(self.utterances[c].num_samples_of(rows[mine]))  # type: ignore[arg-type]
        slack = (frames - shape.num_frames).tolist()
        starts = [
            derive(self.seed, "crop", index, row) % (room + 1)
            for row, room in zip(rows.tolist(), slack, strict=True)
        ]
        return MicroBatch(index, rows, np.array(starts, dtype=np.int64), shape)

    def step_frames(self, step: int) -> tuple[int, int]:
        """(hidden frames, all frames) of a whole step over all devices: what the loss is divided
        by, known before the step runs.
        """
        epochs, slots = np.divmod(
            np.arange(step * self.micro_batches, (step + 1) * self.micro_batches),
            self.epoch_micro_batches,
        )
        buckets = [
            self._place(slots[epochs == epoch], int(epoch))[0] for epoch in np.unique(epochs)
        ]
        shapes = [self.shapes[k] for k in np.concatenate(buckets)]
        return sum(s.batch_rows * s.masked_frames for s in shapes), sum(
            s.batch_rows * s.num_frames for s in shapes
        )

    def cover(self, utterances: Sequence[LengthIndex]) -> ValidationSampler:
        """Every utterance of another split once, in the shapes of training, so that validation
        compiles nothing new.
        """
        return ValidationSampler(utterances, self.shapes, self.grid)

    def describe(self) -> str:
        """One line: shapes, share of the audio that an epoch uses, what is left out."""
        used = int(
            (
                np.diff(self._firsts)
                * [shape.batch_rows * shape.num_frames for shape in self.shapes]
            ).sum()
        )
        whole = float(self._repeats @ [one.total_samples for one in self.utterances])
        shapes = ", ".join(f"{shape.batch_rows}x{shape.num_frames}" for shape in self.shapes)
        drawn = ", ".join(
            f"{one.corpus} {times:.3g} times"
            for one, times in zip(self.utterances, self._repeats, strict=True)
        )
        count = sum(map(len, self.utterances))
        return (
            f"{count} utterances, {self.epoch_micro_batches} micro-batches per epoch, {self.micro_batches} per step; "
            f"shapes (rows x frames) {shapes}; {used * self.grid.hop / whole:.1%} of the audio used; {self._left_out} left out"
            + ("" if (self._repeats == 1.0).all() else f"; an epoch draws {drawn}")
        )

    def _place(self, slots: Ints, epoch: int) -> tuple[Ints, Ints]:
        """Slots of an epoch -> (their buckets, their numbers within the bucket)."""
        places = permute(slots, self.epoch_micro_batches, self.seed, "order", epoch)
        buckets = np.searchsorted(self._firsts, places, side="right") - 1
        return buckets, places - self._firsts[buckets]


class ValidationSampler(Sequence[MicroBatch]):
    """Micro-batches that hold every utterance once, in the middle, each made when it is asked for.

    Only the last micro-batch of a shape and corpus has fewer rows. Utterances shorter than the
    smallest shape are left out.
    """

    def __init__(
        self, utterances: Sequence[LengthIndex], shapes: Sequence[BatchShape], grid: FrameGrid
    ) -> None:
        self.utterances = list(utterances)
        self.shapes = list(shapes)
        self.grid = grid
        self._cuts = _cuts(
            self.utterances, [shape.num_frames for shape in shapes], grid, 0
        )  # (C, K + 1)
        self._counts = -(
            -np.diff(self._cuts) // np.array([shape.batch_rows for shape in shapes])
        )  # (C, K) micro-batches

    def __len__(self) -> int:
        return int(self._counts.sum())

    def __getitem__(self, index: Any) -> Any:
        if not 0 <= index < len(self):
            raise IndexError(f"micro-batch {index} of {len(self)}")
        ends = np.cumsum(self._counts)
        group = int(np.searchsorted(ends, index, side="right"))
        c, k = divmod(group, len(self.shapes))
        shape = self.shapes[k]
        number = index - int(ends[group] - self._counts[c, k])
        first = int(self._cuts[c, k]) + number * shape.batch_rows
        places = np.arange(first, min(first + shape.batch_rows, int(self._cuts[c, k + 1])))
        starts = (_frames(self.utterances[c], places, self.grid) - shape.num_frames) // 2
        return MicroBatch(int(index), self.utterances[c].rows(places), starts, shape)


def _cuts(
    utterances: Sequence[LengthIndex], crops: Sequence[int], grid: FrameGrid, min_samples: int
) -> Ints:
    """(C, K + 1): in each corpus, the utterances [cuts[k], cuts[k + 1]) are cropped to `crops[k]`
    frames.
    """
    bounds = np.array([max(grid.num_samples(t), min_samples) for t in crops], dtype=np.int64)
    return np.array(
        [[*one.shorter_than(bounds), len(one)] for one in utterances], dtype=np.int64
    ).reshape(-1, len(crops) + 1)


def _frames(utterances: LengthIndex, places: Ints, grid: FrameGrid) -> Ints:
    return np.asarray(grid.num_frames(utterances.num_samples(places)))  # type: ignore[arg-type]


def choose_crops(
    counts: Ints, batch_rows: Callable[[int], int], max_shapes: int, tolerance: float = 0.005
) -> list[int]:
    """Crop lengths that lose little audio: the fewest that use as many frames per epoch as the best
    choice, within `tolerance`.

    `counts[t]` utterances have t frames. An utterance is cropped to the longest crop that fits; a
    bucket that does not fill one micro-batch of `batch_rows(crop)` rows is not made (its utterances
    go to the next shorter crop), and what does not fill a last micro-batch is lost for that epoch.
    Exact, by dynamic programming over the distinct lengths. Utterances shorter than the shortest
    crop are left out, which only happens to a few at the short end. Empty when nothing fills a
    micro-batch.
    """
    lengths = np.flatnonzero(counts)
    lengths = lengths[lengths > 0]
    if not len(lengths):
        return []
    below = np.concatenate([[0], np.cumsum(counts[lengths])])  # utterances shorter than lengths[i]
    rows = np.array([batch_rows(int(t)) for t in lengths])[:, None]
    filled = (below[None, :] - below[:-1, None]) // rows  # micro-batches of bucket [i, j)
    used = np.where(
        filled > 0, filled * rows * lengths[:, None], -np.inf
    )  # frames of bucket [i, j), (n, n + 1)
    best = np.zeros(len(lengths) + 1)  # frames used by the utterances shorter than lengths[j]
    totals = []
    origins = []
    for _ in range(min(max_shapes, len(lengths))):
        candidates = best[:-1, None] + used
        origins.append(candidates.argmax(axis=0))
        best = candidates.max(axis=0)
        totals.append(best[-1])
    if math.isinf(max(totals)):
        return []
    shapes = next(k for k, total in enumerate(totals) if total >= (1 - tolerance) * max(totals))
    crops = []
    end = len(lengths)
    for origin in reversed(origins[: shapes + 1]):
        end = int(origin[end])
        crops.append(int(lengths[end]))
    return crops[::-1]
