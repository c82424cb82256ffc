"""Safe extraction of tar and zip archives: only plain files and folders, never outside the target
folder.
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
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, Any

from hubert_pretrain.errors import DataError
from hubert_pretrain.files import disk_room

SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".zip")
"""Suffixes of archives."""

_OPENERS = {".gz": gzip.open, ".tgz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
_DAMAGED = (tarfile.TarError, zipfile.BadZipFile, lzma.LZMAError, zlib.error, EOFError)


@dataclass(frozen=True, slots=True)
class _Member:
    name: str
    kind: str
    """file, folder, link or device."""
    open: Callable[[], IO[bytes] | None]
    num_bytes: int


def unpack(archive: Path, folder: Path) -> int:
    """Unpacks a tar (plain or compressed) or zip below `folder`, in one pass and constant memory.
    Returns the number of files.

    Only the names of members, which are checked, decide where a file is written. Owners, modes and
    links are ignored.

    Raises:
        DataError: the archive is damaged; a member is absolute, contains `..`, or is a link or a
            device; the disk is full.
    """
    members = _zip_members(archive) if archive.suffix == ".zip" else _tar_members(archive)
    count = 0
    try:
        with disk_room(folder, fix=f"make room for the content of {archive.name} and run again"):
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


class _CountingReader:
    """A readable file that counts its bytes."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.count = 0

    def read(self, size: int) -> bytes:
        block = self._file.read(size)
        self.count += len(block)
        return block


def _tar_members(archive: Path) -> Iterator[_Member]:
    # tarfile's own decompression ("r|gz") accepts a truncated file and checks no checksum, so the
    # file is decompressed here.
    opener: Any = _OPENERS.get(archive.suffix, open)
    with opener(archive, "rb") as file:
        counted = _CountingReader(file)
        with tarfile.open(fileobj=counted, mode="r|") as tar:  # type: ignore[call-overload]
            for info in tar:
                content = partial(tar.extractfile, info)
                yield _Member(info.name, _tar_kind(info), content, info.size)
                tar.members.clear()  # tarfile keeps every header otherwise
            while counted.read(1 << 20):
                pass  # read to the end, where the checksum of the compression is
            if counted.count < tar.offset + tarfile.BLOCKSIZE:
                raise EOFError("it ends before its end mark")


def _tar_kind(info: tarfile.TarInfo) -> str:
    if info.isreg():
        return "file"
    if info.isdir():
        return "folder"
    return "link" if info.islnk() or info.issym() else "device"


def _zip_members(archive: Path) -> Iterator[_Member]:
    with zipfile.ZipFile(archive) as file:
        for info in file.infolist():
            content = partial(file.open, info)
            yield _Member(info.filename, _zip_kind(info), content, info.file_size)


def _zip_kind(info: zipfile.ZipInfo) -> str:
    if info.is_dir():
        return "folder"
    mode = info.external_attr >> 16  # Unix mode; 0 when the archive has none
    return "file" if stat.S_IFMT(mode) in (0, stat.S_IFREG) else "link"


def _place(archive: Path, folder: Path, member: _Member) -> Path:
    """The path of a member. Raises DataError when it must not be unpacked."""
    if member.kind not in ("file", "folder"):
        raise DataError(
            f"{archive}: member {member.name!r} is a {member.kind}; "
            "only files and folders are unpacked, use another archive"
        )
    name = PurePosixPath(member.name)
    if name.is_absolute() or ".." in name.parts or "\\" in member.name or ":" in name.parts[:1]:
        raise DataError(
            f"{archive}: member {member.name!r} would land outside the folder; "
            "do not trust this archive, use another"
        )
    return folder.joinpath(*name.parts)


def _write(archive: Path, member: _Member, place: Path) -> None:
    source: Any = member.open()
    with source, open(place, "wb") as file:
        shutil.copyfileobj(source, file, 1 << 20)
        if file.tell() != member.num_bytes:
            raise DataError(
                f"{archive}: {member.name!r} has {file.tell()} of {member.num_bytes} bytes; "
                "remove it and fetch it again"
            )
