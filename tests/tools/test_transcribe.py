"""`hubert-pretrain transcribe` with a CTC model of random weights."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from types import SimpleNamespace

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
from hubert_pretrain.tools import recordings
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


# -- formats, inputs, long recordings


@pytest.fixture
def speaking(monkeypatch: pytest.MonkeyPatch, model: Path) -> Path:
    """A model whose output is B's and gaps, so that texts have words."""

    def forward(self: CTCHead, x: torch.Tensor) -> torch.Tensor:
        """A word of three letters in each second: "ABC", a gap."""
        symbols = torch.zeros(x.shape[0], x.shape[1], 6)
        for frame, symbol in ((5, 3), (10, 4), (15, 5), (20, 2)):
            symbols[:, frame::50, symbol] = 9.0
        symbols[..., 0] = 5.0
        return symbols

    monkeypatch.setattr(CTCHead, "forward", forward)
    return model


def stdin(monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    monkeypatch.setattr(
        sys, "stdin", SimpleNamespace(buffer=io.BufferedReader(io.BytesIO(content)))
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, seconds in (("a.wav", 2), ("deeper/b.flac", 3)):
        path = tmp_path / "recordings" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, np.random.default_rng(0).normal(0, 0.1, 16000 * seconds), 16000)
    (tmp_path / "recordings" / "notes.txt").write_text("no audio")
    return tmp_path / "recordings"


def test_a_folder_is_one_line_per_file(
    speaking: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(speaking), str(folder)]) == 0
    assert capsys.readouterr().out == (
        f"{folder}/a.wav\tABC ABC\n{folder}/deeper/b.flac\tABC ABC ABC\n"
    )


def test_each_format_has_a_file_of_each_recording(
    speaking: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for form in ("txt", "srt", "vtt", "jsonl"):
        words = ["--format", form, "--output", str(tmp_path / "out")]
        assert main([str(speaking), str(folder), *words]) == 0
    assert capsys.readouterr().out == ""
    out = tmp_path / "out"
    assert (out / "a.txt").read_text() == "ABC ABC\n"
    assert (out / "deeper" / "b.srt").read_text().startswith("1\n00:00:00,1")
    assert (out / "deeper" / "b.vtt").read_text().startswith("WEBVTT\n")
    found = json.loads((out / "deeper" / "b.jsonl").read_text())
    assert found["text"] == "ABC ABC ABC"
    assert [word["word"] for word in found["words"]] == ["ABC"] * 3
    starts = [word["start"] for word in found["words"]]
    assert starts == pytest.approx([0.1025, 1.1025, 2.1025], abs=0.01)
    assert all(0 < word["confidence"] <= 1 for word in found["words"])


def test_lengths_of_chunks_are_options(
    model: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = []
    forward = Hubert.forward

    def counted(self: Hubert, waveform: torch.Tensor, **more: object) -> object:
        seconds.append(round(waveform.shape[1] / 16000, 1))
        return forward(self, waveform, **more)

    monkeypatch.setattr(Hubert, "forward", counted)
    words = ["--chunk-seconds", "1", "--context-seconds", "0.1"]
    assert main([str(model), str(folder / "a.wav"), *words]) == 0
    assert seconds == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("form", ["txt", "jsonl"])
def test_a_stream_prints_each_word_in_time(
    speaking: Path, folder: Path, form: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(speaking), str(folder / "a.wav"), "--stream", "--format", form]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    if form == "jsonl":
        assert [json.loads(line)["word"] for line in lines] == ["ABC", "ABC"]
    else:
        assert lines[1] == f"{folder}/a.wav\t1.10\tABC"


@pytest.mark.parametrize("kind", ["wav", "flac", "raw"])
def test_audio_on_standard_input(
    speaking: Path,
    folder: Path,
    kind: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    noise = (np.random.default_rng(0).normal(0, 0.1, 32000) * 32768).astype("<i2")
    content = io.BytesIO(noise.tobytes())
    if kind != "raw":
        content = io.BytesIO()
        soundfile.write(content, noise, 16000, format=kind, subtype="PCM_16")
    stdin(monkeypatch, content.getvalue())
    assert main([str(speaking), "-"]) == 0
    assert capsys.readouterr().out == "stdin\tABC ABC\n"


def test_a_list_of_files_on_standard_input(
    speaking: Path,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    stdin(monkeypatch, f"{folder}/a.wav\n\n{folder}/nowhere.wav\r\n".encode())
    assert main([str(speaking), "-"]) == 1
    output = capsys.readouterr()
    assert output.out == f"{folder}/a.wav\tABC ABC\n"
    assert "nowhere.wav: no such file" in output.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["-", "more.wav"], "input - is standard input and stands alone; leave out 1 other"),
        (["a.wav", "--stream", "--format", "srt"], "--stream prints txt or jsonl"),
        (["a.wav", "--chunk-seconds", "3", "--context-seconds", "2"], "have nothing between"),
        (["empty"], "empty: no audio in it"),
    ],
)
def test_what_cannot_be_is_said(
    model: Path,
    tmp_path: Path,
    words: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    assert main([str(model), *words]) in (1, 2)
    assert message in capsys.readouterr().err


def test_raw_samples_arrive_as_floats(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when a read ends within a sample."""
    samples = np.array([16384, -32768, 8192], dtype="<i2").tobytes()
    stdin(monkeypatch, samples[3:])
    found = np.concatenate(list(recordings._pcm(samples[:3])))
    np.testing.assert_array_equal(found, np.array([0.5, -1.0, 0.25], dtype=np.float32))
