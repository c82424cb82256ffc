"""Exported folders with 8-bit and 4-bit weights: they load and still transcribe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from hubert_pretrain.errors import ConfigError
from hubert_pretrain.frames import SAMPLE_RATE
from hubert_pretrain.interop.onnx import export_onnx, quantise_onnx, run_onnx
from hubert_pretrain.interop.quantised import SCHEMES, load_quantised
from hubert_pretrain.interop.transformers_writer import export_huggingface, import_transformers
from hubert_pretrain.model.checkpoint import LoadedModel, load_model, save_model
from hubert_pretrain.model.config import HubertConfig
from hubert_pretrain.model.heads import CTCHead
from hubert_pretrain.model.hubert import Hubert

pytestmark = pytest.mark.slow

CHARACTERS = "ABCDE"
VOCABULARY = ["<pad>", "<unk>", "|", *CHARACTERS]
CONFIG = HubertConfig(
    conv_dim=[*[16] * 6, 64],  # 4 bits come in blocks of 64 inputs
    hidden_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=128,
    num_conv_pos_embeddings=16,
    num_conv_pos_embedding_groups=4,
)
PART = SAMPLE_RATE // 5
"""Samples of a character, and of the gap after it."""


def tones(text: str) -> Tensor:
    """(1, S): each character is a pitch, with noise between them."""
    time = np.arange(PART) / SAMPLE_RATE
    draw = np.random.default_rng(len(text))
    parts = [0.01 * draw.standard_normal(PART)]
    for character in text:
        parts += [
            0.1 * np.sin(2 * np.pi * (300 + 500 * CHARACTERS.index(character)) * time),
            0.01 * draw.standard_normal(PART),
        ]
    return torch.from_numpy(np.concatenate(parts)).float()[None]


def trained(folder: Path) -> LoadedModel:
    """A random network whose CTC head is fitted by least squares to a few texts of tones, which is
    enough to transcribe others.
    """
    torch.manual_seed(0)
    model = Hubert(CONFIG).eval()
    head = CTCHead(64, len(VOCABULARY))
    draw = np.random.default_rng(0)
    inputs = []
    targets = []
    for _ in range(12):
        text = "".join(draw.choice(list(CHARACTERS), 8))
        waveform = tones(text)
        with torch.no_grad():
            states = model(waveform).last[0]
        centres = (torch.arange(len(states)) * model.grid.hop + model.grid.window // 2) // PART
        rows = [0]
        for character in text:
            rows += [VOCABULARY.index(character), 0]
        inputs.append(states)
        labels = torch.tensor(rows)[centres]
        targets.append(torch.nn.functional.one_hot(labels, len(VOCABULARY)).float())
    # Ridge regression of the one-hot labels on the states and a constant.
    x = torch.cat([torch.cat(inputs), torch.ones(sum(map(len, inputs)), 1)], dim=1).double()
    y = torch.cat(targets).double()
    solved = torch.linalg.solve(x.T @ x + 1e-3 * torch.eye(65), x.T @ y).float()
    with torch.no_grad():
        head.linear.weight.copy_(solved[:64].T * 10)
        head.linear.bias.copy_(solved[64] * 10)
    save_model(folder, model, head=head, extra={"vocabulary": VOCABULARY})
    return load_model(folder)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("quantised")
    export_huggingface(folder / "theirs", trained(folder / "ours"))
    return folder


def text_of(place: Path, logits: Tensor) -> str:
    """The transcription by the exported tokenizer."""
    tokenizer: Any = import_transformers().AutoTokenizer.from_pretrained(place / "theirs")
    return tokenizer.decode(logits[0].argmax(-1))


SPOKEN = "ECABDADE"


def test_the_exact_model_transcribes(place: Path) -> None:
    model = import_transformers().HubertForCTC.from_pretrained(place / "theirs").eval()
    with torch.inference_mode():
        assert text_of(place, model(tones(SPOKEN)).logits) == SPOKEN


@pytest.mark.parametrize("scheme", list(SCHEMES))
def test_it_loads_and_still_transcribes(place: Path, scheme: str) -> None:
    for package in ("bitsandbytes", "accelerate") if scheme.startswith("bnb") else ("torchao",):
        pytest.importorskip(package, reason=f"{package} (extra `quantise`) is not installed")
    with torch.inference_mode():
        model = import_transformers().HubertForCTC.from_pretrained(place / "theirs").eval()
        exact = model(tones(SPOKEN)).logits
        rough = load_quantised(place / "theirs", scheme)(tones(SPOKEN)).logits.float()
    bound = 0.2 if scheme.endswith("4") else 0.05
    assert 0 < (rough - exact).norm() / exact.norm() < bound
    assert text_of(place, rough) == SPOKEN


@pytest.mark.parametrize("scheme", list(SCHEMES))
def test_heads_stay_exact(place: Path, scheme: str) -> None:
    for package in ("bitsandbytes", "accelerate") if scheme.startswith("bnb") else ("torchao",):
        pytest.importorskip(package, reason=f"{package} (extra `quantise`) is not installed")
    exact = import_transformers().HubertForCTC.from_pretrained(place / "theirs")
    rough = load_quantised(place / "theirs", scheme)
    assert torch.equal(rough.lm_head.weight.float(), exact.lm_head.weight)


def test_8_bits_of_onnx_still_transcribe(place: Path) -> None:
    pytest.importorskip("onnxruntime", reason="the extra `onnx` is not installed")
    pytest.importorskip("onnxscript", reason="the extra `onnx` is not installed")
    export_onnx(place / "hubert.onnx", load_model(place / "ours"))
    quantise_onnx(place / "hubert.onnx", place / "small.onnx")
    exact, rough = (
        run_onnx(place / name, tones(SPOKEN))["logits"] for name in ("hubert.onnx", "small.onnx")
    )
    assert 0 < (rough - exact).norm() / exact.norm() < 0.1
    assert text_of(place, exact) == text_of(place, rough) == SPOKEN


def test_a_scheme_that_does_not_exist(place: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean 'bnb-int8'"):
        load_quantised(place / "theirs", "bnb_int8")
