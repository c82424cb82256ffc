"""Padded bucket sampler: whole utterances of similar length as micro-batches, a pure function of
(seed, index).

Pretraining crops every row of a micro-batch to one length; a transcript belongs to the whole
utterance, so fine-tuning pads instead. The rows of a bucket differ little in length, so padding is
small, and every bucket has one padded length, so shapes are few.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hubert_pretrain.frames import samples, seconds
from hubert_pretrain.seeds import permute


@dataclass(frozen=True)
class Bucket:
    """Utterances of similar length."""

    rows: NDArray[np.int64]  # manifest rows
    num_samples: int  # padded length S: that of the longest
    batch_rows: int  # utterances per micro-batch (B)

    @property
    def per_epoch(self) -> int:
        """Micro-batches in which every utterance occurs about once."""
        return max(1, round(len(self.rows) / self.batch_rows))


@dataclass(frozen=True)
class MicroBatch:
    """One forward pass."""

    index: int  # in the endless stream
    step: int  # optimiser update that it belongs to
    rows: NDArray[np.int64]  # (B,) manifest rows
    num_samples: int  # padded length S


class PaddedBucketSampler:
    """The endless stream of micro-batches; index ``g`` belongs to step ``g // micro_batches``.

    An epoch of the stream holds ``per_epoch`` micro-batches of every bucket in shuffled order.
    Inside a bucket utterances come from an endless sequence of shuffles, so none is left over at
    the end of an epoch and, within a bucket, all occur equally often.
    """

    def __init__(
        self,
        rows: NDArray[np.int64],
        num_samples: NDArray[np.int64],
        *,
        seed: int,
        batch_seconds: float,
        micro_batch_seconds: float,
        max_padding: float = 0.09,
    ) -> None:
        """
        Args:
            rows: (N,) manifest rows.
            num_samples: (N,) their lengths.
            batch_seconds: of a step, padding included.
            micro_batch_seconds: of a micro-batch, padding included.
            max_padding: largest share of a row that may be padding.
        """
        if len(rows) == 0:
            raise ValueError("found no utterances, expected at least one")
        self.seed = seed
        self.micro_batches = max(1, round(batch_seconds / micro_batch_seconds))
        self.buckets = make_buckets(rows, num_samples, samples(micro_batch_seconds), max_padding)
        self.padding = 1.0 - num_samples.sum() / sum(
            len(bucket.rows) * bucket.num_samples for bucket in self.buckets
        )
        """Share of a pass over the utterances that is padding."""
        self._ends = np.cumsum([bucket.per_epoch for bucket in self.buckets])

    def micro_batch(self, index: int) -> MicroBatch:
        """The micro-batch of an index."""
        number, occurrence = self._bucket_of(index)
        bucket = self.buckets[number]
        # Positions of the rows in the bucket's sequence of shuffles; a micro-batch may take the end
        # of one shuffle and the beginning of the next.
        positions = occurrence * bucket.batch_rows + np.arange(bucket.batch_rows)
        shuffles, places = np.divmod(positions, len(bucket.rows))
        chosen = [
            permute(places[shuffles == n], len(bucket.rows), self.seed, "rows", number, n)
            for n in np.unique(shuffles).tolist()
        ]
        return MicroBatch(
            index,
            index // self.micro_batches,
            bucket.rows[np.concatenate(chosen)],
            bucket.num_samples,
        )

    def utterances(self, step: int) -> int:
        """Rows of all micro-batches of a step; its loss is divided by them."""
        indices = range(step * self.micro_batches, (step + 1) * self.micro_batches)
        return sum(self.buckets[self._bucket_of(index)[0]].batch_rows for index in indices)

    def describe(self) -> str:
        """One line: utterances, shapes, padding."""
        shapes = ", ".join(
            f"{bucket.batch_rows}x{seconds(bucket.num_samples):.1f}s" for bucket in self.buckets
        )
        utterances = sum(len(bucket.rows) for bucket in self.buckets)
        return (
            f"{utterances} utterances, {int(self._ends[-1])} micro-batches per epoch, "
            f"{self.micro_batches} per step; shapes {shapes}; {self.padding:.1%} padding"
        )

    def _bucket_of(self, index: int) -> tuple[int, int]:
        """Number of a micro-batch's bucket, and how many of that bucket came before."""
        per_epoch = int(self._ends[-1])
        epoch, slot = divmod(index, per_epoch)
        slot = int(permute(slot, per_epoch, self.seed, "buckets", epoch)[0])
        number = int(np.searchsorted(self._ends, slot, side="right"))
        bucket = self.buckets[number]
        first_slot = int(self._ends[number]) - bucket.per_epoch
        return number, epoch * bucket.per_epoch + slot - first_slot


def make_buckets(
    rows: NDArray[np.int64], num_samples: NDArray[np.int64], budget: int, max_padding: float
) -> list[Bucket]:
    """Split utterances, longest first, so that no row of a bucket has more than ``max_padding`` (a
    share of the padded length) of padding.

    ``budget`` samples make a micro-batch, padding included; an utterance that is longer on its own
    is a micro-batch of one.
    """
    order = np.lexsort((rows, -num_samples))
    rows = rows[order]
    num_samples = num_samples[order]
    buckets = []
    first = 0
    while first < len(rows):
        longest = int(num_samples[first])
        after = int(np.searchsorted(-num_samples, -longest * (1.0 - max_padding), side="right"))
        batch_rows = min(max(1, budget // longest), after - first)
        buckets.append(Bucket(rows[first:after], longest, batch_rows))
        first = after
    return buckets
