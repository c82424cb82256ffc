"""Modules without values."""

from __future__ import annotations

import subprocess
import sys

import torch
from torch import nn

from hubert_pretrain.model.config import HubertConfig
from hubert_pretrain.model.hubert import Hubert
from hubert_pretrain.model.shapes import shapes_only

SMALL = HubertConfig(
    conv_dim=[8] * 7,
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=32,
    num_conv_pos_embedding_groups=2,
)


def test_shapes_are_those_of_the_network() -> None:
    with shapes_only():
        empty = Hubert(SMALL)
    assert all(parameter.is_meta for parameter in empty.parameters())
    shapes = {name: tensor.shape for name, tensor in Hubert(SMALL).state_dict().items()}
    assert {name: tensor.shape for name, tensor in empty.state_dict().items()} == shapes


def test_tensors_elsewhere_are_filled() -> None:
    with shapes_only():
        weight = nn.init.normal_(torch.zeros(100, device="cpu"))
    assert weight.std() > 0.5


def test_the_compiler_of_pytorch_is_not_imported() -> None:
    code = (
        "import sys; from hubert_pretrain import Hubert, HubertConfig; "
        "from hubert_pretrain.model.shapes import shapes_only\n"
        "with shapes_only(): Hubert(HubertConfig())\n"
        "print('torch._dynamo' in sys.modules)"
    )
    command = [sys.executable, "-c", code]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "False\n"
