"""Safe sequential reading of tar shards, which others may have made: one pass, nothing extracted,
nothing executed, nothing skipped without being counted.

A shard is a tar file in WebDataset's form: consecutive members of one key (`a/b` of `a/b.flac`,
`a/b.json`) are one sample. docs/shards.md says why this is not read by the package `webdataset`.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import re
import stat
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import IO, cast

from hubert_pretrain.data.audio_files import PassedOver
from hubert_pretrain.data.storage import is_url, reason_of
from hubert_pretrain.errors import DataError

_NAME = re.compile(r"((?:.*/)?[^./]+)\.([^/]*)")
"""Key and extension: the extension begins at the first dot of the last part (as in webdataset)."""
_END_MARK = 2 * tarfile.BLOCKSIZE
"""A tar file ends with two blocks of zeros."""
_BUFFER = 1 << 20

_AGAIN = "copy or make it again"
_WITHOUT_IT = "make the shard again without it"
_UNIQUE = "keys must be unique, make the shard again"


@dataclass(frozen=True, slots=True)
class Member:
    """A file in a shard."""

    key: str
    extension: str
    """The name after its first dot, in lower case: `flac`, `json`."""
    offset: int
    """Position of its first byte in the shard."""
    data: bytes


@dataclass
class Shard:
    """One pass over a shard. `size` and `sha256` of the file are known after the pass."""

    where: str
    """Path or URL, for messages."""
    size: int = 0
    sha256: str = ""
    passed_over: PassedOver = field(default_factory=PassedOver)
    """Members that belong to no sample: hidden ones, and those without an extension."""
    _keys: set[str] = field(default_factory=set)

    def samples(self, file: IO[bytes]) -> Iterator[list[Member]]:
        """The members of each sample, in the order of the shard.

        Raises:
            DataError: the shard is empty, cut, or no tar; or a member has a name that leads out of
                its folder, is a link or a device, or comes twice.
        """
        sample: list[Member] = []
        for member in self.members(file):
            if sample and member.key != sample[0].key:
                yield sample
                sample = []
            self._refuse_twice(member, sample)
            sample.append(member)
        if sample:
            yield sample

    def members(self, file: IO[bytes]) -> Iterator[Member]:
        """Every member, in the order of the shard. Raises DataError as `samples` does, but for
        names that come twice.
        """
        tap = _Tap(file)
        try:
            with tarfile.open(fileobj=tap, mode="r|", bufsize=_BUFFER, encoding="utf-8") as tar:
                while (info := tar.next()) is not None:
                    tar.members = []  # type: ignore[attr-defined]  # else tarfile collects them
                    if info.isdir():
                        continue
                    self._refuse_dangerous(info)
                    content = tar.extractfile(info)
                    parts = _NAME.fullmatch(info.name)
                    if parts is None or content is None:
                        self.passed_over.add(os.path.basename(info.name))
                        continue
                    yield Member(parts[1], parts[2].lower(), info.offset_data, content.read())
                end = tar.offset
        except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile, OSError) as error:
            raise DataError(
                f"{self.where}: not readable as a tar ({error or 'it was cut'}); {_AGAIN}"
            ) from error
        # A cut between two members looks like the end to tarfile: check the mark of the end.
        tap.drain()
        self.size = tap.size
        self.sha256 = tap.sha256.hexdigest()
        if not tap.is_zero_from(end, _END_MARK):
            raise DataError(
                f"{self.where}: ends after {end} of {tap.size} bytes without the mark of a tar's "
                f"end: it was cut, or its writer killed; {_AGAIN}"
            )

    def _refuse_dangerous(self, info: tarfile.TarInfo) -> None:
        name = info.name
        if not info.isreg() or info.issparse():
            kind = "a link" if info.issym() or info.islnk() else "no plain file"
            raise DataError(
                f"{self.where}: member {name!r} is {kind}, which audio never is; {_WITHOUT_IT}"
            )
        if name.startswith("/") or ".." in name.split("/") or not name.isprintable():
            raise DataError(
                f"{self.where}: member {name!r} has a name that leads out of its folder or cannot "
                f"be printed; {_WITHOUT_IT}"
            )

    def _refuse_twice(self, member: Member, sample: list[Member]) -> None:
        if sample and member.extension in [other.extension for other in sample]:
            raise DataError(
                f"{self.where}: member {member.key}.{member.extension} comes twice; {_UNIQUE}"
            )
        if not sample:
            if member.key in self._keys:
                raise DataError(f"{self.where}: key {member.key!r} comes twice; {_UNIQUE}")
            self._keys.add(member.key)


@contextmanager
def open_shard(path: str) -> Iterator[IO[bytes]]:
    """Opens a shard on disk or behind a URL, to be read from beginning to end; a gzipped one is
    unpacked on the way.

    Raises:
        DataError: it is missing, cannot be reached, or is a command (`pipe:`).
    """
    if path.startswith("pipe:"):
        raise DataError(
            f"{path}: is a command, which is not run; "
            "fetch the shard first, or name it by a URL such as s3://"
        )
    try:
        file = _open(path)
    except DataError:
        raise
    except Exception as error:  # file systems behind URLs raise errors of many types
        raise DataError(
            f"{path}: cannot be opened ({reason_of(error)}); restore the shard, "
            "or correct its name or the access to it"
        ) from error
    with file, _byte_ranges(path):
        if path.endswith(("gz", "tgz")):
            yield cast("IO[bytes]", gzip.GzipFile(fileobj=file))
        else:
            yield file


def _open(path: str) -> IO[bytes]:
    if not is_url(path):
        if not stat.S_ISREG(os.stat(path).st_mode):  # to open a pipe waits for its other end
            raise DataError(f"{path}: no such shard, it is a folder, a pipe or a device")
        return open(path, "rb")
    import fsspec

    return fsspec.open(path, "rb").open()  # type: ignore[no-any-return]


@contextmanager
def _byte_ranges(url: str) -> Iterator[None]:
    """Turns fsspec's error for a server without byte ranges into one with its fix."""
    try:
        yield
    except ValueError as error:
        if "range requests" not in str(error):
            raise
        raise DataError(
            f"{url}: its server sends whole files only, and audio is read from places inside; "
            "use one that answers byte ranges (nginx, caddy, s3), or copy the shards to a disk"
        ) from error


class _Tap(io.RawIOBase):
    """Passes a file through to a reader, and records its size, its hash and its last bytes."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._tail = b""
        self.size = 0
        self.sha256 = hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        self.size += len(data)
        self.sha256.update(data)
        self._tail = (self._tail + data)[-2 * _BUFFER :] if len(data) < _BUFFER else data
        return data

    def drain(self) -> None:
        while self.read(_BUFFER):
            pass

    def is_zero_from(self, position: int, at_least: int) -> bool:
        """True when the file is zero from `position` on, for `at_least` bytes."""
        rest = self._tail[max(0, position - self.size + len(self._tail)) :]
        return self.size - position >= at_least and not rest.strip(b"\0")
