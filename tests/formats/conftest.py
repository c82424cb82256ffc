"""Small audio files and manifests for the tests of formats."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from hubert_pretrain.corpora.manifest import ManifestFile
from hubert_pretrain.data.source import SourceUtterance

RATES = {"a": 16_000, "b c": 16_000, "deep/ü": 8_000, "d": 44_100}
"""Name -> rate. One has a blank, one lies deeper and has an umlaut, two have other rates."""


def write_audio(path: Path, num_samples: int, rate: int = 16_000, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).normal(0, 0.1, num_samples)
    # As a handle: libsndfile would refuse some names that the file system takes.
    with open(path, "wb") as file:
        soundfile.write(file, noise, rate, format=path.suffix[1:].upper(), subtype="PCM_16")
    return path


@pytest.fixture(scope="session")
def audio_files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A wav or flac each, of 1000, 1100, 1200 and 1300 samples at their own rates."""
    root = tmp_path_factory.mktemp("some audio")
    suffix = {"a": ".wav", "b c": ".flac", "deep/ü": ".wav", "d": ".flac"}
    return [
        write_audio(root / f"{name}{suffix[name]}", 1000 + 100 * i, rate, seed=i)
        for i, (name, rate) in enumerate(RATES.items())
    ]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with a.wav, b.wav and `ü c.wav`, a second each."""
    for name in ("a", "b", "ü c"):
        write_audio(tmp_path / f"{name}.wav", 16_000)
    return tmp_path


def read_manifest(path: Path, **options: Any) -> list[SourceUtterance]:
    return list(ManifestFile(path=str(path), **options).utterances(path.parent / "out"))


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path
