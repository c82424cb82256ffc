"""`hubert-pretrain transcribe` with a CTC model of random weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from hubert_pretrain.tools.transcribe import main

from hubert_pretrain.finetune.inference import SpeechRecognizer
from hubert_pretrain.finetune.text import Vocabulary
from hubert_pretrain.interop.torchaudio_writer import export_torchaudio
from hubert_pretrain.model.checkpoint import load_model, save_model
from hubert_pretrain.model.heads import CodebookHead, CTCHead
from hubert_pretrain.model.hubert import Hubert
from tests.finetune.conftest import TINY


@pytest.fixture
def model(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    vocabulary = Vocabulary.of_texts(["ABC"])
    save_model(
        tmp_path / "asr",
        Hubert(TINY),
        head=CTCHead(16, len(vocabulary)),
        extra={"vocabulary": list(vocabulary.symbols)},
    )
    return tmp_path / "asr"


@pytest.fixture
def speech(tmp_path: Path) -> Path:
    soundfile.write(tmp_path / "speech.wav", np.random.default_rng(0).normal(0, 0.1, 8000), 8000)
    return tmp_path / "speech.wav"


def test_prints_path_and_text(
    model: Path, speech: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(model), str(speech)]) == 0
    assert (
        capsys.readouterr().out == f"{speech}\t{SpeechRecognizer.load(model).transcribe(speech)}\n"
    )


def test_goes_on_after_a_bad_file(
    model: Path, speech: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    soundfile.write(tmp_path / "short.wav", np.zeros(100), 16000)
    assert (
        main([str(model), str(tmp_path / "none.wav"), str(tmp_path / "short.wav"), str(speech)])
        == 1
    )
    output = capsys.readouterr()
    assert output.out.startswith(str(speech))
    assert "none.wav: no such file" in output.err
    assert "short.wav: has 100 samples" in output.err


def test_another_kind_of_model(
    speech: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_model(tmp_path / "pretrained", Hubert(TINY), head=CodebookHead(16, 8, 5))
    assert main([str(tmp_path / "pretrained"), str(speech)]) == 1
    assert "holds a 'pretrain' checkpoint, which cannot transcribe" in capsys.readouterr().err
    assert main([str(tmp_path / "nowhere"), str(speech)]) == 1


def test_a_waveform_is_normalised_for_models_that_want_it(model: Path, speech: Path) -> None:
    recogniser = SpeechRecognizer.load(model)
    recogniser.model.config.normalize_waveform = True
    waveform = torch.randn(16000, generator=torch.Generator().manual_seed(0))
    assert recogniser.transcribe(waveform) == recogniser.transcribe(3 * waveform + 1)


def test_what_a_file_does_not_tell_is_given(
    model: Path, speech: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A state dict of torchaudio without its side file."""
    export_torchaudio(tmp_path / "hubert.pt", load_model(model))
    (tmp_path / "hubert.side.safetensors").unlink()
    lines = [f"{symbol} 1\n" for symbol in ("<unk>", "|", "A", "B", "C")]
    (tmp_path / "dict.ltr.txt").write_text("".join(lines))
    words = [str(tmp_path / "hubert.pt"), str(speech)]
    assert main(words) == 1
    assert "in a command --set" in capsys.readouterr().err
    fields = [f"num_attention_heads={TINY.num_attention_heads}", f"conv_stride={TINY.conv_stride}"]
    assert main([*words, "--dictionary", str(tmp_path / "dict.ltr.txt"), "--set", *fields]) == 0
    assert (
        capsys.readouterr().out == f"{speech}\t{SpeechRecognizer.load(model).transcribe(speech)}\n"
    )
