"""Where the bytes of an audio file come from: a file on disk, a stretch of a shard, or either of
them behind a URL with a bounded cache.

Any URL that fsspec knows is read (s3://, gs://, http://, ...). What is fetched is exactly the audio
file asked for, never a whole shard, so that random access costs what it uses and one epoch fetches
every byte once; the cache keeps what fits.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import io
import json
import os
import stat
import time
import warnings
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from hubert_pretrain.errors import DataError
from hubert_pretrain.files import write_bytes

ATTEMPTS = 4
"""How often a fetch is tried before it is an error; the waits between are 0.5, 1 and 2 seconds."""

_OPEN_SHARDS = 64
_KEEP_AFTER_EVICTION = 0.9
"""Room is made for a tenth of the cache at a time, because finding the oldest means looking at
all.
"""
_ABANDONED_SECONDS = 3600.0
_MAGIC = b"hpc1"
_TRAILER = len(_MAGIC) + 4 + 8


@dataclass(frozen=True)
class Cache:
    """What was fetched, kept on local disk: at most `max_bytes`, the longest unused goes first.

    Safe between processes. Every entry carries its length and checksum, so one that a kill or a
    full disk left incomplete is fetched again.
    """

    folder: Path
    max_bytes: int

    @staticmethod
    def of(folder: str | Path | None, gigabytes: float) -> Cache | None:
        """The cache in `folder`, or None for none."""
        return (
            None
            if folder is None
            else Cache(Path(folder).expanduser().absolute(), int(gigabytes * 1e9))
        )

    def get(self, name: str, fetch: Callable[[], bytes]) -> bytes:
        """The bytes called `name`: from disk, or from `fetch`, which is then kept."""
        key = hashlib.blake2b(name.encode(), digest_size=16).hexdigest()
        path = self.folder / key[:2] / key
        data = _read_entry(path)
        if data is None:
            data = fetch()
            if len(data) + _TRAILER <= self.max_bytes:
                self._keep(path, data)
        return data

    def _keep(self, path: Path, data: bytes) -> None:
        checksum = zlib.crc32(data).to_bytes(4, "little")
        trailer = _MAGIC + checksum + len(data).to_bytes(8, "little")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._make_room(len(data) + _TRAILER)
            write_bytes(path, data + trailer, sync=False)
        except OSError as error:
            # Training goes on without a cache, only slower.
            warnings.warn(
                f"{self.folder}: nothing can be kept in the cache ({error}); free space or set data.cache_dir",
                stacklevel=2,
            )

    def _make_room(self, size: int) -> None:
        """Counts `size` bytes in, and drops the longest unused entries when that is too much. One
        process at a time.
        """
        with open(self.folder / ".bytes", "a+b") as ledger:
            fcntl.flock(ledger, fcntl.LOCK_EX)
            ledger.seek(0)
            known = ledger.read()
            total = (int(known) if known.isdigit() else self._evict(self.max_bytes)) + size
            if total > self.max_bytes:
                total = (
                    self._evict(max(0, int(self.max_bytes * _KEEP_AFTER_EVICTION) - size)) + size
                )
            ledger.truncate(0)
            ledger.write(b"%d" % total)

    def _evict(self, limit: int) -> int:
        """Removes the longest unused entries until at most `limit` bytes are left. Returns how many
        are.
        """
        entries = []
        for folder in (entry for entry in os.scandir(self.folder) if entry.is_dir()):
            for entry in os.scandir(folder.path):
                status = entry.stat()
                abandoned = (
                    entry.name.startswith(".")
                    and time.time() - status.st_mtime > _ABANDONED_SECONDS
                )
                entries.append((0.0 if abandoned else status.st_mtime, status.st_size, entry.path))
        left = sum(size for _, size, _ in entries)
        for used, size, path in sorted(entries):
            if left <= limit and used > 0.0:
                break
            Path(path).unlink(missing_ok=True)
            left -= size
        return left


class Location(NamedTuple):
    """Where an audio file lies: at `path`, or in the shard `path` from byte `offset` on."""

    path: str
    offset: int = -1
    num_bytes: int = -1


class ByteRange:
    """The bytes of one audio file, wherever they lie. Reading is by position, so a part has no
    state and may be shared.
    """

    def __init__(
        self, size: int, read: Callable[[int, int], bytes], path: str | None = None
    ) -> None:
        self.size = size
        self._read = read
        self._path = path

    @staticmethod
    def of(data: bytes) -> ByteRange:
        """Bytes in memory."""
        return ByteRange(len(data), lambda start, length: data[start : start + length])

    def read(self, start: int, length: int) -> bytes:
        """The bytes [start, start + length), fewer where the part ends before."""
        return self._read(start, max(0, min(length, self.size - start)))

    def file(self) -> str | io.BufferedIOBase:
        """The part for those that want a file: its path where it is a file of this machine, which
        libraries read faster.
        """
        return self._path or io.BufferedReader(_ByteRangeFile(self), buffer_size=1 << 16)


def is_url(path: str) -> bool:
    """Whether a path is one for fsspec. (`file://` is taken for what it is by `open_part`.)"""
    return "://" in path


def open_bytes(
    path: str, offset: int = -1, num_bytes: int = -1, cache: Cache | None = None
) -> ByteRange:
    """The audio file at `path`, or the one that lies at `offset` in the shard `path` and has
    `num_bytes`.

    Raises DataError: it is missing, cannot be fetched, or is not as long as it should be.
    """
    path = path.removeprefix("file://")
    if is_url(path):
        return ByteRange.of(fetch(path, offset, num_bytes, cache))
    try:
        # Asked every time, because it costs a microsecond and a shard may be replaced or cut while
        # it is in use.
        status = os.stat(path)
        shard = _open(path, status.st_dev, status.st_ino) if offset >= 0 else _Descriptor(path)
    except OSError as error:
        reason = (
            "no such file"
            if isinstance(error, FileNotFoundError)
            else f"cannot be opened ({error.strerror})"
        )
        raise DataError(
            f"{path}: {reason}; restore it, or run stage=prepare again without it"
        ) from error
    if not stat.S_ISREG(status.st_mode):
        raise DataError(f"{path}: no such file, it is a folder or a device; name a file")
    if offset < 0:
        return ByteRange(status.st_size, lambda start, length: shard.read(start, length), path)
    if offset + num_bytes > status.st_size:
        raise DataError(
            f"{path}: has {status.st_size} bytes, expected at least {offset + num_bytes}; the shard was cut, copy it again or write it anew"
        )
    return ByteRange(num_bytes, lambda start, length: shard.read(offset + start, length))


def fetch(url: str, offset: int = -1, num_bytes: int = -1, cache: Cache | None = None) -> bytes:
    """The bytes behind a URL, or `num_bytes` of them from `offset` on; from the cache where it has
    them.

    Raises DataError: they cannot be had after several attempts, or are not as many as they should
    be.
    """
    get = functools.partial(_download, url, offset, num_bytes)
    return get() if cache is None else cache.get(f"{url}\n{offset}\n{num_bytes}", get)


def read_json_at(path: str) -> Any | None:
    """The JSON at a path or URL, None when there is none or it is something else. Raises DataError
    when a URL cannot be reached.
    """
    try:
        return json.loads(Path(path).read_bytes() if not is_url(path) else fetch(path))
    except (FileNotFoundError, ValueError):
        return None
    except DataError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return None
        raise


class _Descriptor:
    """A file that is open until nobody uses it any more."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._number = -1
        self._number = os.open(path, os.O_RDONLY)

    def __del__(self) -> None:
        if self._number >= 0:
            os.close(self._number)

    def read(self, start: int, length: int) -> bytes:
        try:
            return os.pread(self._number, length, start)
        except OSError as error:
            raise DataError(
                f"{self._path}: cannot be read at byte {start} ({error.strerror}); mend the disk or the mount"
            ) from error


