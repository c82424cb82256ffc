"""The utterances of a split in order of length, in O(1) memory: what a plan of crops is made of.

The order by samples is the order by frames on every grid, so one serves all. N utterances.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from hubert_pretrain.frames import FrameGrid

Ints = NDArray[np.int64]


class Numbers(Protocol):
    """A column of numbers: a numpy array, or cells of a table."""

    def __len__(self) -> int: ...

    def take(self, indices: Ints, /) -> NDArray[Any]:
        """The numbers at some places."""
        ...


class _Origin(Protocol):
    def by_length(self, split: str) -> list[LengthIndex]: ...


class LengthIndex:
    """Utterances of one split of one corpus, shortest first. They stay in the manifest: cheap to
    make, to pickle and to fork.
    """

    def __init__(
        self,
        rows: Numbers,
        num_samples: Numbers,
        *,
        corpus: str = "",
        total_samples: int | None = None,
        origin: tuple[_Origin, str, int] | None = None,
    ) -> None:
        """
        Args:
            rows: manifest rows (N,) in order of length. num_samples: length of every row of the
            manifest. corpus: where they come from. total_samples: sum of the lengths of `rows`,
            where it is known. origin: (manifest, split, number) that give the same again, so that
            pickling copies no rows.
        """
        self._rows = rows
        self._num_samples = num_samples
        self._origin = origin
        self.corpus = corpus
        self.total_samples = (
            int(self.num_samples(np.arange(len(rows))).sum())
            if total_samples is None
            else total_samples
        )

    @staticmethod
    def of(num_samples: Ints, corpus: str = "") -> LengthIndex:
        """Of utterances that are in no manifest: row i has `num_samples[i]` samples."""
        return LengthIndex(np.argsort(num_samples, kind="stable"), num_samples, corpus=corpus)

    def __reduce__(self) -> tuple[Any, ...]:
        if self._origin is None:
            return _plain, (self._rows, self._num_samples, self.corpus, self.total_samples)
        return _again, self._origin

    def __len__(self) -> int:
        return len(self._rows)

    def rows(self, places: Ints) -> Ints:
        """Manifest rows of places in the order."""
        return self._rows.take(places).astype(np.int64)

    def num_samples(self, places: Ints) -> Ints:
        """Lengths of places in the order, in samples."""
        return self.num_samples_of(self._rows.take(places))

    def num_samples_of(self, rows: Ints) -> Ints:
        """Lengths of manifest rows, in samples."""
        return self._num_samples.take(rows)

    def shorter_than(self, num_samples: Ints) -> Ints:
        """How many utterances are shorter than each of these lengths, by bisection: O(log N) reads
        each.
        """
        wanted = np.asarray(num_samples, dtype=np.int64)
        low = np.zeros(wanted.shape, dtype=np.int64)
        high = np.full(wanted.shape, len(self), dtype=np.int64)
        while (open := low < high).any():
            middle = (low + high) // 2
            shorter = np.zeros(wanted.shape, dtype=bool)
            shorter[open] = self.num_samples(middle[open]) < wanted[open]
            low = np.where(open & shorter, middle + 1, low)
            high = np.where(open & ~shorter, middle, high)
        return low

    def frame_counts(self, grid: FrameGrid, min_samples: int, max_frames: int) -> Ints:
        """(max_frames + 1,): how many utterances of at least `min_samples` have t frames; the last
        counts all that have more, too.
        """
        bounds = np.array(
            [max(grid.num_samples(t), min_samples) for t in range(1, max_frames + 1)],
            dtype=np.int64,
        )
        below = np.append(self.shorter_than(bounds), len(self))
        return np.concatenate([[0], np.diff(below)])


def _again(manifest: _Origin, split: str, number: int) -> LengthIndex:
    return manifest.by_length(split)[number]


def _plain(rows: Numbers, num_samples: Numbers, corpus: str, total_samples: int) -> LengthIndex:
    return LengthIndex(rows, num_samples, corpus=corpus, total_samples=total_samples)
