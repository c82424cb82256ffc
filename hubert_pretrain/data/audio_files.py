"""Audio files in folders, by their suffixes; every other file is counted by its kind, so that none
is passed over in silence.
"""

from __future__ import annotations

import os
import re
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

from hubert_pretrain.data import ffmpeg
from hubert_pretrain.errors import DataError

SUFFIXES = (
    ".wav",
    ".flac",
    ".ogg",
    ".opus",
    ".mp3",
    ".oga",
    ".aif",
    ".aiff",
    ".aifc",
    ".au",
    ".snd",
    ".caf",
    ".sph",
    ".w64",
    ".rf64",
)
"""Suffixes of audio files that libsndfile decodes: the only list of them, also for shards."""
EVERY_SUFFIX = SUFFIXES + ffmpeg.SUFFIXES
"""Those, and the ones that FFmpeg decodes."""
USUAL = ", ".join(SUFFIXES[:5])
"""The most frequent of them, for messages."""

_SHORT_SUFFIX = re.compile(r"\.[a-z0-9_+~-]{1,12}")
_MOST_KINDS = 1000
"""Further kinds count together: a name such as `a.00017` has no kind."""


@dataclass
class PassedOver:
    """Files below a folder that were not taken, by kind, and folders that could not be listed."""

    kinds: Counter[str] = field(default_factory=Counter)
    """Kind, such as `.txt`, `hidden` or `no suffix` -> number of files (and hidden folders)."""
    folders: list[str] = field(default_factory=list)
    """Folders that cannot be read, each with the reason."""

    def __iadd__(self, other: PassedOver) -> PassedOver:
        self.kinds.update(other.kinds)
        self.folders += other.folders
        return self

    def add(self, name: str) -> None:
        """Counts a file by its name."""
        kind = _kind_of(name)
        known = kind in self.kinds or len(self.kinds) < _MOST_KINDS
        self.kinds[kind if known else "others"] += 1

    def add_folder(self, error: OSError) -> None:
        """Records a folder that cannot be listed. For `onerror` of `os.walk`."""
        self.folders.append(f"{error.filename}: {error.strerror}")

    def card(self) -> dict[str, Any]:
        """Plain JSON values for the corpus card."""
        return {"files": dict(self.kinds.most_common()), "unreadable_folders": self.folders}


def is_loss(card: dict[str, Any]) -> bool:
    """True when audio is among what was passed over, or may be."""
    undecoded = set(card.get("files", {})) & set(ffmpeg.SUFFIXES)
    return bool(undecoded or card.get("unreadable_folders"))


def describe(card: dict[str, Any]) -> list[str]:
    """The lines of `PassedOver.card` for the terminal; none when nothing was passed over."""
    lines = []
    files: dict[str, int] = card.get("files", {})
    if files:
        kinds = ", ".join(f"{kind}: {count}" for kind, count in files.items())
        lines.append(f"{sum(files.values())} files are not taken ({kinds})")
    undecoded = sum(count for kind, count in files.items() if kind in ffmpeg.SUFFIXES)
    if undecoded:
        lines.append(f"{undecoded} of them are audio, {ffmpeg.INSTALL}")
    folders = card.get("unreadable_folders", [])
    if folders:
        lines.append(
            f"{len(folders)} folders cannot be read, the first: {folders[0]}; "
            "their files are missing: allow reading (chmod -R +rX) and add redo=prepare"
        )
    return lines


def is_audio(name: str) -> bool:
    """True for the name of an audio file that is not hidden (as the `._x.wav` of macOS) and that
    this installation decodes.
    """
    decoded = EVERY_SUFFIX if ffmpeg.is_installed() else SUFFIXES
    return name.lower().endswith(decoded) and not name.startswith(".")


def with_faults(paths: Iterable[Path]) -> Iterator[tuple[Path, str]]:
    """Each of some audio files, folder by folder, and a fault or "": another file in its folder has
    its name with a suffix that stands before its own in the list of suffixes.
    """
    for _, group in groupby(paths, key=os.path.dirname):
        members = list(group)
        stems = {os.path.splitext(path)[0] for path in members}
        if len(stems) == len(members):
            yield from ((path, "") for path in members)
            continue
        first: dict[str, Path] = {}
        for path in sorted(members, key=lambda path: EVERY_SUFFIX.index(path.suffix.lower())):
            first.setdefault(path.stem, path)
        for path in members:
            other = first[path.stem]
            fault = f"has the name of {other} in another format; remove one of the two"
            yield path, "" if other is path else fault


def all_audio_below(root: Path) -> list[Path]:
    """The audio files below a folder, in order; a warning tells of audio that is not among them."""
    passed_over = PassedOver()
    found = sorted(audio_below(root, passed_over))
    if is_loss(passed_over.card()):
        warnings.warn(f"{root}: {'; '.join(describe(passed_over.card()))}", stacklevel=2)
    return found


def audio_below(root: Path, passed_over: PassedOver) -> Iterator[Path]:
    """Audio files below a folder, folder by folder in order, without hidden files and folders
    (unfinished downloads lie in a hidden folder). Links to folders are followed, once each.

    Args:
        root: the folder.
        passed_over: takes the other files, and folders that cannot be read.
    """
    seen: set[tuple[int, int]] = set()
    for folder, below, names in os.walk(root, onerror=passed_over.add_folder, followlinks=True):
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in seen:
            below.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        # Sorted, so that of two links to one folder the same is followed on every machine.
        visible = sorted(name for name in below if not name.startswith("."))
        hidden = set(below).difference(visible)
        below[:] = visible
        found = sorted(filter(is_audio, names))
        for name in hidden.union(names).difference(found):
            passed_over.add(name)
        yield from (Path(folder, name) for name in found)


def audio_in(folder: Path) -> list[Path]:
    """The audio files directly in a folder, in order, without hidden ones; a warning tells of those
    that only FFmpeg decodes, where it is not installed. Links, pipes and devices count: reading
    tells what is wrong with them.
    """
    files = [entry for entry in entries_of(folder) if not entry.is_dir()]
    lost = [entry.name for entry in files if entry.name.lower().endswith(ffmpeg.SUFFIXES)]
    if lost and not ffmpeg.is_installed():
        warnings.warn(f"{folder}: {len(lost)} files are audio, {ffmpeg.INSTALL}", stacklevel=2)
    return [Path(entry.path) for entry in files if is_audio(entry.name)]


def entries_of(folder: Path) -> list[os.DirEntry[str]]:
    """The entries directly in a folder, in order of names. Raises DataError when it cannot be
    read.
    """
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise unreadable(error) from error


def files_below(folder: Path) -> Iterator[Path]:
    """Every file below a folder, in order. Raises DataError for a folder that cannot be read."""
    for entry in entries_of(folder):
        if entry.is_dir(follow_symlinks=False):
            yield from files_below(Path(entry.path))
        else:
            yield Path(entry.path)


def unreadable(error: OSError) -> DataError:
    """The error for a folder that cannot be listed."""
    return DataError(
        f"{error.filename}: cannot be read ({error.strerror}); allow it (chmod -R +rX), or move it "
        "away"
    )


def _kind_of(name: str) -> str:
    if name.startswith("."):
        return "hidden"
    suffix = os.path.splitext(name)[1].lower()
    if not suffix:
        return "no suffix"
    return suffix if _SHORT_SUFFIX.fullmatch(suffix) else "others"
