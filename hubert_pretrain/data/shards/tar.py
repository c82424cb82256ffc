"""Reading tar shards that somebody else may have made: in one pass, nothing extracted, nothing
executed, nothing skipped.

A shard is a tar in WebDataset's form: consecutive members of one key (`a/b` of `a/b.flac`,
`a/b.json`) make one sample. `webdataset` itself runs what .pkl, .pyd and .pth members hold and
takes the end of a shard that was cut between two members for its end; this does neither.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import re
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import IO

import numpy as np

from hubert_pretrain.data.storage import is_url
from hubert_pretrain.errors import DataError

EXECUTABLE = {"pyd", "pkl", "pickle", "pth", "pt", "ckpt", "joblib", "dill"}
"""Extensions of members whose usual readers run code that lies in them."""

_NAME = re.compile(r"((?:.*/)?[^./]+)\.([^/]*)")
"""Key and extension: the extension begins at the first dot of the last part (as in webdataset)."""
_END_MARK = 2 * tarfile.BLOCKSIZE
_BUFFER = 1 << 20


@dataclass(frozen=True, slots=True)
class Member:
    """A file in a shard."""

    key: str
    extension: str
    """What follows the first dot, in lower case: `flac`, `json`."""
    offset: int
    """Of its first byte in the shard."""
    data: bytes


@dataclass
class Shard:
    """One pass over a shard; `size` and `sha256` are those of the file and known after it."""

    where: str
    size: int = 0
    sha256: str = ""
    _keys: set[str] = field(default_factory=set)

    def samples(self, file: IO[bytes]) -> Iterator[list[Member]]:
        """The members of each sample, in the order of the shard.

        Raises DataError: the shard is empty, cut, or no tar; or a member has a name that leads out
        of its folder, is a link or a device,
        would execute code, or comes twice.
        """
        sample: list[Member] = []
        for member in self._members(file):
            if sample and member.key != sample[0].key:
                yield sample
                sample = []
            self._refuse_twice(member, sample)
            sample.append(member)
        if sample:
            yield sample

    def _members(self, file: IO[bytes]) -> Iterator[Member]:
        tap = _Tap(file)
        try:
            with tarfile.open(fileobj=tap, mode="r|", bufsize=_BUFFER, encoding="utf-8") as tar:
                while (info := tar.next()) is not None:
                    tar.members = []  # type: ignore[attr-defined]  # tarfile keeps all it has seen
                    if info.isdir():
                        continue
                    self._refuse_dangerous(info)
                    content = tar.extractfile(info)
                    if (parts := _NAME.fullmatch(info.name)) and content is not None:
                        data = content.read()
                        self._refuse_code(info.name, parts[2].lower(), data)
                        yield Member(parts[1], parts[2].lower(), info.offset_data, data)
                end = tar.offset
        except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile, OSError) as error:
            raise DataError(
                f"{self.where}: not readable as a tar ({error or 'it was cut'}); copy it again or make it anew"
            ) from error
        tap.drain()
        self.size = tap.size
        self.sha256 = tap.sha256.hexdigest()
        if not tap.is_zero_from(end, _END_MARK):
            raise DataError(
                f"{self.where}: ends after {end} of {tap.size} bytes without the mark of a tar's end: it was cut, or its writer killed; "
                "copy it again or make it anew"
            )

    def _refuse_dangerous(self, info: tarfile.TarInfo) -> None:
        name = info.name
        fix = "make the shard anew without it"
        if not info.isreg() or info.issparse():
            kind = "a link" if info.issym() or info.islnk() else "no plain file"
            raise DataError(f"{self.where}: member {name!r} is {kind}, which audio never is; {fix}")
        if name.startswith("/") or ".." in name.split("/") or not name.isprintable():
            raise DataError(
                f"{self.where}: member {name!r} has a name that leads out of its folder or cannot be printed; {fix}"
            )

    def _refuse_code(self, name: str, extension: str, data: bytes) -> None:
        if EXECUTABLE & set(extension.split(".")) or (
            extension.endswith("npy") and _holds_objects(data)
        ):
            raise DataError(
                f"{self.where}: member {name!r} would execute code when it is read, refused; make the shard anew without it"
            )

    def _refuse_twice(self, member: Member, sample: list[Member]) -> None:
        if sample and member.extension in [other.extension for other in sample]:
            raise DataError(
                f"{self.where}: member {member.key}.{member.extension} comes twice; keys must be unique, make the shard anew"
            )
        if not sample:
            if member.key in self._keys:
                raise DataError(
                    f"{self.where}: key {member.key!r} comes twice; keys must be unique, make the shard anew"
                )
            self._keys.add(member.key)


@contextmanager
def open_shard(path: str) -> Iterator[IO[bytes]]:
    """A shard on disk or behind a URL, to be read from beginning to end; a gzipped one is unpacked
    on the way.

    Raises DataError: it is missing, cannot be reached, or is a command (`pipe:`).
    """
    if path.startswith("pipe:"):
        raise DataError(
            f"{path}: is a command, which is not run; fetch the shard first, or name it by a URL such as s3://"
        )
    if is_url(path):
        import fsspec

        opened = lambda: fsspec.open(path, "rb").open()  # noqa: E731
    else:
        opened = lambda: open(path, "rb")  # noqa: E731, SIM115
    try:
        file = opened()
    except (OSError, ImportError, ValueError) as error:
        raise DataError(
            f"{path}: cannot be opened ({error}); restore the shard or mend its name"
        ) from error
    with file, _byte_ranges(path):
        yield gzip.GzipFile(fileobj=file) if path.endswith(("gz", "tgz")) else file  # type: ignore[misc]


@contextmanager
def _byte_ranges(url: str) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        if "range requests" not in str(error):
            raise
        raise DataError(
            f"{url}: its server sends whole files only, and audio is read from places inside; use one that answers byte ranges (nginx, "
            "caddy, s3), or copy the shards to a disk"
        ) from error


class _Tap(io.RawIOBase):
    """Reads a file through, and knows its size, its hash and its end."""

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
        rest = self._tail[max(0, position - self.size + len(self._tail)) :]
        return self.size - position >= at_least and not rest.strip(b"\0")


def _holds_objects(data: bytes) -> bool:
    """Whether an .npy member holds pickled objects, or is no such file at all."""
    try:
        np.load(io.BytesIO(data), allow_pickle=False)
    except ValueError:
        return True
    return False
