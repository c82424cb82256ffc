"""Run-length (run-end) encoded columns, as Arrow has them.

Many columns of a manifest are constant over long runs: the sample rate, or the shard and the
speaker when rows are in their order. A run costs one value and its end, so such a column costs no
bytes per row, and reading a cell reads no page of the file.
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
"""A column of more runs is stored row by row: the ends of 2^20 runs (8 MB) fit into memory."""
_LEAST_LENGTH = 4
"""Least mean length of runs: with shorter runs the ends take more room than they save."""
_AT_A_TIME = 1 << 16


def encode_runs(column: pa.Array) -> pa.Array:
    """The column run-end encoded when its runs are few, otherwise unchanged. It has no nulls."""
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
    if not len(firsts):
        return column
    ends = pa.array(np.append(firsts[1:], len(column)), pa.int64())
    return pa.RunEndEncodedArray.from_arrays(ends, column.take(pa.array(firsts)))


def is_encoded(column: pa.Array) -> bool:
    """True for a column that `encode_runs` encoded."""
    return bool(pa.types.is_run_end_encoded(column.type))


def values(column: pa.Array) -> pa.Array:
    """The values of the runs of an encoded column, or of the rows of any other."""
    return column.values if is_encoded(column) else column


def take(column: pa.Array, rows: Ints) -> pa.Array:
    """The values (N,) at some rows (N,) of a column, encoded or not."""
    positions = (
        np.searchsorted(column.run_ends.to_numpy(), rows, side="right")
        if is_encoded(column)
        else rows
    )
    return values(column).take(pa.array(positions))


def as_numpy(column: pa.Array) -> NDArray[Any]:
    """A column of numbers as a read-only array (N,): a view, unless it has several runs."""
    numbers = values(column).to_numpy(zero_copy_only=True)
    if not is_encoded(column):
        return numbers
    if len(numbers) == 1:
        return np.broadcast_to(numbers, len(column))
    repeated = np.repeat(numbers, np.diff(column.run_ends.to_numpy(), prepend=0))
    repeated.flags.writeable = False
    return repeated


class RunLengthColumn:
    """An encoded column of numbers, or of names as their numbers, read cell by cell."""

    def __init__(self, column: pa.Array) -> None:
        stored = (
            column.values.indices if pa.types.is_dictionary(column.values.type) else column.values
        )
        self._ends = column.run_ends.to_numpy()
        self._values = stored.to_numpy()
        self._find = run_finder(self._ends)
        self._view = self._values.data

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, row: int) -> Any:
        return self._view[self._find(row)]

    def take(self, rows: Ints) -> NDArray[Any]:
        """The numbers of some rows, of any shape."""
        return self._values[np.searchsorted(self._ends, rows, side="right")]


def run_text(column: pa.Array) -> Callable[[int], str]:
    """A function from a row to its text, for an encoded column of text."""
    _, offsets, data = column.values.buffers()
    find = run_finder(column.run_ends.to_numpy())
    bounds = np.frombuffer(offsets, np.int64).data
    text = memoryview(data or b"")

    def read(row: int) -> str:
        run = find(row)
        return str(text[bounds[run] : bounds[run + 1]], "utf-8")

    return read


def run_finder(ends: NDArray[np.int64]) -> Callable[[int], int]:
    """A function from a row to its run. For single rows, a memoryview is searched three times as
    fast as the array.
    """
    view = ends.data
    return partial(bisect_right, view) if len(view) > 1 else lambda row: 0
