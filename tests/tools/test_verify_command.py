"""`hubert-pretrain verify`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from hubert_pretrain.finetune.inference import SpeakerVerifier
from hubert_pretrain.model.checkpoint import save_model
from hubert_pretrain.model.heads import ClassificationHead, SpeakerHead
from hubert_pretrain.model.hubert import Hubert
from hubert_pretrain.tools import verify
from tests.finetune.conftest import TINY, make_corpus


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Recordings 0.wav, 1.wav, ... and models."""
    make_corpus(tmp_path / "voices", utterances=3)
    torch.manual_seed(0)
    extra = {"speakers": ["a", "b"], "classes": ["a", "b"]}
    for name, head in (("asv", SpeakerHead(16, 2, 8, 4)), ("other", ClassificationHead(16, 2))):
        save_model(tmp_path / name, Hubert(TINY), head=head, extra=extra)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_first_recording_is_compared_with_the_others(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (place / "voices" / "broken.wav").write_bytes(b"RIFF")
    words = ["asv", "voices/0.wav", "voices/1.wav", "voices/broken.wav", "voices/0.wav"]
    assert verify.main([*words, "--threshold", "1.1", "--format", "jsonl"]) == 1
    printed = capsys.readouterr()
    assert "voices/broken.wav" in printed.err
    one, same = map(json.loads, printed.out.splitlines())
    expected = SpeakerVerifier.load("asv").similarity("voices/0.wav", "voices/1.wav")
    assert one == {"file": "voices/1.wav", "score": pytest.approx(expected, abs=1e-5)} | {
        "verdict": "different"
    }
    assert same["score"] == pytest.approx(1.0)
    assert verify.main([*words[:3], "--threshold", f"{expected - 1e-3}"]) == 0
    assert capsys.readouterr().out == f"voices/1.wav\t{expected:.4f}\tsame\n"


def test_what_cannot_be_compared(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert verify.main(["other", "voices/0.wav", "voices/1.wav"]) == 1
    assert "holds a 'classify' checkpoint, which gives no embeddings" in capsys.readouterr().err
    assert verify.main(["asv", "voices/0.wav", "-"]) == 2
    assert "not standard input" in capsys.readouterr().err
