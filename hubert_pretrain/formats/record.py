"""One row of a manifest, options for reading it, and the header of its audio file."""

from __future__ import annotations

import functools
import os
import re
from array import array
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from hubert_pretrain.data.audio import MIX, resampled_length
from hubert_pretrain.data.decoding import num_samples, open_stream
from hubert_pretrain.data.source import SourceUtterance, refuse_other_length
from hubert_pretrain.data.storage import ByteRange, open_bytes
from hubert_pretrain.errors import DataError
from hubert_pretrain.frames import SAMPLE_RATE

Record = tuple[str, SourceUtterance]
"""Place of a row ("train.tsv: line 3", for error messages) and its utterance."""


@dataclass(frozen=True, kw_only=True)
class ReadOptions:
    """Facts that a manifest does not state itself."""

    root: Path | None = None
    """Folder that relative paths start from; None: as the format says, or the manifest's folder."""
    split: str = "train"
    """Split of rows that name none."""
    columns: Mapping[str, str] = field(default_factory=dict)
    """Our name -> the manifest's name of a column."""
    rate: int = SAMPLE_RATE
    """Rate [Hz] of the sample counts in the manifest, where it does not say."""
    ids: str = "path"
    """Ids of rows without one: "path" (relative, without suffix), "name" (file name, without
    suffix) or "row" (its split and number, in tables of datasets; elsewhere as "path").
    """
    folder_of_ids: str = ""
    """Put in front of ids made from paths: the folder of one of several tables."""
    split_by_folders: bool = False
    """The folders in a row's path name its split, where the row does not."""
    folder: Path | None = None
    """Folder for audio that is embedded in the manifest; None: such audio is an error."""

    def locate(self, path: str, home: Path) -> str:
        """Absolute path, or URL, of `path` in a manifest of the folder `home`. `..` is resolved, so
        that a file has only one path.
        """
        if "://" in path:
            return path
        absolute = os.path.join(_absolute(self.root or home), os.path.expanduser(path))
        has_dots = "/." in absolute or "//" in absolute
        return os.path.normpath(absolute) if has_dots else absolute

    def split_of(self, path: str) -> str:
        """Split of a row that names none."""
        if self.split_by_folders:
            for folder in reversed(path.split("/")[:-1]):
                if split := split_in(folder):
                    return split
        return self.split

    def id_of(self, path: str) -> str:
        """Id of a row that has none, made from its path."""
        without_suffix = os.path.splitext(path)[0]
        if self.ids == "name":
            return os.path.basename(without_suffix)
        while without_suffix.startswith("./"):
            without_suffix = without_suffix.removeprefix("./")
        return self.folder_of_ids + without_suffix


@functools.lru_cache(maxsize=16)
def _absolute(folder: Path) -> str:
    return str(folder.expanduser().absolute())


# -- splits

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
"""Names of splits in folders, files and columns -> our split."""


def split_named(name: str) -> str:
    """Split of a value in a split column: "dev" is valid; unknown names stay as they are."""
    return SPLIT_NAMES.get(name.lower(), name)


def split_in(name: str) -> str | None:
    """Split found in the name of a file or folder: "cuts_dev-clean.jsonl.gz" is valid; None without
    one.
    """
    words = re.split(r"[^a-z]+", name.lower())
    return next((SPLIT_NAMES[word] for word in words if word in SPLIT_NAMES), None)


# -- unique ids


def without_duplicates(read: Callable[[], Iterator[Record]]) -> Iterator[SourceUtterance]:
    """The utterances of all records. After the last one, DataError when two share an id, with both
    places.

    Memory: a hash of 8 bytes per row. Only if two hashes are equal, `read` is called a second time
    to compare the ids themselves.
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
        first = places.setdefault(utterance.id, place)
        if first is not place:
            raise DataError(
                f"{place}: repeats utterance {utterance.id!r} of {first}; "
                "ids must be unique: rename one, remove the line, or set data.corpus.ids "
                "(row numbers the rows of a dataset)"
            )


# -- the audio file of a row


@dataclass(frozen=True, slots=True)
class Header:
    """Length and sample rate of an audio file."""

    num_samples: int
    """At the file's own rate."""
    rate: int

    @property
    def resampled(self) -> int:
        """Samples at 16 kHz."""
        return resampled_length(self.num_samples, self.rate)

    def is_whole(self, utterance: SourceUtterance) -> bool:
        """True if the utterance is the whole file."""
        return utterance.start == 0 and utterance.num_samples in (None, self.resampled)

    def length_of(self, utterance: SourceUtterance) -> int:
        """Samples of the utterance at 16 kHz. Raises DataError when it ends after the file."""
        rest = self.resampled - utterance.start
        length = rest if utterance.num_samples is None else utterance.num_samples
        if not 0 < length <= rest:
            raise DataError(
                f"{utterance.path}: has {self.resampled} samples at 16 kHz, utterance "
                f"{utterance.id!r} is {length} samples from {utterance.start} on; "
                "fix the manifest or restore the audio"
            )
        return length


def header_of(utterance: SourceUtterance, *, any_channel: bool = False) -> Header:
    """`read_header`, compared with the length that the manifest states (DataError). One channel of
    a file is refused, unless the caller can state it.
    """
    if utterance.channel not in (None, MIX) and not any_channel:
        raise DataError(
            f"utterance {utterance.id!r}: is channel {utterance.channel} of {utterance.path}, "
            "which this format cannot state; write a csv, tsv or jsonl"
        )
    header = read_header(utterance)
    refuse_other_length(utterance, header.resampled)
    return header


def read_header(utterance: SourceUtterance) -> Header:
    """Header of the audio file of an utterance. Raises DataError when it is missing or is not
    audio.
    """
    with open_stream(str(utterance.path), _byte_range(utterance)) as stream:
        return Header(num_samples(stream), stream.rate)


def stored_bytes(utterance: SourceUtterance) -> bytes:
    """The audio file of an utterance, byte for byte: a file, a member of a shard, or a URL."""
    part = _byte_range(utterance)
    return part.read(0, part.size)


def _byte_range(utterance: SourceUtterance) -> ByteRange:
    return open_bytes(str(utterance.path), utterance.offset, utterance.num_bytes)
