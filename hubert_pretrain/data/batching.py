"""Deterministic bucketed batch sampler: few static shapes, no padding, no state.

Utterances are bucketed by length, and a micro-batch of bucket k is a crop of every row to exactly
T_k frames. The crops of a micro-batch are a pure function of (seed, its number in one endless
stream), and step n is a fixed part of the stream. So the only state to resume is the step number,
and the batch of step n is the same on any number of workers and devices.

A micro-batch is a unit of the plan, not of the hardware. Micro-batches of one shape follow each
other in groups, so that a large GPU takes several of them in one forward pass (`fuse`).

Several corpora are sampled by their weights (data/corpus_weights.py). Shapes: B utterances, T
frames, C corpora, K buckets.
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
    """One static shape: micro-batches of `batch_rows` crops of `num_frames` frames, with
    `masked_frames` masked in each row.
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
    fillers: int = 0
    """Last rows that only make the shape full and count nothing."""

    @property
    def counted_rows(self) -> int:
        """Number of rows before the fillers."""
        return len(self.rows) - self.fillers


MAX_EXCESS = 0.1
"""Share by which a micro-batch may hold more audio than `micro_batch_seconds`."""
MAX_GROUP = 16
"""Most micro-batches of one shape in sequence."""
MAX_GROUP_LOSS = 0.005
"""Share of the micro-batches of an epoch that may be left over because they fill no group."""


