"""Files: atomic writing, flushing to disk, JSON, SHA-256, sizes, and errors for a full disk.

Every file that must not be seen half written is written through `replacing`, and every file is
hashed by `sha256`; no other module renames a file into its place or hashes one.
"""

from __future__ import annotations

import errno
import glob
import hashlib
import json
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from hubert_pretrain.errors import ArtefactError, HubertPretrainError

_HASH_BLOCK_BYTES = 1 << 20


# -- atomic writing
# -------------------------------------------------------------------------------------------------


@contextmanager
def replacing(path: Path, *, sync: bool = True) -> Iterator[Path]:
    """Replaces the file at `path` atomically: readers see the old file or the new one, whole.

    Gives the path of a temporary file in the same folder to write to. When the block ends it is
    flushed to disk and takes the name `path`; when the block raises it is removed, and what lay at
    `path` is intact. The file gets the permissions of the user's umask even if a library made it
    private (safetensors does).

    Args:
        path: the file to write; its folder is made if need be.
        sync: flush the file and the name to disk. False where the caller syncs the whole folder
            later, or where the content can be made again.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.touch()
        mode = temporary.stat().st_mode & 0o777
        yield temporary
        if temporary.stat().st_mode & 0o777 != mode:
            temporary.chmod(mode)
        publish(temporary, path, sync=sync)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def replacing_together(path: Path) -> Iterator[Path]:
    """As `replacing`, for a library that may put further files beside the one that it writes.

    Gives a path with the final name in a temporary folder. In the end all files of that folder move
    to the folder of `path`, the file at `path` last.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    folder = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    folder.mkdir()
    try:
        yield folder / path.name
        for written in sorted(folder.iterdir(), key=lambda file: file.name == path.name):
            publish(written, path.parent / written.name)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def publish(temporary: Path, path: Path, *, sync: bool = True) -> None:
    """Gives a finished file or folder its final name on the same disk: flush all of it, rename,
    flush the folder that lists the name.
    """
    if sync:
        sync_tree(temporary)
    os.replace(temporary, path)
    if sync:
        sync_folder(path.parent)


def remove_temporaries(path: Path) -> None:
    """Removes what killed processes left of their `replacing`: of the file at `path`, or of all
    files below it when it is a folder. No other process may be writing there.
    """
    if path.is_dir():
        left = list(path.rglob(".*.tmp"))
    else:
        left = list(path.parent.glob(f".{glob.escape(path.name)}.*.tmp"))
    for temporary in left:
        if temporary.is_dir():
            shutil.rmtree(temporary)
        else:
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str, *, sync: bool = True) -> None:
    """Writes a UTF-8 text file atomically (see `replacing`)."""
    with replacing(path, sync=sync) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_bytes(path: Path, content: bytes, *, sync: bool = True) -> None:
    """Writes a binary file atomically (see `replacing`)."""
    with replacing(path, sync=sync) as temporary:
        temporary.write_bytes(content)


def write_json(path: Path, value: Any) -> None:
    """Writes indented JSON atomically (see `replacing`). NaN and infinity, which JSON has not,
    become null.
    """
    text = json.dumps(_finite(value), indent=2, ensure_ascii=False, allow_nan=False)
    write_text(path, text + "\n")


def _finite(value: Any) -> Any:
    """The value with None in place of every number that is not finite."""
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_json(path: Path, *, max_bytes: int | None = None) -> Any | None:
    """The content of a JSON file, or None when there is none or it is damaged.

    Raises ArtefactError for one of more than `max_bytes`, without reading it.
    """
    try:
        if max_bytes is not None and (size := path.stat().st_size) > max_bytes:
            raise ArtefactError(
                f"{path}: has {human_bytes(size)}, "
                f"but at most {human_bytes(max_bytes)} were expected"
            )
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


_LFS_POINTER = b"version https://git-lfs.github.com/spec/"


def lfs_advice(start: bytes) -> str:
    """Advice when a file begins like the pointer that git leaves in place of a large file while
    git-lfs is not installed; empty for any other.
    """
    if not start.startswith(_LFS_POINTER):
        return ""
    return (
        "is a pointer of git-lfs in place of the file, which was not downloaded; install git-lfs "
        "and run `git lfs pull` in that folder"
    )