@functools.lru_cache(maxsize=_OPEN_SHARDS)
def _open(path: str, device: int, inode: int) -> _Descriptor:
    """A shard stays open. Reads are by position, so processes that were forked may share the
    descriptor.
    """
    return _Descriptor(path)


class _ByteRangeFile(io.RawIOBase):
    def __init__(self, part: ByteRange) -> None:
        self._part = part
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._part.size}[whence]
        self._position = max(0, base + offset)
        return self._position

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        data = self._part.read(self._position, len(buffer))
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)


def _read_entry(path: Path) -> bytes | None:
    """What an entry of the cache holds, or None when there is none or it is damaged."""
    try:
        entry = path.read_bytes()
    except OSError:
        return None
    data = entry[:-_TRAILER]
    trailer = entry[-_TRAILER:]
    if trailer != _MAGIC + zlib.crc32(data).to_bytes(4, "little") + len(data).to_bytes(8, "little"):
        return None
    with contextlib.suppress(OSError):  # another process may have dropped it meanwhile
        os.utime(path)
    return data


def _download(url: str, offset: int, num_bytes: int) -> bytes:
    # Found anew each time: fsspec keeps its file systems by process, and those of a parent do not
    # work in a fork.
    from fsspec.core import url_to_fs

    for attempt in range(ATTEMPTS):
        try:
            system, path = url_to_fs(url)
            data = bytes(
                system.cat_file(path)
                if offset < 0
                else system.cat_file(path, start=offset, end=offset + num_bytes)
            )
            if offset < 0 or len(data) == num_bytes:
                return data
            error: Exception = OSError(
                f"{len(data)} bytes came, {num_bytes} were asked for: the file was cut or ranges are ignored"
            )
        except (FileNotFoundError, PermissionError, ImportError, ValueError) as fatal:
            raise DataError(
                f"{url}: {_reason(fatal)}; restore it, or mend the URL or the access to it"
            ) from fatal
        except (
            Exception
        ) as failure:  # every file system has errors of its own, most of them of the network
            error = failure
        if attempt + 1 < ATTEMPTS:
            time.sleep(0.5 * 2**attempt)
    raise DataError(
        f"{url}: {_reason(error)}, {ATTEMPTS} times; restore it, or mend the connection"
    ) from error


def _reason(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "no such file"
    return " ".join(str(error).split()) or type(error).__name__
