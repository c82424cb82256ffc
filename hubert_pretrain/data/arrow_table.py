"""Arrow tables on disk: one record batch, uncompressed, memory-mapped.

In one batch every column is contiguous, so a column of numbers is a numpy view of the file: opening
costs the same for a hundred rows and for 200 million, and all processes of a machine share one copy
in the page cache. A column with long runs of one value may be run-length encoded
(data/run_length.py). `ColumnSpool` writes such a table with one chunk in memory: each buffer of
each column grows in a file of its own.
"""

from __future__ import annotations

import os
import shutil
import struct
import weakref
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from hubert_pretrain.data.run_length import RunLengthColumn, is_encoded, run_text
from hubert_pretrain.errors import ArtefactError
from hubert_pretrain.files import replacing

CHUNK = 1 << 16
"""Rows at a time where a table is written or read through."""

TEXT = pa.large_string()
"""64-bit offsets, so a column may exceed 2 GB."""
NAME = pa.dictionary(pa.int32(), pa.large_string())
"""Each name is stored once."""


def write_table(path: Path, columns: dict[str, pa.Array], metadata: dict[str, str]) -> None:
    """Writes the columns atomically: `path` is the whole table or does not exist."""
    fields = [pa.field(name, column.type, nullable=False) for name, column in columns.items()]
    schema = pa.schema(fields, metadata=metadata)
    batch = pa.RecordBatch.from_arrays(list(columns.values()), schema=schema)
    with (
        replacing(path) as temporary,
        open(temporary, "wb") as file,
        pa.ipc.new_file(file, schema) as writer,
    ):
        writer.write_batch(batch)


class Table:
    """A table on disk: `batch` has all columns as views of the file.

    Single cells (`numbers`, `text`) are read from the file by position, not through the memory map,
    where each read maps the 64 KB around it: random access would fill the memory of the process
    with pages of the file. Run-length encoded columns are small, and read through the map.
    """

    def __init__(self, path: Path) -> None:
        source = pa.memory_map(str(path))
        reader = pa.ipc.open_file(source, options=pa.ipc.IpcReadOptions(use_threads=False))
        self.batch: pa.RecordBatch = reader.get_batch(0)
        self.metadata = {
            key.decode(): value.decode() for key, value in (reader.schema.metadata or {}).items()
        }
        source.seek(0)
        self._base = source.read_buffer(1).address
        self.file = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self.file)

    def append(self, name: str, value: pa.Scalar) -> None:
        """Adds a column that the file has not, with one value in all rows."""
        count = min(1, self.batch.num_rows)
        ends = pa.array([self.batch.num_rows] * count, pa.int64())
        column = pa.RunEndEncodedArray.from_arrays(ends, pa.array([value] * count, value.type))
        self.batch = self.batch.append_column(name, column)

    def numbers(self, name: str) -> ColumnReader | RunLengthColumn:
        """Reader of the cells of a column of numbers, or of the numbers of a column of names."""
        column = self.batch.column(name)
        return RunLengthColumn(column) if is_encoded(column) else self.cells(name)

    def cells(self, name: str) -> ColumnReader:
        """`numbers` of a column that is not run-length encoded."""
        column = self.batch.column(name)
        column = column.indices if pa.types.is_dictionary(column.type) else column
        return self._slice(column.buffers()[1], column.type, len(column))

    def text(self, name: str) -> Callable[[int], str]:
        """A function from a row to its text."""
        column = self.batch.column(name)
        return run_text(column) if is_encoded(column) else self._text(column)

    def _text(self, column: pa.Array) -> Callable[[int], str]:
        _, offsets, data = column.buffers()
        bounds = self._slice(offsets, pa.int64(), len(column) + 1)
        begin = data.address - self._base if data else 0
        table = self

        def read(position: int) -> str:
            first, stop = bounds.pair(position)
            if stop == first:
                return ""
            return os.pread(table.file, stop - first, begin + first).decode()

        return read

    def _slice(self, buffer: pa.Buffer, kind: pa.DataType, count: int) -> ColumnReader:
        return ColumnReader(
            self, buffer.address - self._base, np.dtype(kind.to_pandas_dtype()), count
        )


