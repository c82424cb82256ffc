"""Files: atomic JSON and text, fsync, SHA-256, sizes, and errors for a full disk."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hubert_pretrain.errors import ArtefactError, HubertPretrainError


def sha256(path: Path) -> str:
    """The sha256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


@contextmanager
def disk_room(path: Path, size: int) -> Iterator[None]:
    """Says in words that the disk is full while `size` bytes were written to `path`."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise HubertPretrainError(
            f"{path}: the disk has no room for {size} bytes; free some and run the stage again"
        ) from error


# -- writing that survives a kill
# -------------------------------------------------------------------------------------------------


def write_json(path: Path, value: Any) -> None:
    """Writes JSON atomically: readers see the old file or the new one, never half of either."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Writes a text file atomically (temporary file in the same folder, fsync, rename, fsync of the
    folder).
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    sync_folder(path.parent)


def read_json(path: Path, *, max_bytes: int | None = None) -> Any | None:
    """The content of a JSON file, or None when there is none or it is damaged.

    Raises ArtefactError for one of more than `max_bytes`, without reading it.
    """
    try:
        if max_bytes is not None and (size := path.stat().st_size) > max_bytes:
            raise ArtefactError(
                f"{path}: has {human_bytes(size)}, but at most {human_bytes(max_bytes)} were expected"
            )
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def sync_tree(folder: Path) -> None:
    """Flushes every file below a folder to the disk."""
    for path in [folder, *folder.rglob("*")]:
        if path.is_dir():
            sync_folder(path)
        elif path.is_file() and not path.is_symlink():
            with open(path, "rb") as file:
                os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Flushes a folder's list of names to the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def empty_folder(folder: Path) -> None:
    """Removes everything inside a folder."""
    for path in folder.iterdir():
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def size_in_bytes(folder: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file())


def human_bytes(count: float) -> str:
    """`12.3 MB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def age_in_seconds(path: Path) -> float:
    """Seconds since a file was written."""
    return max(0.0, time.time() - path.stat().st_mtime)
