"""A small prepared corpus in several forms, and tar shards of every kind of badness."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from hubert_pretrain.data.corpus import MANIFEST, Corpus
from hubert_pretrain.data.manifest import Utterance, write_manifest
from hubert_pretrain.data.preparation.scan import scan
from hubert_pretrain.frames import SAMPLE_RATE


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    """Twelve utterances: 16-bit WAV and FLAC at 16 kHz, 24-bit, stereo, 8 kHz, and two segments of
    one recording.
    """
    folder = tmp_path / "prepared"
    draw = np.random.default_rng(0)
    utterances = []
    (folder / "audio").mkdir(parents=True)
    kinds = [
        ("wav", "PCM_16", 16_000, 1),
        ("flac", "PCM_16", 16_000, 1),
        ("flac", "PCM_24", 16_000, 1),
        ("wav", "FLOAT", 16_000, 2),
    ]
    kinds += [("wav", "PCM_16", 8_000, 1)]
    for number in range(10):
        suffix, subtype, rate, channels = kinds[number % len(kinds)]
        path = folder / "audio" / f"u.{number}.{suffix}"
        waveform = 0.1 * draw.standard_normal((int(draw.uniform(0.5, 1.5) * rate), channels))
        soundfile.write(path, waveform, rate, subtype=subtype)
        facts = scan(path)
        measured = {
            name: getattr(facts, name)
            for name in ("num_samples", "source_rate", "mean", "variance")
        }
        fields = {
            "speaker": f"s{number % 3}",
            "text": f"words of {number}, é\t'",
            "split": "valid" if number > 7 else "train",
        }
        utterances.append(
            Utterance(id=f"u.{number}", path=str(path), corpus="test", **measured, **fields)
        )
    first = utterances[0]
    for number, start in enumerate((400, 2_000)):
        waveform = soundfile.read(first.path, dtype="float32")[0][start : start + 1_600]
        values = {
            "num_samples": 1_600,
            "mean": float(waveform.mean()),
            "variance": float(waveform.var()),
        }
        utterances.append(
            Utterance(
                id=f"part/{number}", path=first.path, start=start, source_rate=SAMPLE_RATE, **values
            )
        )
    write_manifest(folder / MANIFEST, utterances)
    return Corpus.open(folder)


@pytest.fixture
def make_tar(tmp_path: Path) -> Callable[..., Path]:
    """Writes a tar of (name, content) pairs, or of (TarInfo, content) pairs."""

    def make(
        members: list[tuple[str | tarfile.TarInfo, bytes]], name: str = "s.tar", **options: object
    ) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with tarfile.open(path, **{"mode": "w", **options}) as tar:
            for member, content in members:
                info = member if isinstance(member, tarfile.TarInfo) else tarfile.TarInfo(member)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
        return path

    return make


def sound(seed: int = 0, seconds: float = 0.5, suffix: str = "wav", **options: str) -> bytes:
    """An audio file of noise, in bytes."""
    file = io.BytesIO()
    waveform = 0.1 * np.random.default_rng(seed).standard_normal(int(seconds * SAMPLE_RATE))
    soundfile.write(file, waveform, SAMPLE_RATE, **{"format": suffix.upper(), **options})
    return file.getvalue()
