"""The manifest: a memory-mapped table with one row per utterance.

Rows are ordered by split (train, valid, test, then others by name) and id, so a split is a range of
rows and the order does not depend on how files were found. There is no Python object per utterance:
200 million rows open as fast as ten. Columns with long runs of one value (paths of shards,
speakers, sample rates) are run-length encoded, which leaves some 65 bytes for a row in a shard. One
more column has the rows of every split and corpus in order of length, from which the batch sampler
makes its buckets (data/length_index.py). N rows.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from hubert_pretrain.data import run_length
from hubert_pretrain.data.arrow_table import (
    CHUNK,
    NAME,
    TEXT,
    ColumnSpool,
    chunks,
    open_table,
    write_table,
)
from hubert_pretrain.data.audio import MIX
from hubert_pretrain.data.length_index import LengthIndex
from hubert_pretrain.errors import ArtefactError, DataError, did_you_mean
from hubert_pretrain.frames import SAMPLE_RATE

FORMAT = "hubert_pretrain.manifest.5"
READABLE = (FORMAT, "hubert_pretrain.manifest.4", "hubert_pretrain.manifest.3")
"""Format 4 had no column `channel`, format 3 stored every column row by row."""
SPLITS = ("train", "valid", "test")

TYPES: dict[str, pa.DataType] = {
    "id": TEXT,
    "path": TEXT,
    "offset": pa.int64(),
    "num_bytes": pa.int64(),
    "start": pa.int64(),
    "num_samples": pa.int64(),
    "source_rate": pa.int32(),
    "channel": pa.int16(),
    "speaker": NAME,
    "text": TEXT,
    "label": NAME,
    "split": NAME,
    "corpus": NAME,
    "mean": pa.float32(),
    "variance": pa.float32(),
}
"""The columns, in the order of the table."""
_PLAIN = [name for name, kind in TYPES.items() if kind not in (TEXT, NAME)]
_LENGTH_SORTED = "by_length"  # as it is called on disk

Ints = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, slots=True)
class Utterance:
    """One row of a manifest. Samples are counted at 16 kHz, after resampling."""

    id: str
    path: str
    """Absolute path or URL of the audio file, or of the shard that holds it."""
    num_samples: int
    offset: int = -1
    """First byte of the audio file in the shard `path`; -1: `path` is the audio file."""
    num_bytes: int = -1
    """Bytes of the audio file in its shard; -1 outside shards."""
    start: int = 0
    """First sample of the utterance in its file (0 unless the file is a longer recording)."""
    source_rate: int = SAMPLE_RATE
    """Samples per second in the file."""
    channel: int = MIX
    """Number of the channel, or MIX: the mean of all."""
    speaker: str = ""
    text: str = ""
    label: str = ""
    split: str = "train"
    corpus: str = ""
    mean: float = 0.0
    """Mean of the whole utterance (in [-1, 1], after resampling), so that a crop is normalised as
    the whole is.
    """
    variance: float = 1.0
    """Biased variance of the whole utterance."""
    row: int = -1
    """Its row in the manifest; -1 before it has one."""


class Manifest:
    """Random access to the rows of a manifest. Cheap to open, to pickle and to fork; safe to share
    between processes.
    """

    def __init__(
        self, path: Path, root: Path | None = None, moved: Mapping[str, str] | None = None
    ) -> None:
        self.path = path
        self._root_override = root
        self._moved = dict(moved or {})
        self._table = open_table(path, made_by="prepare")
        batch = self._table.batch
        metadata = self._table.metadata
        if metadata.get("format") not in READABLE:
            raise ArtefactError(
                f"{path}: is {metadata.get('format', 'not a manifest')}, expected {FORMAT}; "
                "redo=prepare makes it again"
            )
        if "channel" not in batch.schema.names:
            self._table.append("channel", pa.scalar(MIX, pa.int16()))
        self._num_rows = int(batch.num_rows)
        self._texts = {name: self._table.text(name) for name, kind in TYPES.items() if kind == TEXT}
        self._names = {
            name: run_length.values(batch.column(name)).dictionary
            for name, kind in TYPES.items()
            if kind == NAME
        }
        self._cells = {name: self._table.numbers(name) for name in TYPES if name not in self._texts}
        self._length_sorted = self._table.cells(_LENGTH_SORTED)
        self._views: dict[str, NDArray[Any]] = {}
        self.root = root or path.parent / metadata["root"]
        self.fingerprint = metadata["fingerprint"]
        self._ranges: dict[str, list[int]] = json.loads(metadata["splits"])
        self._groups: dict[str, list[tuple[str, int, int, int]]] = json.loads(metadata["groups"])

    @staticmethod
    def open(
        path: str | Path,
        root: str | Path | None = None,
        moved: Mapping[str, str] | None = None,
    ) -> Manifest:
        """Opens `manifest.arrow` in O(1).

        Args:
            path: the file, or the folder that holds it.
            root: folder of the audio, when it was moved after `prepare`.
            moved: folder -> the folder that its files have been moved to since.
        """
        path = Path(path).absolute()
        return Manifest(
            path / "manifest.arrow" if path.is_dir() else path,
            Path(root).absolute() if root is not None else None,
            moved,
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return Manifest, (self.path, self._root_override, self._moved)

    def __len__(self) -> int:
        return self._num_rows

    def __getitem__(self, row: int) -> Utterance:
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} of a manifest of {len(self)} rows")
        row = int(row)
        texts = {name: read(row) for name, read in self._texts.items()}
        names = {name: known[self._cells[name][row]].as_py() for name, known in self._names.items()}
        numbers = {name: self._cells[name][row] for name in _PLAIN}
        return Utterance(
            **texts | names | numbers | {"path": self._locate(texts["path"]), "row": row}
        )

    @property
    def splits(self) -> list[str]:
        """The splits that have rows, in row order."""
        return list(self._ranges)

    def split_range(self, split: str) -> range:
        """The rows of a split. Raises DataError when it has none."""
        if split not in self._ranges:
            raise DataError(
                f"{self.path}: no utterances in split {split!r}, it has {', '.join(self.splits)}"
                f"{did_you_mean(split, self.splits)}; name another split or give the corpus one"
            )
        return range(*self._ranges[split])

    def rows(self, split: str | None = None) -> NDArray[np.int64]:
        """Row numbers (N,) of a split, or of all; empty when the split has none."""
        start, stop = (0, len(self)) if split is None else self._ranges.get(split, (0, 0))
        return np.arange(start, stop, dtype=np.int64)

    def length_sorted(self, split: str) -> list[LengthIndex]:
        """The utterances of a split in order of length: one index per corpus, by name of the
        corpus; none when the split has no rows. O(1).
        """
        return [
            LengthIndex(
                self._length_sorted.slice(start, stop),
                self._cells["num_samples"],
                corpus=corpus,
                total_samples=total,
                origin=(self, split, number),
            )
            for number, (corpus, start, stop, total) in enumerate(self._groups.get(split, []))
        ]

    @property
    def num_samples(self) -> NDArray[np.int64]:
        """Length of every row, (N,) at 16 kHz. A read-only view of the file."""
        return self.numbers("num_samples")

    def numbers(self, name: str) -> NDArray[Any]:
        """A column of numbers, (N,), read-only: a view of the file, unless the column is run-length
        encoded.
        """
        if name not in self._views:
            self._views[name] = run_length.as_numpy(self._table.batch.column(name))
        return self._views[name]

    def audio_path(self, row: int) -> str:
        """`self[row].path`, without reading the rest of the row."""
        return self._locate(self._texts["path"](row))

    def column(self, name: str) -> pa.Array:
        """A whole column, see `take`. It takes memory for each row when it is run-length
        encoded.
        """
        stored = self._table.batch.column(name)
        return run_length.take(stored, self.rows()) if run_length.is_encoded(stored) else stored

    def take(self, name: str, rows: Ints) -> pa.Array:
        """A column at some rows (N,), as an Arrow array (names such as `speaker` are dictionary
        arrays: `.dictionary`, `.indices`).
        """
        return run_length.take(self._table.batch.column(name), rows)

    def number(self, name: str, row: int) -> Any:
        """One cell of a column of numbers (of names: the number of the name), without mapping the
        pages around it into memory.
        """
        return self._cells[name][row]

    def content(self) -> str:
        """Hash of what is trained on: utterances, their splits, and the sound of each."""
        digest = hashlib.blake2b(self.fingerprint.encode(), digest_size=16)
        digest.update(json.dumps(self._ranges).encode())
        for name in ("mean", "variance"):
            digest.update(np.ascontiguousarray(self.numbers(name)).data)
        return digest.hexdigest()

    def _locate(self, stored: str) -> str:
        if stored.startswith("./"):
            return os.path.join(self.path.parent, stored[2:])
        path = stored if "://" in stored else os.path.join(self.root, stored)
        for old in sorted(self._moved, key=len, reverse=True):
            if path.startswith(f"{old.rstrip('/')}/"):
                return self._moved[old].rstrip("/") + path[len(old.rstrip("/")) :]
        return path


def write_manifest(
    path: Path, utterances: Iterable[Utterance], root: str | Path | None = None
) -> Manifest:
    """Writes `manifest.arrow` atomically, with a few numbers per utterance in memory, and opens it.

    Args:
        path: the file to write.
        utterances: in any order; their `row` is ignored.
        root: folder of the corpus. Paths below it are stored relative to it, so that it can move;
            paths below the manifest's own folder are stored relative to that.

    Raises:
        DataError: two utterances have one id.
    """
    utterances = iter(utterances)
    with ColumnSpool(path.with_name(f".{path.name}.rows"), TYPES) as spool:
        while chunk := list(islice(utterances, CHUNK)):
            spool.append(
                {name: [getattr(utterance, name) for utterance in chunk] for name in TYPES}
            )
        columns = spool.columns()
        by_id = order_by_id(columns["id"], columns["path"])
        splits = columns["split"]
        order = order_by_split(by_id, splits.indices.to_numpy(), splits.dictionary.to_pylist())
        parts = (
            {name: column.take(pa.array(order[part])) for name, column in columns.items()}
            for part in chunks(len(order))
        )
        return write_columns(path, parts, root)


def write_columns(
    path: Path, parts: Iterable[Mapping[str, pa.Array]], root: str | Path | None = None
) -> Manifest:
    """`write_manifest` from columns: the parts of a table with the columns `TYPES`, in the order of
    the rows.
    """
    home = path.absolute().parent
    root = Path(root or path.parent).absolute()
    inside = f"{home}{os.sep}"
    below = f"{root}{os.sep}"
    with ColumnSpool(path.with_name(f".{path.name}.columns"), TYPES) as spool:
        for part in parts:
            spool.append({**part, "path": _stored(part["path"], inside, below)})
        columns = spool.columns()
        ranges = _ranges(columns["split"])
        length_sorted, groups = _order_by_length(columns, ranges)
        metadata = {
            "format": FORMAT,
            # A corpus that lies beside its manifest moves with it.
            "root": "." if root == home else str(root),
            "splits": json.dumps(ranges),
            "groups": json.dumps(groups),
            "fingerprint": _fingerprint(columns),
        }
        stored = {name: run_length.encode_runs(column) for name, column in columns.items()}
        write_table(path, {**stored, _LENGTH_SORTED: pa.array(length_sorted)}, metadata)
    return Manifest.open(path)


def order_by_id(ids: pa.Array, paths: pa.Array) -> Ints:
    """The positions of `ids` in their order. Raises DataError, with both paths, when two ids are
    the same.
    """
    order: Ints = pc.sort_indices(ids).to_numpy().view(np.int64)
    for part in chunks(len(order)):
        part = slice(max(0, part.start - 1), part.stop)  # with the last one of the part before
        ordered = ids.take(pa.array(order[part]))
        same = pc.equal(ordered[:-1], ordered[1:])
        if (position := pc.index(same, True).as_py()) >= 0:
            one, other = (int(order[part.start + position + i]) for i in range(2))
            id = ids[other].as_py()
            raise DataError(
                f"{paths[other]}: its id {id!r} is also the id of {paths[one]}; "
                "ids must be unique, rename or remove one"
            )
    return order


def order_by_split(by_id: Ints, splits: NDArray[np.int32], names: list[str]) -> Ints:
    """Positions in the order of the manifest's rows.

    Args:
        by_id: positions in order of ids.
        splits: split of every position, as a number into `names`.
        names: of the splits.
    """
    ranks = np.empty(len(names), dtype=np.int16)
    ranks[sorted(range(len(names)), key=lambda number: split_order(names[number]))] = np.arange(
        len(names)
    )
    return by_id[np.argsort(ranks[splits[by_id]], kind="stable")]


def split_order(split: str) -> tuple[int, str]:
    """Sort key of splits: train, valid, test, then others by name."""
    return SPLITS.index(split) if split in SPLITS else len(SPLITS), split


def _stored(paths: pa.Array, home: str, root: str) -> pa.Array:
    """Paths as they are stored: `./...` below `home`, relative below `root`, else absolute."""
    relative = pc.if_else(
        pc.starts_with(paths, root), pc.utf8_slice_codeunits(paths, len(root)), paths
    )
    beside = pc.binary_join_element_wise(
        pa.scalar("./", TEXT), pc.utf8_slice_codeunits(paths, len(home)), pa.scalar("", TEXT)
    )
    return pc.if_else(pc.starts_with(paths, home), beside, relative)


def _ranges(splits: pa.DictionaryArray) -> dict[str, list[int]]:
    """Split -> [first row, end of its rows)."""
    numbers = splits.indices.to_numpy()
    names = splits.dictionary.to_pylist()
    # The rows of a split are together, and splits are numbered as they appear.
    bounds = np.searchsorted(numbers, np.arange(len(names) + 1)).tolist()
    return {name: [bounds[number], bounds[number + 1]] for number, name in enumerate(names)}


def _order_by_length(
    columns: dict[str, pa.Array], ranges: dict[str, list[int]]
) -> tuple[NDArray[np.uint32], dict[str, list[tuple[str, int, int, int]]]]:
    """Rows in the order (split, corpus, length), and for every split its groups in that order:
    (corpus, start, stop, total samples).
    """
    lengths = columns["num_samples"].to_numpy()
    corpora = columns["corpus"].indices.to_numpy()
    names = columns["corpus"].dictionary.to_pylist()
    order = np.empty(len(lengths), dtype=np.uint32)
    groups: dict[str, list[tuple[str, int, int, int]]] = {}
    for split, (first, stop) in ranges.items():
        groups[split] = []
        begin = first
        found = np.flatnonzero(np.bincount(corpora[first:stop])).tolist()
        for number in sorted(found, key=names.__getitem__):
            if len(found) == 1:
                rows = np.arange(first, stop, dtype=np.uint32)
            else:
                rows = _rows_of(corpora, number, first, stop)
            end = begin + len(rows)
            order[begin:end] = rows[np.argsort(lengths[rows], kind="stable")]
            groups[split].append((names[number], begin, end, int(lengths[rows].sum())))
            begin = end
    return order, groups


def _rows_of(corpora: NDArray[np.int32], number: int, first: int, stop: int) -> NDArray[np.uint32]:
    return (np.flatnonzero(corpora[first:stop] == number) + first).astype(np.uint32)


def _fingerprint(columns: dict[str, pa.Array]) -> str:
    """Hash of everything that targets depend on: ids, order, starts, lengths and channels of the
    rows.
    """
    digest = hashlib.blake2b(digest_size=16)
    names = ["id", "start", "num_samples"]
    if pc.any(pc.not_equal(columns["channel"], MIX)).as_py():
        names.append("channel")
    for name in names:
        for buffer in columns[name].buffers():
            digest.update(buffer if buffer is not None else b"\x00")
    return digest.hexdigest()
