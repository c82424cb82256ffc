"""Variants with parts of their own, exported: `transformers` loads them and computes the same; what
it cannot is refused.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from hubert_pretrain.errors import ArtefactError
from hubert_pretrain.interop.compare import compare
from hubert_pretrain.interop.transformers_writer import export_huggingface
from hubert_pretrain.model.checkpoint import LoadedModel, load_model, save_model
from hubert_pretrain.model.config import HubertConfig
from hubert_pretrain.model.heads import CTCHead
from hubert_pretrain.model.hubert import Hubert
from hubert_pretrain.model.language_adapters import Language, load_language, save_language

SMALL = HubertConfig(
    conv_dim=[16] * 7,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=64,
    num_conv_pos_embeddings=16,
    num_conv_pos_embedding_groups=4,
)
VOCABULARY = ["<pad>", "|", "A", "B"]


def checkpoint(folder: Path, **changes: Any) -> LoadedModel:
    """A saved CTC model in which every tensor is random."""
    torch.manual_seed(0)
    model = Hubert(dataclasses.replace(SMALL, **changes))
    head = CTCHead(32, len(VOCABULARY))
    with torch.no_grad():
        for tensor in [
            *model.parameters(),
            *(buffer for buffer in model.buffers() if buffer.is_floating_point()),
        ]:
            tensor.add_(torch.rand_like(tensor) * 0.2)
    save_model(folder, model, head=head, extra={"vocabulary": VOCABULARY})
    return load_model(folder)


@pytest.mark.parametrize(
    "changes",
    [
        {"conv_pos_batch_norm": True},
        {"do_stable_layer_norm": True, "adapter_attn_dim": 8},
        {"hidden_act": "silu", "feat_extract_activation": "relu", "initializer_range": 0.05},
        {
            "conv_dim": [16, 16, 16],
            "conv_kernel": [16, 5, 3],
            "conv_stride": [8, 5, 2],
            "conv_bias": True,
            "feat_proj_layer_norm": False,
        },
    ],
    ids=["batch norm in positions", "adapters", "activations", "grid"],
)
def test_transformers_computes_the_same(tmp_path: Path, changes: dict[str, Any]) -> None:
    loaded = checkpoint(tmp_path / "ours", **changes)
    export_huggingface(tmp_path / "theirs", loaded)
    assert max(compare(tmp_path / "theirs", loaded).differences.values()) < 1e-5
    stored = json.loads((tmp_path / "theirs" / "config.json").read_text())
    assert {name: stored[name] for name in changes} == changes


def test_a_language_is_exported_with_its_adapters_and_head(tmp_path: Path) -> None:
    loaded = checkpoint(tmp_path / "ours", do_stable_layer_norm=True, adapter_attn_dim=8)
    head = CTCHead(32, 3)
    model = Hubert(loaded.model.config)
    torch.nn.init.normal_(model.context_encoder.layers[0].adapter.up.weight)
    save_language(tmp_path / "ours", Language("deu", head, ["<pad>", "|", "Ä"]), model)

    language = load_language(tmp_path / "ours", "deu", loaded.model)
    config = {
        **loaded.config,
        "head": language.head.settings,
        "extra": {"vocabulary": language.vocabulary},
    }
    german = LoadedModel(loaded.model, "ctc", language.head.state_dict(), config)
    export_huggingface(tmp_path / "theirs", german)
    assert max(compare(tmp_path / "theirs", german).differences.values()) < 1e-5
    assert json.loads((tmp_path / "theirs" / "vocab.json").read_text()) == {
        "<pad>": 0,
        "|": 1,
        "Ä": 2,
    }


def test_adapters_that_transformers_would_ignore_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match=r"do_stable_layer_norm=false: .* post-norm model"):
        export_huggingface(tmp_path / "theirs", checkpoint(tmp_path / "ours", adapter_attn_dim=8))