def refuse_lfs_pointer(path: Path) -> None:
    """Raises ArtefactError when a file is a pointer of git-lfs."""
    try:
        with open(path, "rb") as file:
            advice = lfs_advice(file.read(len(_LFS_POINTER)))
    except OSError:
        return
    if advice:
        raise ArtefactError(f"{path}: {advice}")


# -- flushing to disk
# -------------------------------------------------------------------------------------------------


def sync_tree(path: Path) -> None:
    """Flushes a file, or every file below a folder and the lists of names, to the disk."""
    if path.is_symlink():
        return
    if not path.is_dir():
        with open(path, "rb") as file:
            os.fsync(file.fileno())
        return
    for entry in path.iterdir():
        if entry.is_dir() or entry.is_file():
            sync_tree(entry)
    sync_folder(path)


def sync_folder(folder: Path) -> None:
    """Flushes a folder's list of names to the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# -- a full disk
# -------------------------------------------------------------------------------------------------


@contextmanager
def disk_room(
    path: Path, size: int | None = None, *, fix: str = "free some and run the stage again"
) -> Iterator[None]:
    """Turns the system's error for a full disk (or an exhausted quota) into one with its fix.

    Args:
        path: what is being written, for the message.
        size: bytes that are written inside, when known.
        fix: what to do about it.

    Raises:
        HubertPretrainError: the disk became full inside.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        found = "is full" if size is None else f"has no room for {size} bytes"
        raise HubertPretrainError(f"{path}: the disk {found}; {fix}") from error


# -- hashes and sizes
# -------------------------------------------------------------------------------------------------


def sha256(*paths: Path) -> str:
    """SHA-256 of a file, or of the content of several files one after another, in hexadecimal."""
    return checksums(paths, ["sha256"])["sha256"]


def checksums(
    paths: Sequence[Path], kinds: Sequence[str], advance: Callable[[int], None] | None = None
) -> dict[str, str]:
    """Hashes of the content of files one after another, from one reading.

    Args:
        paths: the files.
        kinds: names that `hashlib` knows, e.g. `sha256` and `md5`.
        advance: is called with the number of bytes read so far.

    Returns:
        Kind -> digest in hexadecimal.
    """
    digests = {kind: hashlib.new(kind, usedforsecurity=False) for kind in kinds}
    done = 0
    for path in paths:
        with open(path, "rb") as file:
            while block := file.read(_HASH_BLOCK_BYTES):
                for digest in digests.values():
                    digest.update(block)
                done += len(block)
                if advance is not None:
                    advance(done)
    return {kind: digest.hexdigest() for kind, digest in digests.items()}


class HashedFile:
    """A binary file that is written from its beginning to its end, with the SHA-256 of what was
    written: it need not be read again for its hash.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._digest = hashlib.sha256()

    def write(self, data: Any) -> int:
        """Write bytes, and hash them."""
        self._digest.update(data)
        return self._file.write(data)

    def flush(self) -> None:
        """Hand everything over to the system."""
        self._file.flush()

    def tell(self) -> int:
        """Bytes written so far."""
        return self._file.tell()

    def fileno(self) -> int:
        """The file's descriptor."""
        return self._file.fileno()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    @property
    def sha256(self) -> str:
        """In hexadecimal, of everything written so far."""
        return self._digest.hexdigest()


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


def empty_folder(folder: Path, keep: Sequence[str] = ()) -> None:
    """Removes everything inside a folder but what matches a pattern of `keep`, e.g. `*/speed`."""
    spared = [path for pattern in keep for path in folder.glob(pattern)]
    for path in folder.iterdir():
        if path in spared:
            continue
        inside = [each.relative_to(path) for each in spared if path in each.parents]
        if inside:
            empty_folder(path, [glob.escape(str(each)) for each in inside])
        elif path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def refuse_other_content(folder: Path, own: Sequence[str]) -> None:
    """Raises ArtefactError when a folder that is about to be written holds anything but files of
    these names (patterns). Hidden files, such as unfinished ones, do not count.
    """
    if folder.is_file():
        raise ArtefactError(f"{folder}: is a file, expected a folder to write; name another")
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if not path.name.startswith(".") and not any(path.match(name) for name in own):
            raise ArtefactError(
                f"{folder}: holds {path.name} of something else, which would be lost or mixed up; "
                "name an empty folder or a new one"
            )
