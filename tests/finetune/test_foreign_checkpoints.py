"""Checkpoints of other projects where a recipe or a user names one: features, fine-tuning,
transcription, export.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from hubert_pretrain.config.schema import ExportConfig, Recipe
from hubert_pretrain.errors import ArtefactError, DataError
from hubert_pretrain.features.hubert_layer import HubertLayer
from hubert_pretrain.finetune.ctc import CtcTask
from hubert_pretrain.finetune.inference import SpeechRecognizer
from hubert_pretrain.finetune.start import load_start
from hubert_pretrain.finetune.text import Vocabulary
from hubert_pretrain.interop.registry import FORMATS
from hubert_pretrain.model.checkpoint import load_model, load_tensors, save_model
from hubert_pretrain.model.config import HubertConfig
from hubert_pretrain.model.heads import CodebookHead, CTCHead
from hubert_pretrain.model.hubert import Hubert
from hubert_pretrain.pipeline.workspace import Workspace
from hubert_pretrain.stages import export as export_stage

READABLE = [name for name, form in FORMATS.items() if form.readable]


@pytest.fixture
def places(tmp_path: Path, tiny: HubertConfig) -> dict[str, Path]:
    """Of a pretrained model: the path of each format."""
    torch.manual_seed(0)
    save_model(tmp_path / "ours", Hubert(tiny), head=CodebookHead(16, 8, 5))
    for name in READABLE:
        FORMATS[name].export(tmp_path / name / FORMATS[name].file, load_model(tmp_path / "ours"))
    return {name: tmp_path / name / FORMATS[name].file for name in READABLE} | {
        "ours": tmp_path / "ours"
    }


@pytest.fixture
def ctc_models(tmp_path: Path, tiny: HubertConfig) -> dict[str, Path]:
    """The same of a CTC model."""
    torch.manual_seed(0)
    vocabulary = Vocabulary.of_texts(["ABC"])
    head = CTCHead(16, len(vocabulary))
    torch.nn.init.normal_(head.linear.weight, std=30)  # of many minds
    save_model(
        tmp_path / "asr",
        Hubert(tiny),
        head=head,
        extra={"vocabulary": list(vocabulary.symbols)},
    )
    names = ("huggingface", "fairseq")
    for name in names:
        FORMATS[name].export(
            tmp_path / "of asr" / name / FORMATS[name].file, load_model(tmp_path / "asr")
        )
    return {name: tmp_path / "of asr" / name / FORMATS[name].file for name in names} | {
        "ours": tmp_path / "asr"
    }


def test_features_and_encoders_are_the_same_from_every_format(places: dict[str, Path]) -> None:
    waveform = 0.1 * torch.randn(1, 9_000)
    expected = HubertLayer(places["ours"], 2)(waveform)
    for name, path in places.items():
        extractor = HubertLayer(path, 2)
        assert torch.equal(extractor(waveform), expected), name
        assert len(extractor.fingerprint()["weights_sha256"]) == 64
        loaded = load_start(path, CtcTask(), keep_head=False, layerdrop=0.25)
        assert loaded.model.config.layerdrop == 0.25


def test_features_of_a_folder_without_safetensors_are_told_apart(places: dict[str, Path]) -> None:
    folder = places["huggingface"]
    prints = []
    weights = load_tensors(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    for shift in (0.0, 0.0, 1.0):
        torch.save(
            {name: tensor + shift for name, tensor in weights.items()}, folder / "pytorch_model.bin"
        )
        prints.append(HubertLayer(folder, 1).fingerprint()["weights_sha256"])
    assert prints[0] == prints[1] != prints[2]


def test_transcription_from_every_format(ctc_models: dict[str, Path]) -> None:
    waveform = torch.cat([torch.randn(3000) * loud for loud in (0.01, 1.0, 0.1, 3.0)])
    expected = SpeechRecognizer.load(ctc_models["ours"]).transcribe(waveform)
    assert expected
    for name, path in ctc_models.items():
        assert SpeechRecognizer.load(path).transcribe(waveform) == expected, name


def test_bad_waveforms(ctc_models: dict[str, Path], tmp_path: Path) -> None:
    recogniser = SpeechRecognizer.load(ctc_models["ours"])
    waveform = np.zeros(8_000, dtype=np.float32)
    soundfile.write(
        tmp_path / "nan.wav",
        np.where(np.arange(8_000) == 5, np.nan, waveform),
        16_000,
        subtype="FLOAT",
    )
    with pytest.raises(DataError, match=r"nan\.wav"):
        recogniser.transcribe(tmp_path / "nan.wav")
    damaged: Any = np.where(np.arange(8_000) == 5, np.float32("nan"), waveform)
    with pytest.raises(DataError, match="1 of 8000 samples are NaN or infinite"):
        recogniser.transcribe(damaged)
    with pytest.raises(DataError, match="8000 samples per second, expected 16000"):
        recogniser.transcribe(waveform, sampling_rate=8_000)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="100 samples, expected at least 400"):
        recogniser.transcribe(waveform[:100])  # type: ignore[arg-type]


def test_one_waveform_at_a_time(ctc_models: dict[str, Path], tmp_path: Path) -> None:
    """torchaudio.load gives (channels, S), soundfile.read (S, channels)."""
    recogniser = SpeechRecognizer.load(ctc_models["ours"])
    left, right = 0.1 * torch.randn(2, 8_000, generator=torch.Generator().manual_seed(0))
    for both in (torch.stack([left, right]), torch.stack([left, right], 1)):
        with pytest.raises(DataError, match=r"has shape .* expected one waveform \(S,\)"):
            recogniser.transcribe(both)
    assert recogniser.transcribe(left[None]) == recogniser.transcribe(left)
    opposite = torch.stack([left, -left], 1).numpy()
    soundfile.write(tmp_path / "opposite.wav", opposite, 16_000, subtype="FLOAT")
    with pytest.raises(DataError, match=r"opposite\.wav: every sample is the same \(0\)"):
        recogniser.transcribe(tmp_path / "opposite.wav")


def test_ctc_model_without_vocabulary(ctc_models: dict[str, Path]) -> None:
    (ctc_models["huggingface"] / "vocab.json").unlink()
    (ctc_models["huggingface"] / "hubert_pretrain.json").unlink()
    with pytest.raises(
        ArtefactError,
        match=r"does not list the characters that its outputs stand for; give dictionary=",
    ):
        SpeechRecognizer.load(ctc_models["huggingface"])


def test_a_checkpoint_of_fairseq_is_exported_by_the_stage(
    places: dict[str, Path], tmp_path: Path
) -> None:
    recipe = Recipe(name="test", export=ExportConfig(checkpoints=[str(places["fairseq"])]))
    facts = export_stage.run(recipe, Workspace(tmp_path / "run"), "export", tmp_path / "out")
    assert max(facts["max_difference"].values()) < 1e-5
    assert (
        tmp_path / "out" / "fairseq" / "checkpoint.pt" / "pretraining_head.safetensors"
    ).is_file()
