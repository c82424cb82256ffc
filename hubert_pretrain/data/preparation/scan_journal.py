"""Resumable record of scanned audio: one record per segment on disk, so that a killed run does not
decode 60,000 hours again, and a corpus that grows is read only where it is new.

During a run it also stores the facts of the segments; only the number of a record stays in memory.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hubert_pretrain.data.arrow_table import chunks
from hubert_pretrain.data.preparation.audio_stats import AudioFacts, Segment
from hubert_pretrain.data.storage import Location, is_url

_FLUSH_SECONDS = 5.0
_MEASURES = [
    "num_samples",
    "source_rate",
    "channels",
    "channel",
    "recoded",
    "mean",
    "variance",
    "peak",
    "clipped",
    "silence",
    "mix_loss",
]
_WHOLE_NUMBERS = 5
"""The first of them are whole numbers."""
RECORD = np.dtype(
    [("key", "<u8", 2), ("size", "<i8"), ("modified", "<i8")]
    + [(name, "<i8") for name in _MEASURES[:_WHOLE_NUMBERS]]
    + [(name, "<f8") for name in _MEASURES[_WHOLE_NUMBERS:]]
    + [("content", ">u8", 2), ("check", "<u8")]
)
"""A record: key of the segment, size and time of change of its file, its facts, and a checksum of
all these.
"""
_WORDS = RECORD.itemsize // 8

Identity = tuple[int, int]
"""Size and time of change of a file."""


class ScanJournal:
    """Facts of segments, by location, file size and time of change: a file that changed is read
    again. Use it in a `with`.
    """

    def __init__(self, path: Path, roots: Sequence[str] = (), *, read_only: bool = False) -> None:
        """
        Args:
            path: the file.
            roots: folders that may move: files below them are known by the number of the folder
                and the path below it.
            read_only: nothing is added.
        """
        self.path = path
        self._roots = sorted(enumerate(roots), key=lambda root: -len(root[1]))
        records = _whole_records(path)
        self._count = len(records)
        keys = np.ascontiguousarray(records["key"][:, 0])
        self._order = np.argsort(keys, kind="stable")
        self._keys = keys[self._order]
        self._known = records
        mode = "r+b" if path.exists() else "w+b"
        if read_only:
            mode = "rb"
        self._file = open(path, mode)  # noqa: SIM115 (closed by __exit__)
        if not read_only:
            self._file.truncate(self._count * RECORD.itemsize)  # drops a torn record
        self._file.seek(0, os.SEEK_END)
        self._flushed = time.monotonic()

    def __enter__(self) -> ScanJournal:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()

    def find(self, location: Location, segment: Segment, identity: Identity) -> int:
        """The number of the record of a segment in an unchanged file; -1 when there is none."""
        return next(
            (number for number, known in self._versions(location, segment) if known == identity), -1
        )

    def is_recoded(self, number: int) -> bool:
        """True when a record that was found is of a recording with a FLAC of its own."""
        return number >= 0 and bool(self._known[number]["recoded"])

    def newest(self, location: Location, segment: Segment) -> Identity | None:
        """The file of a segment as it was when it was read last; None when it was not read."""
        return next((known for _, known in self._versions(location, segment)), None)

    def _versions(self, location: Location, segment: Segment) -> Iterator[tuple[int, Identity]]:
        """Number and identity of every record of a segment, the newest first."""
        key = self._key(location, segment)
        first = int(np.searchsorted(self._keys, key[0], side="left"))
        stop = int(np.searchsorted(self._keys, key[0], side="right"))
        for number in self._order[first:stop][::-1].tolist():
            record = self._known[number]
            if record["key"][1] == key[1]:
                yield int(number), (int(record["size"]), int(record["modified"]))

    def _key(self, location: Location, segment: Segment) -> tuple[int, int]:
        path = location.path
        for number, root in self._roots:
            if path.startswith(f"{root}/"):
                path = f"{number}:{path[len(root) :]}"
                break
        name = "\0".join(map(str, (path, *location[1:], *Segment(*segment))))
        digest = hashlib.blake2b(name.encode(errors="surrogateescape"), digest_size=16).digest()
        return int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:], "little")

    def add(
        self, location: Location, segment: Segment, identity: Identity, facts: AudioFacts
    ) -> int:
        """Records the facts of a segment and returns the number of the record. It is on disk a few
        seconds later.
        """
        record = np.zeros((), dtype=RECORD)
        record["key"] = self._key(location, segment)
        record["size"], record["modified"] = identity
        for name in _MEASURES:
            record[name] = getattr(facts, name)
        record["content"] = np.frombuffer(bytes.fromhex(facts.content.rjust(32, "0")), dtype=">u8")
        record["check"] = _checksums(record[None])[0]
        self._file.write(record.tobytes())
        self._count += 1
        if time.monotonic() - self._flushed > _FLUSH_SECONDS:
            self._file.flush()
            self._flushed = time.monotonic()
        return self._count - 1

    def records(self) -> NDArray[Any]:
        """All records as a memory map, dtype `RECORD`."""
        self._file.flush()
        return _map(self.path)


def facts_of(record: Any) -> AudioFacts:
    """The facts in a record."""
    return AudioFacts(
        **{name: record[name].item() for name in _MEASURES},
        content=record["content"].tobytes().hex(),
    )


def identity(location: Location) -> Identity:
    """Size and time of change of a file, which tell that it has changed. A file behind a URL counts
    as unchanged during one `prepare`.
    """
    if is_url(location.path):
        return -1, -1
    try:
        status = os.stat(location.path)
    except OSError:
        return -1, -1
    return status.st_size, status.st_mtime_ns


def _map(path: Path) -> NDArray[Any]:
    count = path.stat().st_size // RECORD.itemsize if path.exists() else 0
    if not count:
        return np.zeros(0, dtype=RECORD)
    return np.memmap(path, dtype=RECORD, mode="r", shape=(count,))


def _whole_records(path: Path) -> NDArray[Any]:
    """The records up to the first that a kill or a crash left damaged."""
    records = _map(path)
    for part in chunks(len(records)):
        damaged = np.flatnonzero(_checksums(records[part]) != records["check"][part])
        if len(damaged):
            return records[: part.start + int(damaged[0])]
    return records


def _checksums(records: NDArray[Any]) -> NDArray[np.uint64]:
    """A checksum of each record: the sum of its other words, each times an odd number of its own,
    modulo 2^64.
    """
    words = np.ascontiguousarray(records).view("<u8").reshape(len(records), _WORDS)[:, :-1]
    factors = np.uint64(0x9E3779B97F4A7C15) * np.arange(1, 2 * _WORDS - 2, 2, dtype=np.uint64)
    return (words * factors).sum(axis=1, dtype=np.uint64) ^ np.uint64(0x6A6F75726E616C)
