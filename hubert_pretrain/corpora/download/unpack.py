"""Safe extraction of tar and zip archives: only plain files and folders, never outside the target
folder.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import stat
import tarfile
import zipfile
import zlib
from pathlib import Path, PurePosixPath
from typing import IO, Any

from hubert_pretrain.errors import DataError
from hubert_pretrain.files import disk_room

SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".zip")
"""Suffixes of archives."""

_OPENERS = {".gz": gzip.open, ".tgz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
_DAMAGED = (tarfile.TarError, zipfile.BadZipFile, lzma.LZMAError, zlib.error, EOFError)


def unpack(archive: Path, folder: Path) -> int:
    """Unpacks a tar (plain or compressed) or zip below `folder`, in one pass and constant memory.
    Returns the number of files.

    Owners, modes and times are ignored.

    Raises:
        DataError: the archive is damaged; a member is absolute, contains `..`, or is a link or a
            device; the disk is full.
    """
    extract = _unzip if archive.suffix == ".zip" else _untar
    try:
        with disk_room(folder, fix=f"make room for the content of {archive.name} and run again"):
            return extract(archive, folder)
    except (*_DAMAGED, OSError) as error:
        if getattr(error, "errno", None) is not None:
            raise
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{archive}: damaged ({reason}); remove it and fetch it again") from error


class _CountingReader:
    """A readable file that counts its bytes."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.count = 0

    def read(self, size: int) -> bytes:
        block = self._file.read(size)
        self.count += len(block)
        return block


def _untar(archive: Path, folder: Path) -> int:
    # tarfile's own decompression ("r|gz") accepts a truncated file and checks no checksum, so the
    # file is decompressed here.
    opener: Any = _OPENERS.get(archive.suffix, open)
    files = 0
    with opener(archive, "rb") as file:
        counted = _CountingReader(file)
        with tarfile.open(fileobj=counted, mode="r|") as tar:  # type: ignore[call-overload]
            for info in tar:
                kind = "" if info.isreg() or info.isdir() else "device"
                is_link = info.islnk() or info.issym()
                _refuse(archive, info.name, "link" if is_link else kind)
                tar.extract(info, folder, set_attrs=False, filter="data")
                files += info.isreg()
                tar.members.clear()  # tarfile keeps every header otherwise
            while counted.read(1 << 20):
                pass  # read to the end, where the checksum of the compression is
            if counted.count < tar.offset + tarfile.BLOCKSIZE:
                raise EOFError("it ends before its end mark")
    return files


def _unzip(archive: Path, folder: Path) -> int:
    files = 0
    with zipfile.ZipFile(archive) as file:
        for info in file.infolist():
            mode = stat.S_IFMT(info.external_attr >> 16)  # Unix mode; 0 when the archive has none
            _refuse(archive, info.filename, "link" if mode == stat.S_IFLNK else "")
            file.extract(info, folder)
            files += not info.is_dir()
    return files


def _refuse(archive: Path, member: str, kind: str) -> None:
    """Raises DataError for a member that is of a `kind` other than a file or folder, or that would
    land outside.
    """
    if kind:
        raise DataError(
            f"{archive}: member {member!r} is a {kind}; "
            "only files and folders are unpacked, use another archive"
        )
    name = PurePosixPath(member)
    if name.is_absolute() or ".." in name.parts or "\\" in member or ":" in name.parts[:1]:
        raise DataError(
            f"{archive}: member {member!r} would land outside the folder; "
            "do not trust this archive, use another"
        )
