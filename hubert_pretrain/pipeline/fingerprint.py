"""Values that determine the result of a stage: as plain containers for `meta.json`, and in the
canonical form that fingerprints are made of.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
from collections.abc import Callable, Collection, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from hubert_pretrain.config import nodes
from hubert_pretrain.decoding.config import TRAIN
from hubert_pretrain.fields import default_of
from hubert_pretrain.files import sha256

TARGET = "_target_"
"""Key of a node that names its class by import path (Hydra's)."""
KIND = "kind"
"""Key of the class in canonical form: its name, so that moving a module changes nothing."""
PATH_ARGUMENTS = {
    "root",
    "path",
    "table",
    "evaluation_root",
    "checkpoint",
    "vocabulary",
    "lexicon",
    "label_file",
    "trials",
}
"""Arguments of `_target_` nodes that name files."""
WORDS = (TRAIN,)
"""Values that may stand where a path may, and name no file."""
HARDWARE_ARGUMENTS = {"workers"}
"""Arguments of `_target_` nodes that change how something is done, not what comes out."""


def values_of(section: Any, stages: Collection[str]) -> Any:
    """A part of the recipe as plain containers: without fields that do not change the result, and
    with absolute paths. `stages` are names that stay as they are where a path may stand; a section
    that is a string is a path."""
    return _plain(
        section,
        lambda path: absolute(path, stages),
        canonical=False,
        path=isinstance(section, str),
    )


def canonical(section: Any, place: Callable[[str], str]) -> Any:
    """The same with kinds in place of import paths, with `place(path)` in place of each path, and
    without values at their default: a run goes on under a later version that has more fields. (So
    the meaning of a default never changes.)"""
    return _plain(section, place, canonical=True, path=isinstance(section, str))


def places(section: Any) -> list[str]:
    """Every path in a part of the recipe, absolute, in the order of its fields."""
    found: list[str] = []

    def collect(path: str) -> str:
        found.append(absolute(path))
        return path

    _plain(section, collect, canonical=False, path=isinstance(section, str))
    return found


def moved(before: Sequence[str], now: Sequence[str]) -> dict[str, str]:
    """Folder -> the folder that stands in its place, from the `places` of one section before and
    now."""
    found = {}
    if len(before) == len(now):
        for old, new in zip(map(PurePosixPath, before), map(PurePosixPath, now), strict=True):
            while old != new and old.name == new.name:  # /old/corpus -> /new/corpus
                old = old.parent
                new = new.parent
            if old != new:
                found[str(old)] = str(new)
    return found


def digest(value: Any) -> str:
    """Shortened SHA-256 of plain containers."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def absolute(path: str, stages: Collection[str] = ()) -> str:
    """One spelling of a path: absolute, without `~`, `.` and `..`. URLs and `stages` stay."""
    if path in stages or path in WORDS or "://" in path:
        return path
    return os.path.abspath(os.path.expanduser(path))


def content_of(path: str) -> str:
    """Hash of the content of a file; of a folder, of the names and sizes of its files, and of what
    its JSON files hold (the vocabulary of a checkpoint). The path itself when nothing is there or
    it is a URL.
    """
    place = Path(path)
    if "://" in path or not place.exists():
        return path
    if place.is_file():
        return hash_of_file(place)
    return _content_of_folder(place)


@functools.lru_cache(maxsize=256)
def _content_of_folder(folder: Path) -> str:
    return digest(
        [
            [str(file.relative_to(folder)), file.stat().st_size, _content_of_json(file)]
            for file in sorted(folder.rglob("*"))
            if file.is_file() and not file.name.startswith(".")
        ]
    )


def _content_of_json(file: Path) -> str:
    return hash_of_file(file) if file.suffix == ".json" else ""


def hash_of_file(path: Path) -> str:
    """SHA-256. A file of the same size and time of modification is read once per process."""
    found = path.stat()
    return _hash_of_file(path, found.st_size, found.st_mtime_ns)


@functools.lru_cache(maxsize=256)
def _hash_of_file(path: Path, size: int, modified: int) -> str:
    return sha256(path)


def _plain(value: Any, place: Callable[[str], str], *, canonical: bool, path: bool = False) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            each.name: _plain(
                getattr(value, each.name),
                place,
                canonical=canonical,
                path=each.metadata.get("path", False),
            )
            for each in dataclasses.fields(value)
            if each.metadata.get("science", True)
            and not (canonical and getattr(value, each.name) == default_of(each))
        }
    if isinstance(value, dict):
        defaults = nodes.defaults(value) if canonical and TARGET in value else {}
        node = {
            key: _plain(
                inner,
                place,
                canonical=canonical,
                # Of a class, or of a mapping that is a path; {path: audio} may name a column.
                path=(key in PATH_ARGUMENTS and (path or TARGET in value))
                or (path and not PATH_ARGUMENTS & set(value)),
            )
            for key, inner in value.items()
            if key not in HARDWARE_ARGUMENTS and not (key in defaults and defaults[key] == inner)
        }
        if canonical and TARGET in node:
            node[KIND] = _kind(str(node.pop(TARGET)))
        return node
    if isinstance(value, (list, tuple)):
        return [_plain(each, place, canonical=canonical, path=path) for each in value]
    return place(value) if path and isinstance(value, str) and value else value


def _kind(target: str) -> str:
    """`Mfcc` for a class of ours, the whole import path for any other."""
    package, _, _ = target.partition(".")
    ours, _, _ = __name__.partition(".")
    return target.rpartition(".")[2] if package == ours else target
