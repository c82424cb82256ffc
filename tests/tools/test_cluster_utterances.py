"""`hubert-pretrain cluster-utterances` on tones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
from hubert_pretrain.tools.cluster_utterances import main

from hubert_pretrain.data.manifest import Manifest, Utterance, write_manifest
from hubert_pretrain.formats.utterance_clusters import read_clusters, training_utterances


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Nine utterances of a high voice, three of a low one."""
    folder = tmp_path / "prepare"
    folder.mkdir()
    made = []
    for number in range(12):
        generator = np.random.default_rng(number)
        is_low = number % 4 == 0
        time = np.arange(8000) / 16_000
        tone = np.sin(2 * np.pi * (150 if is_low else 2000 + number) * time)
        noise = generator.normal(size=len(time)) * 0.1
        path = folder / f"{number}.wav"
        soundfile.write(path, (0.3 * (tone + noise)).astype(np.float32), 16_000, subtype="FLOAT")
        speaker = "low" if is_low else "high"
        made.append(Utterance(id=f"u{number}", path=str(path), num_samples=8000, speaker=speaker))
    write_manifest(folder / "manifest.arrow", made)
    return folder


def test_what_sounds_alike_is_together(
    tmp_path: Path, corpus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "clusters.tsv"
    assert main([str(corpus), str(out), "--n-clusters", "2", "--workers", "2"]) == 0
    found = read_clusters(out)
    expected = {f"u{number}": "c01" if number % 4 == 0 else "c00" for number in range(12)}
    assert found == expected
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split()[:2] == ["c00", "9"]
    assert "high 100%" in lines[1]
    groups = training_utterances(Manifest.open(corpus), str(out))
    assert [len(group) for group in groups] == [9, 3]
    before = out.read_bytes()
    assert main([str(corpus), str(out), "--n-clusters", "2"]) == 0
    assert out.read_bytes() == before


def test_more_clusters_than_utterances(
    tmp_path: Path, corpus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(corpus), str(tmp_path / "x.tsv"), "--n-clusters", "13"]) == 2
    assert "--n-clusters 13: expected 1 to 12, the number of utterances" in capsys.readouterr().err
