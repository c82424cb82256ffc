"""Relative positions from a convolution over time (wav2vec 2.0, arXiv:2006.11477, section 2). B
utterances, T frames, D width.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from hubert_pretrain.model.config import HubertConfig
from hubert_pretrain.model.conv_encoder import ACTIVATIONS
from hubert_pretrain.model.long_convolution import long_convolution


class PositionalConv(nn.Module):
    """GELU of a wide grouped convolution with normalised weights: (B, T, D) -> (B, T, D), to be
    added to its input.

    The kernel is `g * v / |v|`, the norm taken per tap (weight_norm over dim 2), recomputed in fp32
    in each forward.
    """

    def __init__(self, config: HubertConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.taps = config.num_conv_pos_embeddings
        self.groups = config.num_conv_pos_embedding_groups
        self.weight_v = nn.Parameter(torch.empty(width, width // self.groups, self.taps))
        nn.init.normal_(self.weight_v, std=math.sqrt(4.0 / (self.taps * width)))
        self.weight_g = nn.Parameter(
            self.weight_v.detach().norm(dim=(0, 1), keepdim=True).clone()
        )  # (1, 1, taps)
        self.bias = nn.Parameter(torch.zeros(width))
        self.activation = ACTIVATIONS[config.feat_extract_activation]

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        weight = torch._weight_norm(self.weight_v, self.weight_g, 2)
        y = long_convolution(
            x.transpose(1, 2), weight, self.bias, padding=self.taps // 2, groups=self.groups
        )  # (B, D, T or T + 1)
        return self.activation(y[..., : x.shape[1]]).transpose(
            1, 2
        )  # an even kernel makes one frame too many


class BatchNormPositionalConv(nn.Module):
    """ConvPositions with a batch norm before a plain convolution in place of normalised weights
    (`conv_pos_batch_norm`).

    As in the reference, padded frames (zeros) are part of the batch statistics in training.
    """

    def __init__(self, config: HubertConfig) -> None:
        super().__init__()
        width = config.hidden_size
        taps = config.num_conv_pos_embeddings
        groups = config.num_conv_pos_embedding_groups
        self.batch_norm = nn.BatchNorm1d(width)
        self.conv = nn.Conv1d(width, width, taps, padding=taps // 2, groups=groups)
        nn.init.normal_(self.conv.weight, std=math.sqrt(4.0 / (taps * width)))
        nn.init.zeros_(self.conv.bias)  # type: ignore[arg-type]
        self.activation = ACTIVATIONS[config.feat_extract_activation]

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        y = self.conv(self.batch_norm(x.transpose(1, 2)))  # (B, D, T or T + 1)
        return self.activation(y[..., : x.shape[1]]).transpose(1, 2)
