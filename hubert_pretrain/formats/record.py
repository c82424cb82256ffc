"""What all formats of manifests have in common: how one is read, and what a row of it becomes."""

from __future__ import annotations

import functools
import os
import re
from array import array
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from hubert_pretrain.data.audio import one_line, resampled_length
from hubert_pretrain.data.source import SourceUtterance, refuse_other_length
from hubert_pretrain.data.storage import ByteRange, open_bytes
from hubert_pretrain.errors import DataError
from hubert_pretrain.frames import SAMPLE_RATE

Record = tuple[str, SourceUtterance]
"""Where a row stands ("train.tsv: line 3"), and what it utterances."""

SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "valid": "valid",
    "validation": "valid",
    "val": "valid",
    "dev": "valid",
    "test": "test",
    "testing": "test",
    "eval": "test",
}
"""Names of folders and files, or values of a split column -> split."""


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What a manifest does not say itself."""

    root: Path | None = None
    """What relative paths are relative to; None: what the format says, or the folder of the
    manifest.
    """
    split: str = "train"
    """Of the rows that name none."""
    columns: Mapping[str, str] = field(default_factory=dict)
    """Our name -> the manifest's name of a column."""
    rate: int = SAMPLE_RATE
    """Samples per second in which a manifest counts that does not say."""
    ids: str = "path"
    """Of rows without an id: "path", relative and without its suffix, or "name", the file's without
    its suffix.
    """
    folder: Path | None = None
    """Where audio that a manifest holds inside itself is written; None: where it is not wanted."""

    def locate(self, path: str, home: Path) -> str:
        """The absolute path, or URL, of what a manifest in the folder `home` calls `path`; without
        `..`, so that a file has one path.
        """
        if "://" in path:
            return path
        whole = os.path.join(_absolute(self.root or home), os.path.expanduser(path))
        return os.path.normpath(whole) if "/." in whole or "//" in whole else whole

    def id_of(self, path: str) -> str:
        """The id of a row that has none."""
        bare = os.path.splitext(path)[0]
        if self.ids == "name":
            return os.path.basename(bare)
        while bare.startswith("./"):
            bare = bare.removeprefix("./")
        return bare


@functools.lru_cache(maxsize=16)
def _absolute(folder: Path) -> str:
    return str(folder.expanduser().absolute())


def split_named(name: str) -> str:
    """The split that a value of a split column means: "dev" is valid; others stay as they are."""
    return SPLIT_NAMES.get(name.lower(), name)


def split_in(name: str) -> str | None:
    """The split that the name of a file or folder tells: "cuts_dev-clean.jsonl.gz" is valid; None
    when it tells none.
    """
    words = re.split(r"[^a-z]+", name.lower())
    return next((SPLIT_NAMES[word] for word in words if word in SPLIT_NAMES), None)


def without_duplicates(read: Callable[[], Iterator[Record]]) -> Iterator[SourceUtterance]:
    """The utterances of all records; after the last, DataError when two have one id, naming both
    places.

    Eight bytes are kept for each row, a hash of its id. Only if two hashes agree is everything read
    again, to compare ids.
    """
    hashes = array("q")
    for _, utterance in read():
        hashes.append(hash(utterance.id))
        yield utterance
    ordered = np.sort(np.frombuffer(hashes, dtype=np.int64))
    repeated = set(ordered[1:][ordered[1:] == ordered[:-1]].tolist())
    if not repeated:
        return
    places: dict[str, str] = {}
    for place, utterance in read():
        if hash(utterance.id) not in repeated:
            continue
        if (first := places.setdefault(utterance.id, place)) is not place:
            raise DataError(
                f"{place}: repeats utterance {utterance.id!r} of {first}; ids must be unique, rename one or remove the line"
            )


@dataclass(frozen=True, slots=True)
class Header:
    """Length and rate of the audio file that a utterance lies in."""

    num_samples: int
    """At the file's own rate."""
    rate: int

    @property
    def resampled(self) -> int:
        """Samples at 16 kHz."""
        return resampled_length(self.num_samples, self.rate)

    def is_whole(self, utterance: SourceUtterance) -> bool:
        """Whether the utterance is about the whole file."""
        return utterance.start == 0 and utterance.num_samples in (None, self.resampled)

    def length_of(self, utterance: SourceUtterance) -> int:
        """Samples of the utterance at 16 kHz. Raises DataError when it reaches beyond the file."""
        length = (
            self.resampled - utterance.start
            if utterance.num_samples is None
            else utterance.num_samples
        )
        if not 0 < length <= self.resampled - utterance.start:
            raise DataError(
                f"{utterance.path}: has {self.resampled} samples at 16 kHz, utterance {utterance.id!r} utterances {length} from {utterance.start} on; "
                "mend the manifest or restore the audio"
            )
        return length


def header_of(utterance: SourceUtterance) -> Header:
    """Raises DataError when the audio is missing, not audio, or not as long as its list states."""
    header = read_header(utterance)
    refuse_other_length(utterance, header.resampled)
    return header


def read_header(utterance: SourceUtterance) -> Header:
    """Raises DataError when the audio is missing or not audio."""
    import soundfile

    try:
        with soundfile.SoundFile(_part(utterance).file()) as file:
            return Header(file.frames, file.samplerate)
    except soundfile.SoundFileError as error:
        raise DataError(
            f"{utterance.path}: utterance {utterance.id!r} is not readable as audio ({one_line(error)}); replace the file"
        ) from error


def stored_bytes(utterance: SourceUtterance) -> bytes:
    """The audio file of a utterance, byte for byte, be it a file, a member of a shard, or behind a
    URL.
    """
    part = _part(utterance)
    return part.read(0, part.size)


def _part(utterance: SourceUtterance) -> ByteRange:
    return open_bytes(str(utterance.path), utterance.offset, utterance.num_bytes)