class BucketSampler:
    """The endless stream of micro-batches over the utterances of a split; step n is micro-batches
    [n * N, (n + 1) * N).

    An epoch of the stream has as many groups of micro-batches of each bucket as its utterances
    fill, in shuffled order; the utterances left over (fewer than a group per bucket) differ from
    epoch to epoch. Nothing is stored per utterance: a sampler is a few numbers per bucket and views
    of the manifest, made in milliseconds and pickled in kilobytes.
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
        """
        Args:
            utterances: of each corpus.
            grid: frame grid of the model.
            seed: of the order, the crops and the shuffles.
            batch_seconds: audio of a step over all devices.
            micro_batch_seconds: audio of a micro-batch, to a tenth.
            max_crop_seconds: longest crop.
            min_seconds: shorter utterances are left out.
            max_shapes: most buckets.
            masked_frames: number of masked frames of a row, from its T frames.
            corpus_weights, corpus_temperature: see `sampling_weights`.

        Raises:
            DataError: the utterances that are long enough do not fill one micro-batch.
        """
        self.grid = grid
        self.seed = seed
        self.utterances = list(utterances)
        self.micro_batches = max(1, round(batch_seconds / micro_batch_seconds))
        max_frames = grid.num_frames(samples(min(max_crop_seconds, micro_batch_seconds)))
        min_samples = samples(min_seconds)
        shares = sampling_weights(self.utterances, corpus_weights or {}, corpus_temperature)

        def batch_rows(num_frames: int) -> int:
            return nearest_rows(micro_batch_seconds / seconds(grid.num_samples(num_frames)))

        # Shapes, from the histogram of lengths in which a corpus counts as often as it is sampled.
        counts = np.stack(
            [one.frame_counts(grid, min_samples, max_frames) for one in self.utterances]
        )  # (C, max_frames + 1)
        passes = passes_per_epoch(counts @ np.arange(max_frames + 1), shares)
        weighted = np.rint(passes @ counts).astype(np.int64)
        crops = choose_crops(weighted, batch_rows, max_shapes)
        if not crops:
            long_enough = int(counts.sum())
            raise DataError(
                f"{long_enough} of {sum(map(len, self.utterances))} training utterances are at "
                f"least {min_seconds} s long, and an epoch takes one crop of at most "
                f"{seconds(grid.num_samples(max_frames)):g} s of each, which does not fill one "
                f"micro-batch of {micro_batch_seconds} s; "
                + _more_crops(self.utterances, long_enough, micro_batch_seconds)
            )
        self.shapes = [BatchShape(t, batch_rows(t), masked_frames(t)) for t in crops]

        # Buckets, with the weights applied to the audio that is left after cropping.
        cuts = _cuts(self.utterances, crops, grid, min_samples)  # (C, K + 1)
        self._passes = passes_per_epoch(np.diff(cuts) @ np.array(crops), shares)
        self._buckets = [
            make_bucket(cuts[:, k], cuts[:, k + 1] - cuts[:, k], self._passes, shape.batch_rows)
            for k, shape in enumerate(self.shapes)
        ]
        per_epoch = np.array(
            [
                bucket.total // shape.batch_rows
                for bucket, shape in zip(self._buckets, self.shapes, strict=True)
            ]
        )
        self.group = group_size(per_epoch, self.micro_batches)
        """Micro-batches of one shape in sequence: [n * group, (n + 1) * group) of the stream. A
        divisor of those of a step."""
        # Before they are shuffled, groups [firsts[k], firsts[k + 1]) of an epoch are those of
        # bucket k.
        self._firsts = np.concatenate([[0], np.cumsum(per_epoch // self.group)])
        self._left_out = int(cuts[:, 0].sum())

    @property
    def epoch_micro_batches(self) -> int:
        """Micro-batches in which every utterance comes at most once (or as often as the weight of
        its corpus says).
        """
        return int(self._firsts[-1]) * self.group

    def fuse(self, most: int, devices: int) -> int:
        """Number of micro-batches, at most `most`, that each of `devices` takes in one forward
        pass: it divides a device's share of a step, and they have one shape.
        """
        share = self.micro_batches // devices
        common = math.gcd(share, self.group)
        return max(number for number in range(1, min(most, common) + 1) if common % number == 0)

    def micro_batch(self, index: int) -> MicroBatch:
        """Micro-batch `index` of the stream, in O(B)."""
        epoch, slot = divmod(index, self.epoch_micro_batches)
        buckets, numbers = self._locate(np.array([slot]), epoch)
        k = int(buckets[0])
        shape = self.shapes[k]
        # The utterances of bucket k have another order in each epoch, and are taken B at a time.
        first = int(numbers[0]) * shape.batch_rows
        within = np.arange(first, first + shape.batch_rows)
        sampled = permute(within, self._buckets[k].total, self.seed, "rows", epoch, k)
        corpora, positions = self._buckets[k].sample(sampled, epoch, self.seed, k)

        rows = np.empty(len(within), dtype=np.int64)
        frames = np.empty(len(within), dtype=np.int64)
        for c in np.unique(corpora).tolist():
            mine = corpora == c
            rows[mine] = self.utterances[c].rows(positions[mine])
            frames[mine] = self.grid.num_frames(self.utterances[c].num_samples_of(rows[mine]))
        slack = (frames - shape.num_frames).tolist()
        starts = [
            derive(self.seed, "crop", index, row) % (room + 1)
            for row, room in zip(rows.tolist(), slack, strict=True)
        ]
        return MicroBatch(index, rows, np.array(starts, dtype=np.int64), shape)

    def step_frames(self, step: int) -> tuple[int, int]:
        """(masked frames, all frames) of a whole step over all devices: the divisors of the loss,
        known before the step runs.
        """
        indices = np.arange(step * self.micro_batches, (step + 1) * self.micro_batches)
        epochs, slots = np.divmod(indices, self.epoch_micro_batches)
        shapes = [
            self.shapes[k]
            for epoch in np.unique(epochs).tolist()
            for k in self._locate(slots[epochs == epoch], epoch)[0].tolist()
        ]
        masked = sum(shape.batch_rows * shape.masked_frames for shape in shapes)
        return masked, sum(shape.batch_rows * shape.num_frames for shape in shapes)

    def validation(self, utterances: Sequence[LengthIndex]) -> ValidationSampler:
        """Every utterance of another split once, in the shapes of training, so that validation
        compiles nothing new.
        """
        return ValidationSampler(utterances, self.shapes, self.grid)

    @property
    def used_share(self) -> float:
        """Share of the audio that an epoch uses: of a recording longer than a crop, one crop."""
        frames = [shape.batch_rows * shape.num_frames for shape in self.shapes]
        used = int((np.diff(self._firsts) * self.group * frames).sum())
        whole = float(self._passes @ [one.total_samples for one in self.utterances])
        return used * self.grid.hop / whole

    def describe(self) -> str:
        """One line: shapes, share of the audio that an epoch uses, utterances left out."""
        shapes = ", ".join(f"{shape.batch_rows}x{shape.num_frames}" for shape in self.shapes)
        line = (
            f"{sum(map(len, self.utterances))} utterances, "
            f"{self.epoch_micro_batches} micro-batches per epoch, {self.micro_batches} per step; "
            f"shapes (rows x frames) {shapes}; {self.used_share:.1%} of the audio "
            f"used; {self._left_out} left out"
        )
        if (self._passes == 1.0).all():
            return line
        sampled = ", ".join(
            f"{one.corpus} {times:.3g} times"
            for one, times in zip(self.utterances, self._passes, strict=True)
        )
        return f"{line}; an epoch samples {sampled}"

    def _locate(self, slots: Ints, epoch: int) -> tuple[Ints, Ints]:
        """Slots of an epoch -> (their buckets, their numbers within the bucket)."""
        groups, within = np.divmod(slots, self.group)
        positions = permute(groups, int(self._firsts[-1]), self.seed, "order", epoch)
        buckets = np.searchsorted(self._firsts, positions, side="right") - 1
        return buckets, (positions - self._firsts[buckets]) * self.group + within


class ValidationSampler(Sequence[MicroBatch]):
    """Micro-batches that contain every utterance once, cropped in its middle, each made on
    request.

    The last micro-batch of a shape and corpus is filled up with its last utterance, so that there
    are no shapes beyond those of training. Utterances shorter than the smallest shape are left out.
    """

    def __init__(
        self, utterances: Sequence[LengthIndex], shapes: Sequence[BatchShape], grid: FrameGrid
    ) -> None:
        self.utterances = list(utterances)
        self.shapes = list(shapes)
        self.grid = grid
        crops = [shape.num_frames for shape in shapes]
        rows = np.array([shape.batch_rows for shape in shapes])
        self._cuts = _cuts(self.utterances, crops, grid, 0)  # (C, K + 1)
        self._counts = -(-np.diff(self._cuts) // rows)  # (C, K) micro-batches, rounded up

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
        end = int(self._cuts[c, k + 1])
        positions = np.arange(first, first + shape.batch_rows).clip(max=end - 1)
        fillers = max(0, first + shape.batch_rows - end)
        lengths = self.utterances[c].num_samples(positions)
        frames = self.grid.num_frames(lengths)
        starts = (frames - shape.num_frames) // 2
        rows = self.utterances[c].rows(positions)
        return MicroBatch(int(index), rows, starts, shape, fillers)


def _more_crops(utterances: Sequence[LengthIndex], count: int, micro_batch_seconds: float) -> str:
    """The advice for a corpus whose `count` utterances do not fill a micro-batch."""
    whole = seconds(sum(one.total_samples for one in utterances))
    if count and whole >= micro_batch_seconds:
        return (
            f"their {whole / 60:.1f} min would: cut the recordings into segments "
            "(data.segmentation.max_seconds=30 redo=prepare, or data=manifest with start_seconds "
            "and duration_seconds, docs/formats.md), or lower "
            "iterations.NAME.pretrain.micro_batch_seconds"
        )
    return "lower iterations.NAME.pretrain.micro_batch_seconds or its min_seconds, or add audio"


def _cuts(
    utterances: Sequence[LengthIndex], crops: Sequence[int], grid: FrameGrid, min_samples: int
) -> Ints:
    """(C, K + 1): in each corpus, the utterances at positions [cuts[k], cuts[k + 1]) are cropped to
    `crops[k]` frames.
    """
    bounds = np.array([max(grid.num_samples(t), min_samples) for t in crops], dtype=np.int64)
    cuts = [[*one.shorter_than(bounds), len(one)] for one in utterances]
    return np.array(cuts, dtype=np.int64).reshape(-1, len(crops) + 1)


def nearest_rows(exact: float) -> int:
    """Rows of a micro-batch, from its audio over that of a row: the nearest number, so that a step
    holds the audio that the recipe says, but at most MAX_EXCESS above.
    """
    rows = max(1, round(exact))
    return rows if rows <= (1 + MAX_EXCESS) * exact else max(1, int(exact))


def group_size(per_epoch: Ints, micro_batches: int) -> int:
    """The largest number of micro-batches of one shape in sequence, up to MAX_GROUP, that divides
    those of a step and leaves over no more than MAX_GROUP_LOSS of those of an epoch.

    Args:
        per_epoch: (K,) micro-batches of each bucket.
        micro_batches: of a step.
    """
    most = min(MAX_GROUP, micro_batches)
    fitting = [size for size in range(1, most + 1) if micro_batches % size == 0]
    allowed = MAX_GROUP_LOSS * per_epoch.sum()
    return max(size for size in fitting if (per_epoch % size).sum() <= allowed)


def choose_crops(
    counts: Ints, batch_rows: Callable[[int], int], max_shapes: int, tolerance: float = 0.005
) -> list[int]:
    """Crop lengths that lose little audio: the fewest that use as many frames per epoch as the best
    choice, within `tolerance`.

    An utterance is cropped to the longest crop that fits. A bucket that does not fill one
    micro-batch of `batch_rows(crop)` rows is not made (its utterances go to the next shorter crop),
    and utterances that do not fill a last micro-batch are lost for that epoch. Utterances shorter
    than the shortest crop are left out; these are few. Exact, by dynamic programming over the
    distinct lengths.

    Args:
        counts: `counts[t]` utterances have t frames.
        batch_rows: rows of a micro-batch, from its T frames.
        max_shapes: most crop lengths.
        tolerance: share of the frames that may be lost to use fewer crop lengths.

    Returns:
        Crop lengths in frames, ascending; empty when nothing fills a micro-batch.
    """
    lengths = np.flatnonzero(counts)
    lengths = lengths[lengths > 0]
    if not len(lengths):
        return []
    below = np.concatenate([[0], np.cumsum(counts[lengths])])  # utterances shorter than lengths[i]
    rows = np.array([batch_rows(int(t)) for t in lengths])[:, None]
    filled = (below[None, :] - below[:-1, None]) // rows  # micro-batches of bucket [i, j)
    # frames used by bucket [i, j), (n, n + 1)
    used = np.where(filled > 0, filled * rows * lengths[:, None], -np.inf)
    # After round k, best[j] is the most frames that k + 1 buckets use of the utterances shorter
    # than lengths[j]; origins[k][j] is where the last of these buckets begins.
    best = np.zeros(len(lengths) + 1)
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
    # Back from the end, bucket by bucket.
    crops = []
    end = len(lengths)
    for origin in reversed(origins[: shapes + 1]):
        end = int(origin[end])
        crops.append(int(lengths[end]))
    return crops[::-1]
