"""Downloads of corpora whose licence allows it: fetch, verify, unpack, and mark as done last.

Unfinished work lies in `<root>/.downloads`, so that an interrupted run continues. Nothing is
downloaded unless asked for: `data.download=true` or `hubert-pretrain download-corpus`.
"""

from __future__ import annotations

import fcntl
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from hubert_pretrain.corpora.download import unpack
from hubert_pretrain.corpora.download.http import fetch_file
from hubert_pretrain.errors import ConfigError, DataError
from hubert_pretrain.files import checksums, publish, read_json, write_json
from hubert_pretrain.progress import progress

WORK_FOLDER = ".downloads"
_UNPACKED_RATIO = 1.05
"""Bytes on disk per byte of an archive: FLAC and Ogg do not compress."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Archive:
    """A published file of a corpus. All paths are below the corpus's root."""

    url: str
    provides: str
    """A file or folder that exists after unpacking; if it exists already, nothing is fetched."""
    into: str = ""
    """The folder to unpack into."""
    checksum: str = ""
    """`md5:...` or `sha256:...`, from the publisher or torchaudio; empty when none is known: then
    the sha256 is recorded, unverified.
    """

    @property
    def name(self) -> str:
        """The file's name."""
        return Path(urlsplit(self.url).path).name

    @property
    def is_packed(self) -> bool:
        """True for a file that must be unpacked."""
        return self.name.endswith(unpack.SUFFIXES)


def download(source: Any, mirror: str | None = None) -> None:
    """Fetches the missing files of a corpus source. Raises ConfigError for a corpus without a
    download; the message says where it is available.
    """
    method = getattr(source, "download", None)
    if method is None:
        available_from = getattr(source, "AVAILABLE_FROM", "") or "bring it yourself"
        raise ConfigError(
            f"data.download=true: {type(source).__name__} has no download: {available_from}; "
            "then set data.root, data.download=false"
        )
    method(mirror)


def fetch_all(
    archives: Sequence[Archive],
    root: Path,
    mirror: str | None = None,
    *,
    keep: bool = False,
    report: Callable[[str], None] = print,
) -> None:
    """Fetches and unpacks the archives whose content is missing. After an interruption at any
    moment, the next call continues.

    Args:
        archives: the archives.
        root: folder of the corpus; created if missing.
        mirror: URL of a folder with the same files; None: each from its publisher.
        keep: keep the archives in `<root>/.downloads` after unpacking.
        report: receives one line per archive.

    Raises:
        DataError: see `fetch_file` and `unpack`; a wrong checksum; another process downloads here.
    """
    missing = [archive for archive in archives if not is_present(archive, root)]
    if not missing:
        return
    (root / WORK_FOLDER).mkdir(parents=True, exist_ok=True)
    with _exclusive(root / WORK_FOLDER):
        for archive in missing:
            facts = _ArchiveDownload(archive, root, mirror).run(keep)
            check = (
                "verified"
                if facts["verified"]
                else f"unverified, no checksum is published; sha256 {facts['sha256']}"
            )
            size = facts["bytes"] / 1e6
            report(f"{archive.name}: {size:.1f} MB, {check}, {root / archive.provides}")


def is_present(archive: Archive, root: Path) -> bool:
    """True if the content of an archive is below the root, downloaded or not, and completely
    moved.
    """
    mark = read_json(_mark(archive, root))
    return (root / archive.provides).exists() and (mark is None or bool(mark["placed"]))


def _mark(archive: Archive, root: Path) -> Path:
    """The file with the facts of a download."""
    return root / WORK_FOLDER / f"{archive.name}.json"


class _ArchiveDownload:
    """Steps of one archive: fetch, verify, unpack into the work folder, move to its place."""

    def __init__(self, archive: Archive, root: Path, mirror: str | None) -> None:
        self.archive = archive
        self.root = root
        self.url = f"{mirror.rstrip('/')}/{archive.name}" if mirror else archive.url
        self.file = root / WORK_FOLDER / archive.name
        self.unpacking = root / WORK_FOLDER / f"{archive.name}.unpacking"
        self.unpacked = root / WORK_FOLDER / f"{archive.name}.unpacked"
        self.mark = _mark(archive, root)

    def run(self, keep: bool) -> dict[str, Any]:
        """Does the remaining steps. Returns the facts of the file: url, bytes, sha256, verified."""
        facts = read_json(self.mark)
        if facts is None or facts["placed"] or not self.unpacked.exists():
            facts = self._fetch()
            self._unpack()
            write_json(self.mark, facts | {"placed": False})
        content = self.root / self.archive.provides
        _merge_into(
            self.unpacked,
            self.root / self.archive.into if self.archive.is_packed else content.parent,
        )
        if not content.exists():
            self.mark.unlink()
            raise DataError(
                f"{self.file}: does not contain {self.archive.provides}, which was expected; "
                f"is {self.url} the right file?"
            )
        write_json(self.mark, facts | {"placed": True})
        if not keep:
            self.file.unlink(missing_ok=True)
        return dict(facts)

    def _fetch(self) -> dict[str, Any]:
        if not self.file.is_file():
            fetch_file(
                self.url,
                self.file,
                unpacked_ratio=_UNPACKED_RATIO if self.archive.is_packed else 0.0,
            )
        kind, _, expected = self.archive.checksum.partition(":")
        size = self.file.stat().st_size
        with progress(size, f"checking {self.file.name}", in_bytes=True) as advance:
            sums = checksums([self.file], ["md5", "sha256"], advance)
        if expected and sums[kind] != expected:
            self.file.unlink()
            raise DataError(
                f"{self.url}: its {kind} is {sums[kind]}, expected {expected}; "
                "the file is removed, run again or give data.mirror"
            )
        return {
            "url": self.url,
            "bytes": self.file.stat().st_size,
            "sha256": sums["sha256"],
            "verified": bool(expected),
        }

    def _unpack(self) -> None:
        for left in (self.unpacking, self.unpacked):
            shutil.rmtree(left, ignore_errors=True)
        self.unpacking.mkdir()
        if self.archive.is_packed:
            unpack.unpack(self.file, self.unpacking)
        else:
            shutil.copyfile(self.file, self.unpacking / Path(self.archive.provides).name)
        publish(self.unpacking, self.unpacked, sync=False)


def _merge_into(source: Path, target: Path) -> None:
    """Moves the content of a folder into another, merging folders that are in both. The source is
    removed last.
    """
    target.mkdir(parents=True, exist_ok=True)
    for path in sorted(source.iterdir()):
        if path.is_dir() and (target / path.name).is_dir():
            _merge_into(path, target / path.name)
        else:
            publish(path, target / path.name, sync=False)
    source.rmdir()


@contextmanager
def _exclusive(folder: Path) -> Iterator[None]:
    """Locks the work folder for this process; the kernel releases the lock when the process
    ends.
    """
    with open(folder / "lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DataError(
                f"{folder}: another process is downloading there; wait for it or end it"
            ) from None
        yield
