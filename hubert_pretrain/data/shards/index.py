"""What lies where in a shard: a sidecar `<shard>.index.json`, written after the shard, that tells a
whole shard from one that was cut.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hubert_pretrain.data.storage import is_url
from hubert_pretrain.errors import DataError
from hubert_pretrain.files import read_json, sha256, write_text

_LONGEST_KEY = 80
"""Together with any extension short enough for the name field of a plain tar header."""


def key_of(id: str) -> str:
    """A name for an utterance's members that is safe everywhere: letters, digits, `_` and `-` (a
    dot would begin the extension).

    An id that is no such name gets its unsafe characters replaced and a hash appended, so that
    different ids keep different keys.
    """
    safe = re.sub(r"[^A-Za-z0-9_-]", "_", id)[:_LONGEST_KEY]
    return (
        safe
        if safe == id
        else f"{safe[: _LONGEST_KEY - 17]}-{hashlib.blake2b(id.encode(), digest_size=8).hexdigest()}"
    )


def shard_name(split: str, number: int) -> str:
    """`train-000012.tar`."""
    return f"{key_of(split)}-{number:06d}.tar"


def expand(patterns: Sequence[str], root: str = "") -> list[str]:
    """Shards that patterns name, each pattern's in order: `train-{000000..000012}.tar` (any URL) or
    `train-*.tar` (a folder, s3, gs).

    Args:
        patterns: paths or URLs.
        root: the folder or URL that paths are relative to.

    Raises:
        DataError: a pattern matches nothing, a shard is named twice, or a name is a command.
    """
    from braceexpand import braceexpand

    found: list[str] = []
    for pattern in patterns:
        if pattern.startswith("pipe:"):
            raise DataError(
                f"{pattern}: is a command, which is not run; fetch the shards first, or name them by a URL such as s3://"
            )
        absolute = (
            pattern
            if not root or is_url(pattern) or pattern.startswith("/")
            else f"{root.rstrip('/')}/{pattern}"
        )
        for name in braceexpand(absolute):
            matches = _matches(name) if any(sign in name for sign in "*?[") else [name]
            if not matches:
                raise DataError(
                    f"{name}: no shards of such a name; set data.root to their folder, or mend the pattern"
                )
            found += matches
    for name in found:
        if found.count(name) > 1:
            raise DataError(
                f"{name}: is named twice by {', '.join(patterns)}; name every shard once"
            )
    return found


def _matches(pattern: str) -> list[str]:
    if not is_url(pattern):
        return sorted(glob.glob(pattern))
    from fsspec.core import url_to_fs

    system, path = url_to_fs(pattern)
    scheme = pattern.partition("://")[0]
    return sorted(
        found if is_url(found) else f"{scheme}://{found.lstrip('/')}" for found in system.glob(path)
    )


FORMAT = "hubert_pretrain.shard.1"
SUFFIX = ".index.json"
INDEX_FOLDER = "shards"
"""Below the folder of `prepare`: the indexes of shards that others wrote."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """One utterance of a shard."""

    id: str
    name: str
    """Of its audio member."""
    offset: int
    """Of the audio member's first byte."""
    num_bytes: int
    num_samples: int = -1
    mean: float = 0.0
    variance: float = 1.0
    """Of the stored samples."""
    fields: dict[str, str] | None = None
    """What else the shard says of it: text, speaker, label."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardIndex:
    """A shard's index."""

    shard: str
    """Name of the file."""
    size: int
    """Bytes of the file."""
    sha256: str
    made_of: str
    """Fingerprint of what was written into it, or of the file it was made from."""
    entries: list[Entry]

    def save(self, path: Path) -> None:
        """Writes the sidecar atomically."""
        value = {"format": FORMAT, "count": len(self.entries), **asdict(self)}
        write_text(path, json.dumps(value, ensure_ascii=False, separators=(",", ":")) + "\n")

    @staticmethod
    def load(path: Path) -> ShardIndex | None:
        """The index in a sidecar; None when there is none or it is damaged."""
        value = read_json(path)
        return ShardIndex.parse(value) if isinstance(value, dict) else None

    @staticmethod
    def parse(value: dict[str, Any]) -> ShardIndex | None:
        """The index in the JSON of a sidecar, or None when that is something else."""
        if value.get("format") != FORMAT:
            return None
        try:
            entries = [Entry(**entry) for entry in value["entries"]]
            index = ShardIndex(
                **{name: value[name] for name in ("shard", "size", "sha256", "made_of")},
                entries=entries,
            )
        except (KeyError, TypeError):
            return None
        return index if len(entries) == value["count"] else None


def sidecar(shard: Path) -> Path:
    """Where the index of a shard lies."""
    return shard.with_name(shard.name + SUFFIX)


def kept(folder: Path, shard: str) -> Path:
    """Where the index of somebody else's shard is kept, in a folder of ours."""
    return folder / (hashlib.blake2b(shard.encode(), digest_size=8).hexdigest() + SUFFIX)


def verify(shard: Path, *, content: bool = False, otherwise: Path | None = None) -> ShardIndex:
    """The index of a shard on disk, once the shard was found to be what it says.

    Args:
        shard: the tar.
        content: read it all and compare its sha256 too.
        otherwise: where its index lies when it has none beside it.

    Raises:
        DataError: the shard or its index is missing, or they differ.
    """
    index = ShardIndex.load(sidecar(shard)) or (
        ShardIndex.load(otherwise) if otherwise is not None else None
    )
    if index is None:
        raise DataError(
            f"{sidecar(shard)}: missing or damaged; copy it again with its shard, or write the shards anew"
        )
    size = os.path.getsize(shard) if shard.is_file() else -1
    if size != index.size:
        found = (
            "missing"
            if size < 0
            else f"has {size} bytes, its index says {index.size} for {len(index.entries)} utterances"
        )
        raise DataError(f"{shard}: {found}; copy the shard again or write it anew")
    if content and (found := sha256(shard)) != index.sha256:
        raise DataError(
            f"{shard}: its content changed (sha256 {found[:12]}, its index says {index.sha256[:12]}); copy the shard again"
        )
    return index
