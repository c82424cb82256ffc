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
from hubert_pretrain.fields import default_of

TARGET = "_target_"
"""Key of a node that names its class by import path (Hydra's)."""
KIND = "kind"
"""Key of the class in canonical form: its name, so that moving a module changes nothing."""
PATH_ARGUMENTS = {"root", "path", "table", "evaluation_root", "checkpoint"}
"""Arguments of `_target_` nodes that name files."""
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
    if path in stages or "://" in path:
        return path
    return os.path.abspath(os.path.expanduser(path))


@functools.lru_cache(maxsize=256)
def content_of(path: str) -> str:
    """Hash of the names and sizes of the files at a path, wherever it lies; the path itself when
    nothing is there or it is a URL."""
    place = Path(path)
    if "://" in path or not place.exists():
        return path
    files = sorted(place.rglob("*")) if place.is_dir() else [place]
    return digest(
        [
            [str(file.relative_to(place)), file.stat().st_size]
            for file in files
            if file.is_file() and not file.name.startswith(".")
        ]
    )


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
    return place(value) if path and isinstance(value, str) else value


def _kind(target: str) -> str:
    """`Mfcc` for a class of ours, the whole import path for any other."""
    package, _, _ = target.partition(".")
    ours, _, _ = __name__.partition(".")
    return target.rpartition(".")[2] if package == ours else target
