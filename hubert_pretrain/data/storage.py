"""Bytes of audio files: a file on disk, a byte range of a shard, or either of them behind a URL
with a bounded cache.

Any URL that fsspec knows is read (s3://, gs://, http://, ...). Only the bytes of the audio file
that was asked for are fetched, never a whole shard, so that one epoch fetches every byte once; of a
long recording only the parts that are read. The cache holds as many bytes as fit.
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
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from hubert_pretrain.errors import DataError
from hubert_pretrain.files import write_bytes

Result = TypeVar("Result")

ATTEMPTS = 4
"""Tries of a fetch before it is an error; the waits between them are 0.5, 1 and 2 seconds."""

_WHOLE = 1 << 20
"""Audio files of up to this many bytes are fetched whole, with one request."""
_PART = 1 << 18
"""Bytes fetched at a time of a longer one; twice as many each time when they follow each other."""
_MOST_AT_ONCE = 1 << 23
_PARTS_KEPT = 4

_OPEN_SHARDS = 64
_LEFT_BY_EVICTION = 0.9
"""Share of the cache that an eviction leaves: it looks at all entries, so it should be rare."""
_ABANDONED_SECONDS = 3600.0
"""Temporary files of this age were left by killed processes."""
_MAGIC = b"hpc1"
_TRAILER = len(_MAGIC) + 4 + 8


@dataclass(frozen=True)
class Cache:
    """Cache of fetched bytes on a local disk: at most `max_bytes`, least recently used first out.

    Safe between processes. Every entry ends with its length and checksum, so an incomplete entry
    (after a kill or a full disk) is noticed and fetched again.
    """

    folder: Path
    max_bytes: int

    @staticmethod
    def of(folder: str | Path | None, gigabytes: float) -> Cache | None:
        """The cache in `folder`; None without a folder."""
        if folder is None:
            return None
        return Cache(Path(folder).expanduser().absolute(), int(gigabytes * 1e9))

    def get(self, name: str, fetch: Callable[[], bytes]) -> bytes:
        """The bytes called `name`: from the cache, or from `fetch`, whose result is then stored."""
        key = hashlib.blake2b(name.encode(), digest_size=16).hexdigest()
        path = self.folder / key[:2] / key
        data = _read_entry(path)
        if data is None:
            data = fetch()
            if len(data) + _TRAILER <= self.max_bytes:
                self._store(path, data)
        return data

    def _store(self, path: Path, data: bytes) -> None:
        checksum = zlib.crc32(data).to_bytes(4, "little")
        trailer = _MAGIC + checksum + len(data).to_bytes(8, "little")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with self._room(len(data) + _TRAILER):
                write_bytes(path, data + trailer, sync=False)
        except OSError as error:
            # Training goes on without a cache, only slower.
            warnings.warn(
                f"{self.folder}: the cache cannot be written ({error}); "
                "free space or set data.cache_dir",
                stacklevel=2,
            )

    @contextlib.contextmanager
    def _room(self, size: int) -> Iterator[None]:
        """Adds `size` to the ledger of the cache, and evicts entries when the sum is above the
        limit. One process at a time, until the entry is written: an eviction counts files.
        """
        with open(self.folder / ".bytes", "a+b") as ledger:
            fcntl.flock(ledger, fcntl.LOCK_EX)
            ledger.seek(0)
            known = ledger.read()
            used = int(known) if known.isdigit() else self._evict(self.max_bytes)
            if used + size > self.max_bytes:
                used = self._evict(max(0, int(self.max_bytes * _LEFT_BY_EVICTION) - size))
            ledger.truncate(0)
            ledger.write(b"%d" % (used + size))
            yield

    def _evict(self, limit: int) -> int:
        """Removes the least recently used entries, and all abandoned temporary files, until at most
        `limit` bytes are left. Returns the bytes that are left.
        """
        entries = []  # (time of last use, size, path); 0 for an abandoned one
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
    """The place of an audio file: `path`, or the shard `path` from byte `offset` on."""

    path: str
    offset: int = -1
    num_bytes: int = -1


class ByteRange:
    """The bytes of one audio file, on disk, in a shard or in memory. Reading is by position, so a
    byte range has no state and may be shared.
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
        """The bytes [start, start + length), fewer where the range ends before."""
        return self._read(start, max(0, min(length, self.size - start)))

    def part(self, start: int, size: int) -> ByteRange:
        """The bytes [start, start + size) as a range of their own."""
        return ByteRange(size, lambda first, length: self.read(start + first, length))

    def patched(self, position: int, data: bytes) -> ByteRange:
        """The range with `data` in place of its bytes from `position` on."""

        def read(start: int, length: int) -> bytes:
            found = bytearray(self.read(start, length))
            first = max(start, position)
            stop = min(start + len(found), position + len(data))
            if first < stop:
                found[first - start : stop - start] = data[first - position : stop - position]
            return bytes(found)

        return ByteRange(self.size, read)

    def file(self) -> str | ByteRangeFile:
        """The range as a file for libraries: its path where it is a whole file of this machine,
        which is read faster, else a file object.
        """
        return self._path or ByteRangeFile(self)