class ColumnReader:
    """A column of numbers, or a slice of it, read cell by cell."""

    def __init__(self, table: Table, start: int, dtype: np.dtype[Any], count: int) -> None:
        self._table = table  # which holds the file open
        self._start = start
        self._dtype = dtype
        self._count = count
        self._size = dtype.itemsize
        code = "@" + dtype.char
        self._one = struct.Struct(code)
        self._two = struct.Struct(code + dtype.char)

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, position: int) -> Any:
        return self._one.unpack(
            os.pread(self._table.file, self._size, self._start + position * self._size)
        )[0]

    def pair(self, position: int) -> tuple[Any, Any]:
        """The cells `position` and `position + 1`."""
        first, second = self._two.unpack(
            os.pread(self._table.file, 2 * self._size, self._start + position * self._size)
        )
        return first, second

    def take(self, positions: NDArray[np.integer[Any]]) -> NDArray[Any]:
        """The cells at some positions."""
        return np.array(
            [self[position] for position in positions.ravel().tolist()], dtype=self._dtype
        ).reshape(positions.shape)

    def slice(self, start: int, stop: int) -> ColumnReader:
        """The cells [start, stop)."""
        return ColumnReader(
            self._table, self._start + start * self._size, self._dtype, stop - start
        )


def open_table(path: Path, made_by: str) -> Table:
    """Opens a table of `write_table` without reading rows.

    Raises:
        ArtefactError: the file is missing or damaged; the message names the stage `made_by`.
    """
    if not path.is_file():
        raise ArtefactError(f"{path}: not found; it is written by stage={made_by}")
    try:
        return Table(path)
    except (pa.ArrowInvalid, OSError, IndexError) as error:
        reason = str(error).splitlines()[0]
        raise ArtefactError(f"{path}: damaged ({reason}); redo={made_by} makes it again") from error


