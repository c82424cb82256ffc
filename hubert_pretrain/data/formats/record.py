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

from hubert_pretrain.data.corpus import Claim
from hubert_pretrain.errors import DataError
from hubert_pretrain.frames import SAMPLE_RATE

Record = tuple[str, Claim]
"""Where a row stands ("train.tsv: line 3"), and what it claims."""

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
    """What relative paths are relative to; None: what the format says, or the folder of the manifest."""
    split: str = "train"
    """Of the rows that name none."""
    columns: Mapping[str, str] = field(default_factory=dict)
    """Our name -> the manifest's name of a column."""
    rate: int = SAMPLE_RATE
    """Samples per second in which a manifest counts that does not say."""
    ids: str = "path"
    """Of rows without an id: "path", relative and without its suffix, or "name", the file's without its suffix."""
    folder: Path | None = None
    """Where audio that a manifest holds inside itself is written; None: where it is not wanted."""

    def locate(self, path: str, home: Path) -> str:
        """The absolute path, or URL, of what a manifest in the folder `home` calls `path`; without `..`, so that a file has one path."""
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
    """The split that the name of a file or folder tells: "cuts_dev-clean.jsonl.gz" is valid; None when it tells none."""
    words = re.split(r"[^a-z]+", name.lower())
    return next((SPLIT_NAMES[word] for word in words if word in SPLIT_NAMES), None)


def without_duplicates(read: Callable[[], Iterator[Record]]) -> Iterator[Claim]:
    """The claims of all records; after the last, DataError when two have one id, naming both places.

    Eight bytes are kept for each row, a hash of its id. Only if two hashes agree is everything read again, to compare ids.
    """
    hashes = array("q")
    for _, claim in read():
        hashes.append(hash(claim.id))
        yield claim
    ordered = np.sort(np.frombuffer(hashes, dtype=np.int64))
    repeated = set(ordered[1:][ordered[1:] == ordered[:-1]].tolist())
    if not repeated:
        return
    places: dict[str, str] = {}
    for place, claim in read():
        if hash(claim.id) not in repeated:
            continue
        if (first := places.setdefault(claim.id, place)) is not place:
            raise DataError(f"{place}: repeats utterance {claim.id!r} of {first}; ids must be unique, rename one or remove the line")
