"""The manifest: which utterances a corpus has, as a memory-mapped table with one row per utterance.

Rows are ordered by split (train, valid, test, then others by name) and id, so a split is a range of rows and the order never depends
on how files were found. Nothing is kept per utterance in Python: 200 million rows open as fast as ten.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from hubert_pretrain.data.tables import open_table, write_table
from hubert_pretrain.errors import ArtefactError, DataError, nearest
from hubert_pretrain.frames import SAMPLE_RATE

FORMAT = "hubert_pretrain.manifest.2"
SPLITS = ("train", "valid", "test")

# large_string: 64-bit offsets, so a column may exceed 2 GB. A dictionary stores each speaker's name once.
_TEXT = pa.large_string()
_NAME = pa.dictionary(pa.int32(), pa.large_string())
_TYPES: dict[str, pa.DataType] = {
    "id": _TEXT,
    "path": _TEXT,
    "offset": pa.int64(),
    "num_bytes": pa.int64(),
    "start": pa.int64(),
    "num_samples": pa.int64(),
    "source_rate": pa.int32(),
    "speaker": _NAME,
    "text": _TEXT,
    "label": _NAME,
    "split": _NAME,
    "corpus": _NAME,
    "mean": pa.float32(),
    "variance": pa.float32(),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Utterance:
    """One row of a manifest. Samples are counted at 16 kHz, after resampling."""

    id: str
    path: str
    """Absolute path or URL of the audio file, or of the shard that holds it."""
    num_samples: int
    offset: int = -1
    """Where the bytes of the audio file begin in `path`, a shard; -1 when `path` is the audio file itself."""
    num_bytes: int = -1
    """How many bytes the audio file has in its shard; -1 when it is no part of one."""
    start: int = 0
    """First sample of the utterance in its file (0 unless the file is a longer recording)."""
    source_rate: int = SAMPLE_RATE
    """Samples per second in the file."""
    speaker: str = ""
    text: str = ""
    label: str = ""
    split: str = "train"
    corpus: str = ""
    mean: float = 0.0
    """Mean of the whole utterance (in [-1, 1], after resampling), so that a crop is normalised as the whole is."""
    variance: float = 1.0
    """Biased variance of the whole utterance."""
    row: int = -1
    """Its row in the manifest; -1 before it has one."""


class Manifest:
    """Random access to the rows of a manifest. Cheap to open, to pickle and to fork; safe to share between processes."""

    def __init__(self, path: Path, root: Path | None = None) -> None:
        self.path = path
        self._root_override = root
        batch, metadata = open_table(path, made_by="prepare")
        if metadata.get("format") != FORMAT:
            raise ArtefactError(f"{path}: is {metadata.get('format', 'not a manifest')}, expected {FORMAT}; run stage=prepare again")
        self._num_rows = int(batch.num_rows)
        # Kept, because making these views takes longer than reading a row.
        self._columns: dict[str, pa.Array] = dict(zip(_TYPES, batch.columns, strict=True))
        self.root = root or path.parent / metadata["root"]
        self.fingerprint = metadata["fingerprint"]
        self._ranges: dict[str, list[int]] = json.loads(metadata["splits"])

    @staticmethod
    def open(path: str | Path, root: str | Path | None = None) -> Manifest:
        """Opens `manifest.arrow` in O(1).

        Args:
            path: the file, or the folder that holds it.
            root: where the audio lies now, when it was moved since `prepare`.
        """
        path = Path(path).absolute()
        return Manifest(path / "manifest.arrow" if path.is_dir() else path, Path(root).absolute() if root is not None else None)

    def __reduce__(self) -> tuple[Any, ...]:
        return Manifest, (self.path, self._root_override)

    def __len__(self) -> int:
        return self._num_rows

    def __getitem__(self, row: int) -> Utterance:
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} of a manifest of {len(self)} rows")
        values = {name: column[int(row)].as_py() for name, column in self._columns.items()}
        return Utterance(**values | {"path": self._locate(values["path"]), "row": int(row)})

    @property
    def splits(self) -> list[str]:
        """The splits that have rows, in row order."""
        return list(self._ranges)

    def split_range(self, split: str) -> range:
        """The rows of a split. Raises DataError when it has none."""
        if split not in self._ranges:
            raise DataError(
                f"{self.path}: no utterances in split {split!r}, it has {', '.join(self.splits)}{nearest(split, self.splits)}; "
                "name another split or give the corpus one"
            )
        return range(*self._ranges[split])

    def rows(self, split: str | None = None) -> NDArray[np.int64]:
        """Row numbers (N,) of a split, or of all; empty when the split has none."""
        start, stop = (0, len(self)) if split is None else self._ranges.get(split, (0, 0))
        return np.arange(start, stop, dtype=np.int64)

    @property
    def num_samples(self) -> NDArray[np.int64]:
        """Length of every row, (N,) at 16 kHz. A read-only view of the file."""
        return self.numbers("num_samples")

    def numbers(self, name: str) -> NDArray[Any]:
        """A column of numbers, (N,), as a read-only view of the file."""
        return self.column(name).to_numpy(zero_copy_only=True)

    def column(self, name: str) -> pa.Array:
        """A whole column as an Arrow array (names such as `speaker` are dictionary arrays: `.dictionary`, `.indices`)."""
        return self._columns[name]

    def _locate(self, stored: str) -> str:
        if stored.startswith("./"):
            return str(self.path.parent / stored)
        return stored if "://" in stored else str(self.root / stored)


def write_manifest(path: Path, utterances: Iterable[Utterance], root: str | Path | None = None) -> list[Utterance]:
    """Writes `manifest.arrow` atomically.

    Args:
        path: the file to write.
        utterances: in any order; their `row` is ignored.
        root: folder of the corpus. Paths below it are stored relative to it, so that it can move; paths below the manifest's own
            folder are stored relative to that.

    Returns:
        The utterances in the order of their rows, with `row` set.
    """
    home, root = path.absolute().parent, Path(root or path.parent).absolute()
    ordered = [
        replace(utterance, row=row)
        for row, utterance in enumerate(sorted(utterances, key=lambda utterance: (split_order(utterance.split), utterance.id)))
    ]
    _refuse_duplicates(ordered)
    columns = {name: _column(ordered, name, home, root) for name in _TYPES}
    metadata = {
        "format": FORMAT,
        "root": "." if root == home else str(root),  # a corpus that lies beside its manifest moves with it
        "splits": json.dumps(_ranges([utterance.split for utterance in ordered])),
        "fingerprint": _fingerprint(columns),
    }
    write_table(path, columns, metadata)
    return ordered


def _column(utterances: list[Utterance], name: str, home: Path, root: Path) -> pa.Array:
    if name == "path":
        return pa.array([_store(utterance.path, f"{home}{os.sep}", f"{root}{os.sep}") for utterance in utterances], _TEXT)
    return pa.array([getattr(utterance, name) for utterance in utterances], _TYPES[name])


def _store(path: str, home: str, root: str) -> str:
    if path.startswith(home):
        return "./" + path[len(home) :]
    return path[len(root) :] if path.startswith(root) else path


def split_order(split: str) -> tuple[int, str]:
    """Sorts splits: train, valid, test, then others by name."""
    return SPLITS.index(split) if split in SPLITS else len(SPLITS), split


def _ranges(splits: list[str]) -> dict[str, list[int]]:
    ranges: dict[str, list[int]] = {}
    for row, split in enumerate(splits):
        ranges.setdefault(split, [row, row])[1] = row + 1
    return ranges


def _refuse_duplicates(utterances: list[Utterance]) -> None:
    seen: dict[str, Utterance] = {}
    for utterance in utterances:
        if (first := seen.setdefault(utterance.id, utterance)) is not utterance:
            raise DataError(f"{utterance.path}: id {utterance.id!r} is also the id of {first.path}; ids must be unique, rename one")


def _fingerprint(columns: dict[str, pa.Array]) -> str:
    """Changes with anything that targets depend on: which utterances, in which order, how long."""
    digest = hashlib.blake2b(digest_size=16)
    for name in ("id", "start", "num_samples"):
        for buffer in columns[name].buffers():
            digest.update(buffer if buffer is not None else b"\x00")
    return digest.hexdigest()