def is_url(path: str) -> bool:
    """True for a path that fsspec opens. (`open_bytes` takes `file://` for a path on disk.)"""
    return "://" in path


def open_bytes(
    path: str, offset: int = -1, num_bytes: int = -1, cache: Cache | None = None
) -> ByteRange:
    """The audio file at `path`, or the one that lies at `offset` in the shard `path` and has
    `num_bytes`.

    Raises:
        DataError: it is missing, cannot be fetched, or is shorter than it should be.
    """
    path = path.removeprefix("file://")
    if is_url(path):
        return _remote(path, offset, num_bytes, cache)
    try:
        # At every call, which costs a microsecond: a shard may be replaced or cut while it is in
        # use.
        status = os.stat(path)
        # Before it is opened: to open a pipe waits for its other end, for ever.
        if not stat.S_ISREG(status.st_mode):
            raise DataError(
                f"{path}: no such file, it is a folder, a pipe or a device; name a file"
            )
        shard = _open(path, status.st_dev, status.st_ino) if offset >= 0 else _Descriptor(path)
    except OSError as error:
        reason = (
            "no such file"
            if isinstance(error, FileNotFoundError)
            else f"cannot be opened ({error.strerror})"
        )
        raise DataError(
            f"{path}: {reason}; restore it, or leave it out with redo=prepare"
        ) from error
    if offset < 0:
        return ByteRange(status.st_size, lambda start, length: shard.read(start, length), path)
    if offset + num_bytes > status.st_size:
        raise DataError(
            f"{path}: has {status.st_size} bytes, expected at least {offset + num_bytes}; "
            "the shard was cut, copy or write it again"
        )
    return ByteRange(num_bytes, lambda start, length: shard.read(offset + start, length))


def _remote(url: str, offset: int, num_bytes: int, cache: Cache | None) -> ByteRange:
    """The bytes of an audio file behind a URL; those of a long one are fetched as they are read."""
    if offset >= 0:
        if num_bytes <= _WHOLE:
            return ByteRange.of(fetch(url, offset, num_bytes, cache))
        parts = _Parts(url, offset, num_bytes, cache)
    else:
        get = functools.partial(_download, url, 0, _WHOLE, may_end=True)
        head = get() if cache is None else cache.get(f"{url}\n0\n{_WHOLE}", get)
        # Fewer bytes are the whole file, more that of a server without ranges.
        size = _size(url) if len(head) == _WHOLE else len(head)
        if size is None:
            return ByteRange.of(fetch(url, cache=cache))
        if size == len(head):
            return ByteRange.of(head)
        parts = _Parts(url, 0, size, cache, head)
    return ByteRange(parts.size, parts.read)


@functools.lru_cache(maxsize=1 << 16)
def _size(url: str) -> int | None:
    """Size of the file behind a URL; None where the server does not say it."""
    return _tried(url, lambda system, path: system.size(path))


