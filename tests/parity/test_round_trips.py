"""Random networks of `transformers`, of every class: read, written again with the same outputs, and
written for every other project that can hold them.
"""

from __future__ import annotations

import random
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from hubert_pretrain.errors import HubertPretrainError
from hubert_pretrain.interop.load import load_checkpoint
from hubert_pretrain.interop.registry import FORMATS, Format
from hubert_pretrain.interop.transformers_writer import import_transformers
from hubert_pretrain.model.checkpoint import LoadedModel

ARCHITECTURES = ["HubertModel", "HubertForCTC", "HubertForSequenceClassification"]
REFUSED = "cannot hold model|has no projection|no plain softmax|needs a symbol for each|a head of"
"""Messages of formats that cannot hold a network."""


def draw(seed: int) -> dict[str, Any]:
    """Settings of a small HubertConfig."""
    source = random.Random(seed)
    layers = source.choice([2, 3, 7])
    choices: dict[str, list[Any]] = {
        "hidden_size": [16, 32, 48],
        "num_hidden_layers": [1, 2, 3],
        "num_attention_heads": [1, 2, 4],
        "intermediate_size": [16, 40],
        "num_conv_pos_embeddings": [1, 8, 9, 16],
        "num_conv_pos_embedding_groups": [1, 2, 4],
        "conv_pos_batch_norm": [True, False, False],
        "conv_bias": [True, False],
        "feat_extract_norm": ["group", "layer"],
        "feat_proj_layer_norm": [True, True, True, False],
        "do_stable_layer_norm": [True, False],
        "layer_norm_eps": [1e-5, 1e-5, 1e-6],
        "hidden_act": ["gelu", "gelu", "relu", "gelu_new", "gelu_fast", "gelu_python", "swish"],
        "feat_extract_activation": ["gelu", "gelu", "gelu_python", "relu", "silu"],
        "adapter_attn_dim": [None, None, 4],
        "apply_spec_augment": [True, False],
        "mask_time_prob": [0.0, 0.05, 0.65],
        "mask_feature_prob": [0.0, 0.1],
        "vocab_size": [5, 32],
        "pad_token_id": [0, 1, 3],
        "num_labels": [2, 5],
        "classifier_proj_size": [8, 12],
        "use_weighted_layer_sum": [True, False],
    }
    return {
        "conv_dim": source.choices([8, 16], k=layers),
        "conv_kernel": source.choices([2, 3, 10], k=layers),
        "conv_stride": source.choices([1, 2, 5], k=layers),
        "num_feat_extract_layers": layers,
        **{name: source.choice(values) for name, values in choices.items()},
    }


def output(model: Any, waveform: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        found = model.eval()(waveform)
    return found.logits if "logits" in found else found.last_hidden_state


def refused(form: Format, path: Path, loaded: LoadedModel) -> str:
    """The message of a format that cannot hold the network; empty when it was written."""
    try:
        form.write(path, loaded)
    except HubertPretrainError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("seed", range(30))
def test_round_trip(tmp_path: Path, seed: int) -> None:
    torch.manual_seed(seed)
    transformers = import_transformers()
    architecture = getattr(transformers, ARCHITECTURES[seed % 3])
    theirs = architecture(transformers.HubertConfig(**draw(seed)))
    theirs.save_pretrained(tmp_path / "in")
    loaded = load_checkpoint(tmp_path / "in")
    for name, form in FORMATS.items():
        if not form.readable:
            continue
        path = tmp_path / name / form.file
        if refusal := refused(form, path, loaded):
            assert name != "huggingface", refusal
            assert re.search(REFUSED, refusal), refusal
            continue
        form.check(path, loaded)
    again = architecture.from_pretrained(tmp_path / "huggingface")
    waveform = 0.1 * torch.randn(2, 9_000)
    torch.testing.assert_close(
        output(again, waveform), output(theirs, waveform), atol=1e-5, rtol=1e-5
    )
