"""Length-sorted index of a split, used for bucketing. O(1) memory.

The order by samples is the order by frames on every grid, so one index serves all grids. N
utterances; a position is a place in the order by length, a row is one of the manifest.
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
        """The numbers at some indices."""
        ...


class _Origin(Protocol):
    def length_sorted(self, split: str) -> list[LengthIndex]: ...


class LengthIndex:
    """Utterances of one split of one corpus, shortest first. Only views of the manifest: cheap to
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
            rows: manifest rows (N,) in order of length.
            num_samples: length of every row of the manifest.
            corpus: the corpus that the utterances come from.
            total_samples: sum of the lengths of `rows`, where it is known.
            origin: (manifest, split, number) that give the same index again, so that pickling
                copies no rows.
        """
        self._rows = rows
        self._num_samples = num_samples
        self._origin = origin
        self.corpus = corpus
        if total_samples is None:
            total_samples = int(self.num_samples(np.arange(len(rows))).sum())
        self.total_samples = total_samples

    @staticmethod
    def of(num_samples: Ints, corpus: str = "") -> LengthIndex:
        """The index of utterances that are in no manifest: row i has `num_samples[i]` samples."""
        return LengthIndex(np.argsort(num_samples, kind="stable"), num_samples, corpus=corpus)

    def __reduce__(self) -> tuple[Any, ...]:
        if self._origin is None:
            return _plain, (self._rows, self._num_samples, self.corpus, self.total_samples)
        return _from_manifest, self._origin

    def __len__(self) -> int:
        return len(self._rows)

    def rows(self, positions: Ints) -> Ints:
        """Manifest rows at some positions."""
        return self._rows.take(positions).astype(np.int64)

    def num_samples(self, positions: Ints) -> Ints:
        """Lengths at some positions, in samples."""
        return self.num_samples_of(self._rows.take(positions))

    def num_samples_of(self, rows: Ints) -> Ints:
        """Lengths of manifest rows, in samples."""
        return self._num_samples.take(rows)

    def shorter_than(self, num_samples: Ints) -> Ints:
        """The number of utterances that are shorter than each of these lengths, by bisection:
        O(log N) reads for each.
        """
        bounds = np.asarray(num_samples, dtype=np.int64)
        low = np.zeros(bounds.shape, dtype=np.int64)
        high = np.full(bounds.shape, len(self), dtype=np.int64)
        while (open := low < high).any():
            middle = (low + high) // 2
            shorter = np.zeros(bounds.shape, dtype=bool)
            shorter[open] = self.num_samples(middle[open]) < bounds[open]
            low = np.where(open & shorter, middle + 1, low)
            high = np.where(open & ~shorter, middle, high)
        return low

    def frame_counts(self, grid: FrameGrid, min_samples: int, max_frames: int) -> Ints:
        """Histogram (max_frames + 1,) of lengths: entry t counts the utterances of at least
        `min_samples` that have t frames; the last one counts longer ones too.
        """
        bounds = np.array(
            [max(grid.num_samples(t), min_samples) for t in range(1, max_frames + 1)],
            dtype=np.int64,
        )
        below = np.append(self.shorter_than(bounds), len(self))
        return np.concatenate([[0], np.diff(below)])


def _from_manifest(manifest: _Origin, split: str, number: int) -> LengthIndex:
    return manifest.length_sorted(split)[number]


def _plain(rows: Numbers, num_samples: Numbers, corpus: str, total_samples: int) -> LengthIndex:
    return LengthIndex(rows, num_samples, corpus=corpus, total_samples=total_samples)
