"""Small audio files that manifests are about."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

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
