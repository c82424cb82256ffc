"""Key maps between our state dict and those of other projects: complete and one to one."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from hubert_pretrain.errors import ArtefactError
from hubert_pretrain.interop.tensor_names import (
    TRANSFORMERS,
    KeyMap,
    fairseq_key_map,
    left_over,
    to_ours,
    to_theirs,
)
from hubert_pretrain.model.config import HubertConfig
from hubert_pretrain.model.hubert import Hubert

SMALL = HubertConfig(
    conv_dim=[8] * 7,
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=32,
    num_conv_pos_embedding_groups=2,
)


@pytest.mark.parametrize("norm", ["group", "layer"])
@pytest.mark.parametrize("project", ["transformers", "fairseq"])
def test_there_and_back_is_bit_equal(norm: str, project: str) -> None:
    model = Hubert(dataclasses.replace(SMALL, feat_extract_norm=norm))
    key_map: KeyMap = TRANSFORMERS if project == "transformers" else fairseq_key_map(norm)
    state = model.state_dict()
    there = to_theirs(state, key_map)
    back = to_ours(there, state, key_map, "test")
    # Queries, keys and values are three tensors there, for weights and biases.
    assert len(there) == len(state) + 2 * 2 * SMALL.num_hidden_layers
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], state[name]) for name in state)
    assert left_over(there | {"lm_head.weight": torch.zeros(1)}, state, key_map) == [
        "lm_head.weight"
    ]


def test_old_names_of_weight_norm_are_read() -> None:
    state = Hubert(SMALL).state_dict()
    there = to_theirs(state, TRANSFORMERS)
    for old, new in (("weight_g", "original0"), ("weight_v", "original1")):
        there[f"encoder.pos_conv_embed.conv.{old}"] = there.pop(
            f"encoder.pos_conv_embed.conv.parametrizations.weight.{new}"
        )
    back = to_ours(there, state, TRANSFORMERS, "test")
    assert torch.equal(
        back["context_encoder.positions.weight_v"], state["context_encoder.positions.weight_v"]
    )
    assert left_over(there, state, TRANSFORMERS) == []


def test_missing_tensors_are_named() -> None:
    state = Hubert(SMALL).state_dict()
    there = to_theirs(state, TRANSFORMERS)
    del there["encoder.layers.1.attention.k_proj.weight"]
    with pytest.raises(
        ArtefactError,
        match=r"x.bin: 1 tensors are missing, first encoder.layers.1.attention.k_proj.weight",
    ):
        to_ours(there, state, TRANSFORMERS, "x.bin")