class ColumnSpool:
    """Columns that grow on disk chunk by chunk, and are then read as memory maps. Use it in a
    `with`: its folder is removed at the end.
    """

    def __init__(self, folder: Path, types: Mapping[str, pa.DataType]) -> None:
        """
        Args:
            folder: for the files; what is in it is removed.
            types: of the columns, by name: numbers, `TEXT`, `NAME` or large lists of numbers,
                without nulls.
        """
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        self.folder = folder
        self.types = dict(types)
        self.num_rows = 0
        self._files: dict[str, IO[bytes]] = {}
        self._ends = dict.fromkeys(self.types, 0)  # elements of a column of text or lists
        self._names: dict[str, dict[str, int]] = {
            name: {} for name, kind in self.types.items() if pa.types.is_dictionary(kind)
        }
        for name, kind in self.types.items():
            if _is_nested(kind):
                self._write(name, "offsets", np.zeros(1, dtype=np.int64))

    def __enter__(self) -> ColumnSpool:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for file in self._files.values():
            file.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def append(self, columns: Mapping[str, Any]) -> None:
        """Appends rows: for every column an Arrow array, or values for `pa.array`."""
        arrays = {name: _as_array(columns[name], kind) for name, kind in self.types.items()}
        counts = {len(array) for array in arrays.values()}
        if len(counts) != 1:
            raise ValueError(f"columns of {sorted(counts)} rows, expected equal numbers")
        for name, array in arrays.items():
            self._append(name, array)
        self.num_rows += counts.pop()

    def columns(self) -> dict[str, pa.Array]:
        """All rows so far, as memory maps, whose pages the system can drop from memory."""
        for file in self._files.values():
            file.flush()
        return {name: self._column(name, kind) for name, kind in self.types.items()}

    def replace(self, name: str, change: Callable[[NDArray[Any]], NDArray[Any]]) -> None:
        """Replaces the numbers of a column of numbers or lists by `change` of them, in parts."""
        file = self._files.get(f"{name}.values")
        kind = self.types[name]
        if file is None or not file.tell():
            return
        file.flush()
        number = kind.value_type if _is_nested(kind) else kind
        values = np.memmap(file.name, dtype=number.to_pandas_dtype(), mode="r+")
        for part in chunks(len(values)):
            values[part] = change(values[part])
        values.flush()

    def _append(self, name: str, array: pa.Array) -> None:
        kind = self.types[name]
        if pa.types.is_dictionary(kind):
            # Names are numbered as they appear, so the table does not depend on its chunks.
            known = self._names[name]
            used = array.indices.unique()
            numbers = np.zeros(len(array.dictionary), dtype=np.int32)
            numbers[used.to_numpy()] = [
                known.setdefault(value, len(known))
                for value in array.dictionary.take(used).to_pylist()
            ]
            self._write(name, "values", numbers[array.indices.to_numpy()])
        elif _is_nested(kind):
            offsets = _offsets(array)
            first = int(offsets[0])
            last = int(offsets[-1])
            self._write(name, "offsets", offsets[1:] - first + self._ends[name])
            self._ends[name] += last - first
            if kind == TEXT:
                self._write(
                    name,
                    "values",
                    np.frombuffer(array.buffers()[2] or b"", dtype=np.uint8)[first:last],
                )
            else:
                self._write(name, "values", array.values.slice(first, last - first).to_numpy())
        else:
            self._write(name, "values", array.to_numpy())

    def _write(self, name: str, part: str, values: NDArray[Any]) -> None:
        key = f"{name}.{part}"
        if key not in self._files:
            self._files[key] = open(self.folder / key, "wb")  # noqa: SIM115 (closed by __exit__)
        self._files[key].write(np.ascontiguousarray(values).data)

    def _column(self, name: str, kind: pa.DataType) -> pa.Array:
        values = self._map(f"{name}.values")
        if pa.types.is_dictionary(kind):
            indices = pa.Array.from_buffers(kind.index_type, self.num_rows, [None, values])
            return pa.DictionaryArray.from_arrays(
                indices, pa.array(list(self._names[name]), kind.value_type)
            )
        if not _is_nested(kind):
            return pa.Array.from_buffers(kind, self.num_rows, [None, values])
        offsets = self._map(f"{name}.offsets")
        if kind == TEXT:
            return pa.Array.from_buffers(kind, self.num_rows, [None, offsets, values])
        return pa.Array.from_buffers(
            kind,
            self.num_rows,
            [None, offsets],
            children=[pa.Array.from_buffers(kind.value_type, self._ends[name], [None, values])],
        )

    def _map(self, key: str) -> pa.Buffer:
        path = self.folder / key
        if not path.is_file() or not path.stat().st_size:
            return pa.py_buffer(b"")
        return pa.memory_map(str(path)).read_buffer()


def chunks(count: int, size: int = CHUNK) -> Iterator[slice]:
    """`range(count)` in slices of at most `size`."""
    return (slice(first, min(first + size, count)) for first in range(0, count, size))


def _as_array(values: Any, kind: pa.DataType) -> pa.Array:
    if isinstance(values, pa.Array) and values.type == kind:
        return values
    is_name = pa.types.is_dictionary(kind)
    plain = kind.value_type if is_name else kind
    array = values.cast(plain) if isinstance(values, pa.Array) else pa.array(values, plain)
    return array.dictionary_encode() if is_name else array


def _offsets(array: pa.Array) -> NDArray[np.int64]:
    """Offsets (N + 1,) of an array of text or lists, which may be a slice of another."""
    buffer = array.buffers()[1]
    if not len(array) or buffer is None:
        return np.zeros(1, dtype=np.int64)
    return np.frombuffer(buffer, dtype=np.int64)[array.offset : array.offset + len(array) + 1]


def _is_nested(kind: pa.DataType) -> bool:
    """True for columns with offsets: text and lists."""
    return bool(kind == TEXT or pa.types.is_large_list(kind))
