"""Columns that repeat themselves, stored by their runs (Arrow's run-end encoding): a corpus of one
sample rate, rows in the order of their shards or speakers. A run takes one value and its end, so
such columns cost no bytes per row, and reading a cell touches no page of its own.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

Ints = NDArray[np.integer[Any]]

MOST_RUNS = 1 << 20
"""A column of more runs is stored row by row: the ends of so many (8 MB) still stay in memory."""
_LEAST_LENGTH = 4
"""Rows that a run has on average, at least: with fewer the ends take more than they save."""
_AT_A_TIME = 1 << 16


def encode_runs(column: pa.Array) -> pa.Array:
    """The column by its runs when they are few, otherwise as it is. It has no nulls."""
    starts = [np.zeros(min(1, len(column)), dtype=np.int64)]
    limit = min(MOST_RUNS, len(column) // _LEAST_LENGTH)
    plain = column.indices if pa.types.is_dictionary(column.type) else column
    for first in range(1, len(column), _AT_A_TIME):
        stop = min(first + _AT_A_TIME, len(column))
        starts.append(
            np.flatnonzero(pc.not_equal(plain[first:stop], plain[first - 1 : stop - 1])) + first
        )
        if sum(map(len, starts)) > limit:
            return column
    firsts = np.concatenate(starts)
    ends = np.append(firsts[1:], len(column))
    return (
        pa.RunEndEncodedArray.from_arrays(pa.array(ends, pa.int64()), column.take(pa.array(firsts)))
        if len(firsts)
        else column
    )


def is_encoded(column: pa.Array) -> bool:
    """Whether `by_runs` changed it."""
    return bool(pa.types.is_run_end_encoded(column.type))


def values(column: pa.Array) -> pa.Array:
    """What the column consists of: the values of its runs, or of its rows."""
    return column.values if is_encoded(column) else column


def take(column: pa.Array, rows: Ints) -> pa.Array:
    """The values (N,) at some rows (N,) of a column, whichever way it is stored."""
    positions = (
        np.searchsorted(column.run_ends.to_numpy(), rows, side="right")
        if is_encoded(column)
        else rows
    )
    return values(column).take(pa.array(positions))


def as_numpy(column: pa.Array) -> NDArray[Any]:
    """A column of numbers (N,), read-only: a view, unless it has several runs."""
    numbers = values(column).to_numpy(zero_copy_only=True)
    if not is_encoded(column):
        return numbers
    if len(numbers) == 1:
        return np.broadcast_to(numbers, len(column))
    repeated = np.repeat(numbers, np.diff(column.run_ends.to_numpy(), prepend=0))
    repeated.flags.writeable = False
    return repeated


class RunLengthColumn:
    """A column of numbers that is stored by its runs, or of the numbers of names, cell by cell."""

    def __init__(self, column: pa.Array) -> None:
        stored = (
            column.values.indices if pa.types.is_dictionary(column.values.type) else column.values
        )
        self._ends = column.run_ends.to_numpy()
        self._values = stored.to_numpy()
        self._find, self._view = run_finder(self._ends), self._values.data

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, row: int) -> Any:
        return self._view[self._find(row)]

    def take(self, rows: Ints) -> NDArray[Any]:
        """The numbers of some rows, of any shape."""
        return self._values[np.searchsorted(self._ends, rows, side="right")]


def run_text(column: pa.Array) -> Callable[[int], str]:
    """Gives the text of a row of a column of text that is stored by its runs."""
    _, offsets, data = column.values.buffers()
    find = run_finder(column.run_ends.to_numpy())
    bounds = np.frombuffer(offsets, np.int64).data
    text = memoryview(data or b"")

    def read(row: int) -> str:
        run = find(row)
        return str(text[bounds[run] : bounds[run + 1]], "utf-8")

    return read


def run_finder(ends: NDArray[np.int64]) -> Callable[[int], int]:
    """Gives the run of a row. For one row at a time a memoryview is searched three times as fast as
    the array.
    """
    view = ends.data
    return partial(bisect_right, view) if len(view) > 1 else lambda row: 0
