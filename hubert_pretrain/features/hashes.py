"""Hashes of weights: the identity of a checkpoint, wherever it lies."""

from __future__ import annotations

import hashlib
from pathlib import Path

from hubert_pretrain.model.checkpoint import WEIGHTS


def weights_sha256(checkpoint: Path) -> str:
    """SHA-256 of the weights: of `model.safetensors` in a folder that has one, of a file itself, else of all files of a folder together."""
    if checkpoint.is_file():
        return file_sha256(checkpoint)
    if (checkpoint / WEIGHTS).is_file():
        return file_sha256(checkpoint / WEIGHTS)
    listed = [f"{file_sha256(path)}  {path.name}\n" for path in sorted(checkpoint.iterdir()) if path.is_file()]
    return hashlib.sha256("".join(listed).encode()).hexdigest()


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, as `sha256sum` prints it."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
