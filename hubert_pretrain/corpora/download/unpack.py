"""Unpacking archives of others: plain files and folders, never outside the folder. What is neither
is refused by name.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

from hubert_pretrain.errors import DataError
from hubert_pretrain.files import disk_room

SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".zip")
"""Names of files that are unpacked."""

_OPENERS = {".gz": gzip.open, ".tgz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
_DAMAGED = (tarfile.TarError, zipfile.BadZipFile, lzma.LZMAError, zlib.error, EOFError)


@dataclass(frozen=True, slots=True)
class _Member:
    name: str
    kind: str
    """file, folder, or what it is instead."""
    open: Callable[[], IO[bytes] | None]
    num_bytes: int


def unpack(archive: Path, folder: Path) -> int:
    """Unpacks a tar (plain or compressed) or zip below `folder`, in one pass and constant memory.
    Returns the number of files.

    Nothing of the archive decides where anything lands but the names, which are checked; owners,
    modes and links are not taken over.

    Raises:
        DataError: the archive is damaged; a member is absolute, climbs with `..`, or is a link or a
        device; the disk is full.
    """
    count = 0
    members = _zip_members(archive) if archive.suffix == ".zip" else _tar_members(archive)
    try:
        with disk_room(folder, fix=f"make room for what {archive.name} holds and run again"):
            for member in members:
                place = _place(archive, folder, member)
                if member.kind == "folder":
                    place.mkdir(parents=True, exist_ok=True)
                    continue
                place.parent.mkdir(parents=True, exist_ok=True)
                _write(archive, member, place)
                count += 1
    except (*_DAMAGED, OSError) as error:
        if getattr(error, "errno", None) is not None:
            raise
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{archive}: damaged ({reason}); remove it and fetch it again") from error
    return count


class _Counted:
    """A file to read from, that counts the bytes."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.count = 0

    def read(self, size: int) -> bytes:
        block = self._file.read(size)
        self.count += len(block)
        return block


def _tar_members(archive: Path) -> Iterator[_Member]:
    # Not tarfile's own decompression ("r|gz"): it takes a truncated file for a whole one, and
    # checks no checksum.
    opener: Any = _OPENERS.get(archive.suffix, open)
    with opener(archive, "rb") as file:
        counted = _Counted(file)
        with tarfile.open(fileobj=counted, mode="r|") as tar:  # type: ignore[call-overload]
            for info in tar:
                kind = (
                    "file"
                    if info.isreg()
                    else "folder"
                    if info.isdir()
                    else "link"
                    if info.islnk() or info.issym()
                    else "device"
                )
                yield _Member(info.name, kind, lambda info=info: tar.extractfile(info), info.size)  # type: ignore[misc]
                tar.members.clear()  # it keeps every header it has seen
            while counted.read(1 << 20):
                pass  # to the end, where the checksum is
            if counted.count < tar.offset + tarfile.BLOCKSIZE:
                raise EOFError("it ends before its end mark")


def _zip_members(archive: Path) -> Iterator[_Member]:
    with zipfile.ZipFile(archive) as file:
        for info in file.infolist():
            mode = info.external_attr >> 16
            kind = (
                "folder"
                if info.is_dir()
                else "file"
                if stat.S_IFMT(mode) in (0, stat.S_IFREG)
                else "link"
            )
            yield _Member(info.filename, kind, lambda info=info: file.open(info), info.file_size)  # type: ignore[misc]


def _place(archive: Path, folder: Path, member: _Member) -> Path:
    if member.kind not in ("file", "folder"):
        raise DataError(
            f"{archive}: member {member.name!r} is a {member.kind}; only files and folders are unpacked, use another archive"
        )
    name = PurePosixPath(member.name)
    if name.is_absolute() or ".." in name.parts or "\\" in member.name or ":" in name.parts[:1]:
        raise DataError(
            f"{archive}: member {member.name!r} would land outside the folder; do not trust this archive, use another"
        )
    return folder.joinpath(*name.parts)


def _write(archive: Path, member: _Member, place: Path) -> None:
    source: Any = member.open()
    with source, open(place, "wb") as file:
        shutil.copyfileobj(source, file, 1 << 20)
        if file.tell() != member.num_bytes:
            raise DataError(
                f"{archive}: {member.name!r} has {file.tell()} of {member.num_bytes} bytes; remove it and fetch it again"
            )
