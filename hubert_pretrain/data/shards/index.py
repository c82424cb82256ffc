"""Names of shards, and the index of a shard: byte offsets of its utterances, its size and SHA-256.

The index is the sidecar `<shard>.index.json`, written after the shard, so that a shard that was cut
is noticed.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from hubert_pretrain.data.storage import is_url, reason_of
from hubert_pretrain.errors import DataError
from hubert_pretrain.files import read_json, sha256, write_text

_LONGEST_KEY = 80
"""With any extension a name of this length fits into the header of a plain tar (100 bytes)."""


def key_of(id: str) -> str:
    """Key of an utterance's members, safe on every file system: letters, digits, `_` and `-` (a dot
    would begin the extension).

    In other ids unsafe characters are replaced and a hash is appended, so that different ids have
    different keys.
    """
    safe = re.sub(r"[^A-Za-z0-9_-]", "_", id)[:_LONGEST_KEY]
    if safe == id:
        return id
    digest = hashlib.blake2b(id.encode(), digest_size=8).hexdigest()
    return f"{safe[: _LONGEST_KEY - 17]}-{digest}"


def shard_name(split: str, number: int) -> str:
    """`train-000012.tar`."""
    return f"{key_of(split)}-{number:06d}.tar"


def expand(patterns: Sequence[str], root: str = "") -> list[str]:
    """Shards that match patterns, in the order of the patterns.

    Args:
        patterns: paths or URLs, as `train-{000000..000012}.tar` (any URL) or `train-*.tar` (a
            folder, s3, gs).
        root: the folder or URL that paths are relative to.

    Raises:
        DataError: a pattern matches nothing, a shard is named twice, or a name is a command.
    """
    from braceexpand import braceexpand

    found: list[str] = []
    for pattern in patterns:
        if pattern.startswith("pipe:"):
            raise DataError(
                f"{pattern}: is a command, which is not run; "
                "fetch the shards first, or name them by a URL such as s3://"
            )
        if root and not is_url(pattern) and not pattern.startswith("/"):
            pattern = f"{root.rstrip('/')}/{pattern}"
        for name in braceexpand(pattern):
            matches = _matches(name) if any(sign in name for sign in "*?[") else [name]
            if not matches:
                raise DataError(
                    f"{name}: no shards of such a name; "
                    "set data.root to their folder, or correct the pattern"
                )
            found += matches
    for name, times in Counter(found).items():
        if times > 1:
            raise DataError(
                f"{name}: is named twice by {', '.join(patterns)}; name every shard once"
            )
    return found


def _matches(pattern: str) -> list[str]:
    """Paths or URLs that match a pattern with `*`, `?` or `[`, sorted."""
    if not is_url(pattern):
        return sorted(glob.glob(pattern))
    from fsspec.core import url_to_fs

    try:
        system, path = url_to_fs(pattern)
        names = system.glob(path)
    except Exception as error:  # file systems behind URLs raise errors of many types
        raise DataError(
            f"{pattern}: cannot be listed ({reason_of(error)}); correct the URL or the access to it"
        ) from error
    scheme = pattern.partition("://")[0]
    return sorted(name if is_url(name) else f"{scheme}://{name.lstrip('/')}" for name in names)


FORMAT = "hubert_pretrain.shard.1"
SUFFIX = ".index.json"
INDEX_FOLDER = "shards"
"""Folder in that of `prepare` for the indexes of shards that others wrote."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """One utterance of a shard."""

    id: str
    name: str
    """Name of its audio member."""
    offset: int
    """Position of the audio member's first byte in the shard."""
    num_bytes: int
    num_samples: int = -1
    mean: float = 0.0
    """Mean of the stored samples."""
    variance: float = 1.0
    """Biased variance of the stored samples."""
    fields: dict[str, str] | None = None
    """Further fields of the utterance: id, text, speaker, label."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardIndex:
    """The index of a shard."""

    shard: str
    """Name of the tar file."""
    size: int
    """Bytes of the tar file."""
    sha256: str
    """SHA-256 of the tar file."""
    made_of: str
    """Fingerprint of the utterances written into the shard; for shards of others, of the file that
    was indexed."""
    entries: list[Entry]
    unread: dict[str, int] = field(default_factory=dict)
    """Kind -> number of the members that are not read."""

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
        """The index in the JSON of a sidecar; None when that is no index."""
        if value.get("format") != FORMAT:
            return None
        try:
            entries = [Entry(**entry) for entry in value["entries"]]
            index = ShardIndex(
                shard=value["shard"],
                size=value["size"],
                sha256=value["sha256"],
                made_of=value["made_of"],
                entries=entries,
                unread=value.get("unread", {}),
            )
        except (KeyError, TypeError):
            return None
        return index if len(entries) == value["count"] else None


def sidecar(shard: Path) -> Path:
    """Path of the index beside a shard."""
    return shard.with_name(shard.name + SUFFIX)


def foreign_index_path(folder: Path, shard: str) -> Path:
    """Path in `folder` for the index of a shard that others wrote."""
    return folder / (hashlib.blake2b(shard.encode(), digest_size=8).hexdigest() + SUFFIX)


def verify(shard: Path, *, content: bool = False, otherwise: Path | None = None) -> ShardIndex:
    """The index of a shard on disk, after a comparison of the shard with it.

    Args:
        shard: the tar file.
        content: compare the SHA-256 too, which reads the whole shard.
        otherwise: path of the index for a shard that has none beside it.

    Raises:
        DataError: the shard or its index is missing, or they differ.
    """
    index = ShardIndex.load(sidecar(shard))
    if index is None and otherwise is not None:
        index = ShardIndex.load(otherwise)
    if index is None:
        raise DataError(
            f"{sidecar(shard)}: missing or damaged; "
            "copy it again with its shard, or write the shards again"
        )
    if not shard.is_file():
        raise DataError(f"{shard}: missing; copy or write the shard again")
    if (size := os.path.getsize(shard)) != index.size:
        raise DataError(
            f"{shard}: has {size} bytes, its index says {index.size} for {len(index.entries)} "
            "utterances; copy or write the shard again"
        )
    if content and (found := sha256(shard)) != index.sha256:
        raise DataError(
            f"{shard}: its content changed (sha256 {found[:12]}, its index says "
            f"{index.sha256[:12]}); copy the shard again"
        )
    return index
