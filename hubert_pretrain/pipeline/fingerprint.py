"""Values that determine the result of a stage: as plain containers for `meta.json`, and in the
canonical form that fingerprints are made of.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Collection
from typing import Any

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
    return _plain(section, stages, canonical=False, path=isinstance(section, str))


def canonical(section: Any, stages: Collection[str]) -> Any:
    """The same with kinds in place of import paths, and without values at their default: a run
    goes on under a later version that has more fields. (So the meaning of a default never
    changes.)"""
    return _plain(section, stages, canonical=True, path=isinstance(section, str))


def digest(value: Any) -> str:
    """Shortened SHA-256 of plain containers."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def absolute(path: str, stages: Collection[str] = ()) -> str:
    """One spelling of a path: absolute, without `~`, `.` and `..`. URLs and `stages` stay."""
    if path in stages or "://" in path:
        return path
    return os.path.abspath(os.path.expanduser(path))


def _plain(value: Any, stages: Collection[str], *, canonical: bool, path: bool = False) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            each.name: _plain(
                getattr(value, each.name),
                stages,
                canonical=canonical,
                path=each.metadata.get("path", False),
            )
            for each in dataclasses.fields(value)
            if each.metadata.get("science", True)
            and not (canonical and getattr(value, each.name) == default_of(each))
        }
    if isinstance(value, dict):
        node = {
            key: _plain(
                inner,
                stages,
                canonical=canonical,
                path=key in PATH_ARGUMENTS or (path and not PATH_ARGUMENTS & set(value)),
            )
            for key, inner in value.items()
            if key not in HARDWARE_ARGUMENTS
        }
        if canonical and TARGET in node:
            node[KIND] = _kind(str(node.pop(TARGET)))
        return node
    if isinstance(value, (list, tuple)):
        return [_plain(each, stages, canonical=canonical, path=path) for each in value]
    return absolute(value, stages) if path and isinstance(value, str) else value


def _kind(target: str) -> str:
    """`Mfcc` for a class of ours, the whole import path for any other."""
    package, _, _ = target.partition(".")
    ours, _, _ = __name__.partition(".")
    return target.rpartition(".")[2] if package == ours else target