class _Parts:
    """The last parts that were fetched of a file behind a URL."""

    def __init__(
        self, url: str, offset: int, size: int, cache: Cache | None, head: bytes = b""
    ) -> None:
        self.size = size
        self._url = url
        self._offset = offset
        self._cache = cache
        self._span = _PART
        self._next = len(head)
        self._parts = [(0, head)]

    def read(self, start: int, length: int) -> bytes:
        """The bytes [start, start + length)."""
        found = bytearray()
        while len(found) < length:
            position = start + len(found)
            first, data = self._part(position, length - len(found))
            found += data[position - first : position - first + length - len(found)]
        return bytes(found)

    def _part(self, position: int, length: int) -> tuple[int, bytes]:
        """A part that holds the byte at `position`: its first byte, and its bytes."""
        for first, data in self._parts:
            if first <= position < first + len(data):
                return first, data
        first = position if position == self._next else position // _PART * _PART
        self._span = min(2 * self._span, _MOST_AT_ONCE) if first == self._next else _PART
        # Up to a multiple, so that other crops of the recording find the part in the cache.
        stop = -(-(max(first + self._span, position + length)) // _PART) * _PART
        count = min(stop, self.size) - first
        data = fetch(self._url, self._offset + first, count, self._cache)
        self._next = first + count
        self._parts = [*self._parts[-_PARTS_KEPT + 1 :], (first, data)]
        return first, data


def fetch(url: str, offset: int = -1, num_bytes: int = -1, cache: Cache | None = None) -> bytes:
    """The bytes behind a URL, or `num_bytes` of them from `offset` on; from the cache where it has
    them.

    Raises:
        DataError: the fetch failed several times, or gave another number of bytes.
    """
    get = functools.partial(_download, url, offset, num_bytes)
    return get() if cache is None else cache.get(f"{url}\n{offset}\n{num_bytes}", get)


def read_json_at(path: str) -> Any | None:
    """The JSON at a path or URL; None when it is missing or no JSON. Raises DataError when a URL
    cannot be reached.
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
    """A file that is closed when the last reference to it is gone."""

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
                f"{self._path}: cannot be read at byte {start} ({error.strerror}); "
                "check the disk or the mount"
            ) from error


@functools.lru_cache(maxsize=_OPEN_SHARDS)
def _open(path: str, device: int, inode: int) -> _Descriptor:
    """A shard stays open. Reads are by position, so forked processes may share the descriptor."""
    return _Descriptor(path)


class ByteRangeFile(io.BufferedReader):
    """A `ByteRange` as a file object.

    A library in C that calls it cannot pass on an exception: the first one is kept in `failure`,
    and the library gets no more bytes.
    """

    def __init__(self, content: ByteRange) -> None:
        self._raw_file = _RawFile(content)
        super().__init__(self._raw_file, buffer_size=1 << 16)

    @property
    def failure(self) -> Exception | None:
        """The first exception of a read."""
        return self._raw_file.failure


class _RawFile(io.RawIOBase):
    def __init__(self, content: ByteRange) -> None:
        self._content = content
        self._position = 0
        self.failure: Exception | None = None

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._content.size}[
            whence
        ]
        self._position = max(0, base + offset)
        return self._position

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        try:
            data = self._content.read(self._position, len(buffer))
        except DataError as error:
            self.failure = self.failure or error
            return 0
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)


def _read_entry(path: Path) -> bytes | None:
    """The content of an entry of the cache; None when it is missing or damaged."""
    try:
        entry = path.read_bytes()
    except OSError:
        return None
    data = entry[:-_TRAILER]
    trailer = entry[-_TRAILER:]
    if trailer != _MAGIC + zlib.crc32(data).to_bytes(4, "little") + len(data).to_bytes(8, "little"):
        return None
    with contextlib.suppress(OSError):  # another process may have evicted it meanwhile
        os.utime(path)
    return data


def _download(url: str, offset: int, num_bytes: int, may_end: bool = False) -> bytes:
    """`may_end`: the file may end before, and a server without ranges may send all of it."""

    def get(system: Any, path: str) -> bytes:
        if offset < 0:
            return bytes(system.cat_file(path))
        data = bytes(system.cat_file(path, start=offset, end=offset + num_bytes))
        if len(data) != num_bytes and not may_end:
            raise OSError(
                f"{len(data)} bytes came, {num_bytes} were asked for: "
                "the file was cut or the server ignores ranges"
            )
        return data

    return _tried(url, get)


def _tried(url: str, get: Callable[[Any, str], Result]) -> Result:
    """The result of `get` with the file system of a URL and the path in it, tried several times,
    because networks fail. Raises DataError.
    """
    # Looked up at each call: fsspec keeps its file systems by process, and those of a parent do
    # not work in a fork.
    from fsspec.core import url_to_fs

    for attempt in range(ATTEMPTS):
        try:
            return get(*url_to_fs(url))
        except (FileNotFoundError, PermissionError, ImportError, ValueError) as fatal:
            raise DataError(
                f"{url}: {reason_of(fatal)}; restore it, or correct the URL or the access to it"
            ) from fatal
        except Exception as failure:
            # Every file system has errors of its own, most of them of the network.
            error = failure
        if attempt + 1 < ATTEMPTS:
            time.sleep(0.5 * 2**attempt)
    raise DataError(
        f"{url}: {reason_of(error)}, {ATTEMPTS} times; restore it, or check the connection"
    ) from error


def reason_of(error: Exception) -> str:
    """The error of a file system in one line."""
    if isinstance(error, FileNotFoundError):
        return "no such file"
    return " ".join(str(error).split()) or type(error).__name__
