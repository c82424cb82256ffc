"""Corpora whose licence allows it, from their publishers to disk: fetched, verified, unpacked, and
marked as done last.

Everything on the way lies in `<root>/.downloads`, so that a run that was interrupted at any moment
goes on. Runs only on request: `data.download=true` or `hubert-pretrain download-corpus`.
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
from hubert_pretrain.corpora.download.http import byte_progress, fetch_file
from hubert_pretrain.errors import ConfigError, DataError
from hubert_pretrain.files import checksums, publish, read_json, write_json

DESK = ".downloads"
_UNPACKED_RATIO = 1.05
"""Bytes on disk per byte of an archive: FLAC and Ogg do not compress."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Archive:
    """A file that a corpus is published as. All paths are below the corpus's root."""

    url: str
    brings: str
    """A file or folder that is there once it is unpacked; what is there already is not fetched."""
    into: str = ""
    """The folder to unpack it in."""
    checksum: str = ""
    """`md5:...` or `sha256:...` as its publisher or torchaudio has it; empty when none is known:
    the file's own is recorded, unverified.
    """

    @property
    def name(self) -> str:
        """The file's name."""
        return Path(urlsplit(self.url).path).name

    @property
    def is_packed(self) -> bool:
        """Whether it is to be unpacked, and not the wanted file itself."""
        return self.name.endswith(unpack.SUFFIXES)


def download(source: Any, mirror: str | None = None) -> None:
    """Fetches what a corpus source lacks. Raises ConfigError when the corpus cannot be had this
    way; the message says where it is.
    """
    method = getattr(source, "download", None)
    if method is None:
        obtain = getattr(source, "OBTAIN", "") or "bring it yourself"
        raise ConfigError(
            f"data.download=true: {type(source).__name__} has no download: {obtain}; then set data.root, data.download=false"
        )
    method(mirror)


def fetch_all(
    wanted: Sequence[Archive],
    root: Path,
    mirror: str | None = None,
    *,
    keep: bool = False,
    say: Callable[[str], None] = print,
) -> None:
    """Brings every archive below `root` that is not there yet. Interrupted at any moment, the next
    call goes on.

    Args:
        wanted: the archives.
        root: folder of the corpus; made if need be.
        mirror: URL of a folder that holds the same files; None: each from its publisher.
        keep: whether archives stay in `<root>/.downloads` after unpacking.
        say: takes a line for each archive.

    Raises:
        DataError: see `fetch_file` and `unpack`; a checksum differs; another process is at it.
    """
    missing = [archive for archive in wanted if not is_there(archive, root)]
    if not missing:
        return
    (root / DESK).mkdir(parents=True, exist_ok=True)
    with _alone(root / DESK):
        for archive in missing:
            facts = _Delivery(archive, root, mirror).run(keep)
            how = (
                "verified"
                if facts["verified"]
                else f"unverified, no checksum is published; sha256 {facts['sha256']}"
            )
            say(f"{archive.name}: {facts['bytes'] / 1e6:.1f} MB, {how}, {root / archive.brings}")


def is_there(archive: Archive, root: Path) -> bool:
    """Whether what an archive brings lies below the root, from here or from elsewhere, and is not
    half moved.
    """
    mark = read_json(_mark(archive, root))
    return (root / archive.brings).exists() and (mark is None or bool(mark["placed"]))


def _mark(archive: Archive, root: Path) -> Path:
    return root / DESK / f"{archive.name}.json"


class _Delivery:
    """One archive on its way: fetched -> verified -> unpacked aside -> moved to its place."""

    def __init__(self, archive: Archive, root: Path, mirror: str | None) -> None:
        self.archive = archive
        self.root = root
        self.url = f"{mirror.rstrip('/')}/{archive.name}" if mirror else archive.url
        self.file = root / DESK / archive.name
        self.unpacking = root / DESK / f"{archive.name}.unpacking"
        self.unpacked = root / DESK / f"{archive.name}.unpacked"
        self.mark = _mark(archive, root)

    def run(self, keep: bool) -> dict[str, Any]:
        """Returns the facts of the file: url, bytes, sha256, verified."""
        facts = read_json(self.mark)
        if facts is None or facts["placed"] or not self.unpacked.exists():
            facts = self._fetch()
            self._unpack()
            write_json(self.mark, facts | {"placed": False})
        _move_in(
            self.unpacked,
            self.root / self.archive.into
            if self.archive.is_packed
            else (self.root / self.archive.brings).parent,
        )
        if not (self.root / self.archive.brings).exists():
            self.mark.unlink()
            raise DataError(
                f"{self.file}: does not bring {self.archive.brings}, which was expected; is {self.url} the right file?"
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
        with byte_progress(self.file.stat().st_size, f"checking {self.file.name}") as advance:
            sums = checksums([self.file], ["md5", "sha256"], advance)
        if expected and sums[kind] != expected:
            self.file.unlink()
            raise DataError(
                f"{self.url}: its {kind} is {sums[kind]}, expected {expected}; what was fetched is removed, run again or give data.mirror"
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
            shutil.copyfile(self.file, self.unpacking / Path(self.archive.brings).name)
        publish(self.unpacking, self.unpacked, sync=False)


def _move_in(source: Path, target: Path) -> None:
    """Moves what a folder holds into another, merging folders that are in both; the source is gone
    when all has moved.
    """
    target.mkdir(parents=True, exist_ok=True)
    for path in sorted(source.iterdir()):
        if path.is_dir() and (target / path.name).is_dir():
            _move_in(path, target / path.name)
        else:
            publish(path, target / path.name, sync=False)
    source.rmdir()


@contextmanager
def _alone(desk: Path) -> Iterator[None]:
    """Holds the folder for this process; the kernel lets go of it when the process dies."""
    with open(desk / "lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DataError(
                f"{desk}: another process is downloading there; wait for it or end it"
            ) from None
        yield
