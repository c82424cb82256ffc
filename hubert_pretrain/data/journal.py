"""What `prepare` has already read, line by line on disk, so that a killed run goes on instead of decoding 60,000 hours again."""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

from hubert_pretrain.data.probe import AudioFacts

_FLUSH_SECONDS = 5.0


class Journal:
    """Facts of files by path, size and time of change: a file that changed since is read again. Use it in a `with`."""

    def __init__(self, path: Path) -> None:
        self._known: dict[str, dict[str, Any]] = {}
        content = path.read_bytes() if path.exists() else b""
        whole = content.rpartition(b"\n")[0]  # a kill may leave the last line unfinished
        for line in whole.splitlines():
            entry = _parse(line)
            if entry is not None:
                self._known[entry["path"]] = entry
        # Written anew, so that a torn line is not continued.
        self._file = open(path, "wb")  # noqa: SIM115 (closed by __exit__)
        self._file.write(whole + b"\n" if whole else b"")
        self._flushed = time.monotonic()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._file.close()

    def find(self, path: str) -> AudioFacts | None:
        """Facts of a file that was read before and is the same still."""
        entry = self._known.get(path)
        return AudioFacts(**entry["facts"]) if entry is not None and entry["file"] == _identity(path) else None

    def add(self, path: str, facts: AudioFacts) -> None:
        """Notes the facts of a file. They are on disk a few seconds later."""
        line = json.dumps({"path": path, "file": _identity(path), "facts": asdict(facts)})
        self._file.write(line.encode() + b"\n")
        if time.monotonic() - self._flushed > _FLUSH_SECONDS:
            self._file.flush()
            self._flushed = time.monotonic()


def _identity(path: str) -> list[int] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return [status.st_size, status.st_mtime_ns]


def _parse(line: bytes) -> dict[str, Any] | None:
    """An entry, or None for a line that is none."""
    fields = set(AudioFacts.__dataclass_fields__)
    try:
        entry = json.loads(line)
        return entry if {"path", "file"} < entry.keys() and entry["facts"].keys() == fields else None
    except (ValueError, AttributeError, KeyError):
        return None
