"""Exported folders in 8 and 4 bits: they load, are quantised, and still say nearly the same."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from hubert_pretrain.errors import ConfigError
from hubert_pretrain.export.huggingface import export_huggingface, import_transformers
from hubert_pretrain.export.quantised import SCHEMES, load_quantised
from hubert_pretrain.export.report import probe
from hubert_pretrain.model.checkpoint import load_model, save_model
from hubert_pretrain.model.config import HubertConfig
from hubert_pretrain.model.heads import LetterHead
from hubert_pretrain.model.hubert import Hubert

VOCABULARY = ["<pad>", "<unk>", "|", *"ABCDEFG"]
CONFIG = HubertConfig(
    conv_dim=[*[16] * 6, 64],  # 4 bits come in blocks of 64 inputs
    hidden_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=128,
    num_conv_pos_embeddings=16,
    num_conv_pos_embedding_groups=4,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("quantised")
    torch.manual_seed(0)
    save_model(path / "ours", Hubert(CONFIG), head=LetterHead(64, len(VOCABULARY)), extra={"vocabulary": VOCABULARY})
    loaded = load_model(path / "ours")
    with torch.inference_mode():  # a random network says one letter all the time; without what its frames share it changes its mind
        mean = loaded.model(probe(loaded)).last[0].mean(0)
    loaded.head_state["linear.weight"] = loaded.head_state["linear.weight"] * 20  # sure of what it says, as a trained one is
    loaded.head_state["linear.bias"] = -loaded.head_state["linear.weight"] @ mean
    export_huggingface(path / "theirs", loaded)
    return path / "theirs"


@pytest.mark.parametrize("scheme", list(SCHEMES))
def test_it_loads_and_still_transcribes(folder: Path, scheme: str) -> None:
    for package in ("bitsandbytes", "accelerate") if scheme.startswith("bnb") else ("torchao",):
        pytest.importorskip(package, reason=f"{package} (extra `quantise`) is not installed")
    waveform = probe(load_model(folder.parent / "ours"))
    with torch.inference_mode():
        exact = import_transformers().HubertForCTC.from_pretrained(folder).eval()(waveform).logits
        rough = load_quantised(folder, scheme)(waveform).logits.float()
    bound = 0.3 if scheme.endswith(("4", "nf4")) else 0.05
    assert 0 < (rough - exact).norm() / exact.norm() < bound
    assert (rough.argmax(-1) == exact.argmax(-1)).float().mean() > 1 - bound


def test_a_scheme_that_does_not_exist(folder: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean 'bnb-int8'"):
        load_quantised(folder, "bnb_int8")
