"""What lies where in a shard: a sidecar `<shard>.index.json`, written after the shard, that tells a whole shard from one that was cut."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hubert_pretrain.errors import DataError
from hubert_pretrain.workspace import read_json, write_text

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
            index = ShardIndex(**{name: value[name] for name in ("shard", "size", "sha256", "made_of")}, entries=entries)
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
    index = ShardIndex.load(sidecar(shard)) or (ShardIndex.load(otherwise) if otherwise is not None else None)
    if index is None:
        raise DataError(f"{sidecar(shard)}: missing or damaged; copy it again with its shard, or write the shards anew")
    size = os.path.getsize(shard) if shard.is_file() else -1
    if size != index.size:
        found = "missing" if size < 0 else f"has {size} bytes, its index says {index.size} for {len(index.entries)} utterances"
        raise DataError(f"{shard}: {found}; copy the shard again or write it anew")
    if content and (found := file_sha256(shard)) != index.sha256:
        raise DataError(f"{shard}: its content changed (sha256 {found[:12]}, its index says {index.sha256[:12]}); copy the shard again")
    return index


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
