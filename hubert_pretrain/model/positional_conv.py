"""Relative positions from a wide grouped convolution over time.

Source: wav2vec 2.0, arXiv:2006.11477, section 2.
Shapes: B utterances, T frames, D width, K taps, G groups.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from hubert_pretrain.model.config import HubertConfig
from hubert_pretrain.model.conv_encoder import ACTIVATIONS, convolve


class PositionalConv(nn.Module):
    """Activation of a grouped convolution with normalised weights, to be added to its input.

    (B, T, D) -> (B, T, D). The kernel is `g * v / |v|`, the norm taken per tap (weight_norm over
    dim 2), computed in fp32 in each forward.
    """

    def __init__(self, config: HubertConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.taps = config.num_conv_pos_embeddings
        self.groups = config.num_conv_pos_embedding_groups
        self.weight_v = nn.Parameter(torch.empty(width, width // self.groups, self.taps))
        nn.init.normal_(self.weight_v, std=math.sqrt(4.0 / (self.taps * width)))
        norm = self.weight_v.detach().norm(dim=(0, 1), keepdim=True)  # (1, 1, K)
        self.weight_g = nn.Parameter(norm.clone())
        self.bias = nn.Parameter(torch.zeros(width))
        self.activation = ACTIVATIONS[config.feat_extract_activation]

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        weight = torch._weight_norm(self.weight_v, self.weight_g, 2)  # (D, D / G, K)
        y = same_length_conv(x.transpose(1, 2), weight, self.bias, self.groups)
        return self.activation(y).transpose(1, 2)


class BatchNormPositionalConv(nn.Module):
    """ConvPositions with a batch norm before a plain convolution (`conv_pos_batch_norm`).

    As in the reference, padded frames (zeros) are part of the batch statistics in training.
    """

    def __init__(self, config: HubertConfig) -> None:
        super().__init__()
        width = config.hidden_size
        taps = config.num_conv_pos_embeddings
        self.batch_norm = nn.BatchNorm1d(width)
        self.conv = nn.Conv1d(
            width,
            width,
            taps,
            padding=taps // 2,
            groups=config.num_conv_pos_embedding_groups,
        )
        nn.init.normal_(self.conv.weight, std=math.sqrt(4.0 / (taps * width)))
        nn.init.zeros_(self.conv.bias)  # type: ignore[arg-type]
        self.activation = ACTIVATIONS[config.feat_extract_activation]

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        y = self.batch_norm(x.transpose(1, 2))
        y = same_length_conv(y, self.conv.weight, self.conv.bias, self.conv.groups)
        return self.activation(y).transpose(1, 2)


def same_length_conv(x: Tensor, weight: Tensor, bias: Tensor | None, groups: int) -> Tensor:
    """Grouped convolution that keeps the number of frames: (B, D, T), (D, D / G, K) -> (B, D,
    T).
    """
    y = convolve(x, weight, bias, padding=weight.shape[2] // 2, groups=groups)
    return y[..., : x.shape[2]]  # an even kernel makes one frame too many
