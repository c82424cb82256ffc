"""HuBERT (Hsu et al. 2021, arXiv:2106.07447): conv encoder, projection, span mask, context encoder.

Shapes: B utterances, S samples, T frames, C conv channels, D width, H heads, L layer (1-based).
Norms and residuals are fp32 under autocast; nothing here is random but dropout: masks and dropped layers are given by the caller.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hubert_pretrain.errors import DataError
from hubert_pretrain.model.config import HubertConfig
from hubert_pretrain.model.conv_encoder import ACTIVATIONS, ConvEncoder, scale_gradient


@dataclass
class HubertOutput:
    """What the network makes of a batch of waveforms."""

    last: Tensor
    """(B, T, D) output of the last layer that ran; after the final norm for pre-norm models, unless `layers` asked for fewer."""
    feature_penalty: Tensor
    """Scalar, fp32: mean square of the conv encoder's output, taken after its gradient is scaled (so the penalty's gradient is too)."""
    embedded: Tensor
    """(B, T, D) what enters layer 1: projected, masked, positions added, and for post-norm models normalised."""
    hidden_states: list[Tensor] | None = None
    """Output of layer 1 ... L after its residual (and its norm, for post-norm models), never after a final norm: "layer 6" is always
    `hidden_states[5]`, as fairseq's `extract_features(output_layer=6)`."""


class Hubert(nn.Module):
    """The network. `config` gives every size; `grid` says which samples each frame sees."""

    def __init__(self, config: HubertConfig) -> None:
        super().__init__()
        config.validate()
        self.config = config
        self.grid = config.grid
        self.conv_encoder = ConvEncoder(config)
        self.projection = FeatureProjection(config)
        self.mask_embedding = nn.Parameter(torch.empty(config.hidden_size).uniform_())
        self.context_encoder = ContextEncoder(config)
        if config.conv_gradient_scale == 0:
            self.conv_encoder.requires_grad_(False)

    def forward(
        self,
        waveform: Tensor,
        *,
        valid: Tensor | None = None,
        mask: Tensor | None = None,
        channel_mask: Tensor | None = None,
        layers: int | None = None,
        layer_keep: Sequence[bool] | None = None,
        hidden_states: bool = False,
    ) -> HubertOutput:
        """Runs the network on (B, S) float waveforms at 16 kHz, normalised by the caller when `config.normalize_waveform`.

        valid: (B, T) bool, True for real frames; None when there is no padding, and then no attention mask is built (flash attention).
        mask: (B, T) bool, True for frames to hide. channel_mask: (B, D) bool, True for channels to set to zero.
        layers: run only the first so many. layer_keep: which layers run (layer drop); None for all.
        hidden_states: whether to return the output of every layer.

        Raises DataError for a waveform of another shape or shorter than one window.
        """
        features = self.encode_frames(waveform)  # (B, T, C)
        x = self.projection(features)  # (B, T, D)
        if mask is not None:
            x = torch.where(self._frames_like(x, mask, "mask")[..., None], self.mask_embedding.to(x.dtype), x)
        if channel_mask is not None:
            if channel_mask.shape != (x.shape[0], x.shape[2]):
                raise DataError(f"channel_mask must have shape (B, D) = {(x.shape[0], x.shape[2])}, found {tuple(channel_mask.shape)}")
            x = x.masked_fill(channel_mask[:, None, :], 0.0)
        if valid is not None:
            self._frames_like(x, valid, "valid")
        last, embedded, states = self.context_encoder(x, valid=valid, layers=layers, layer_keep=layer_keep)
        return HubertOutput(
            last=last,
            feature_penalty=features.float().square().mean(),
            embedded=embedded,
            hidden_states=states if hidden_states else None,
        )

    def encode_frames(self, waveform: Tensor) -> Tensor:
        """(B, S) -> (B, T, C): the conv encoder alone, its gradient scaled by `config.conv_gradient_scale` (0: none at all)."""
        if waveform.ndim != 2 or not waveform.is_floating_point():
            raise DataError(f"expected a float waveform of shape (B, S), found {waveform.dtype} {tuple(waveform.shape)}; mix down to mono")
        if waveform.shape[1] < self.grid.window:
            raise DataError(
                f"waveform of {waveform.shape[1]} samples is shorter than one window of {self.grid.window}; leave it out or pad it"
            )
        scale = self.config.conv_gradient_scale
        with torch.set_grad_enabled(torch.is_grad_enabled() and scale > 0):
            features = self.conv_encoder(waveform)
        return scale_gradient(features, scale) if scale > 0 else features

    @staticmethod
    def _frames_like(x: Tensor, frames: Tensor, name: str) -> Tensor:
        if frames.shape != x.shape[:2] or frames.dtype != torch.bool:
            raise DataError(f"{name} must be bool of shape (B, T) = {tuple(x.shape[:2])}, found {frames.dtype} {tuple(frames.shape)}")
        return frames


class FeatureProjection(nn.Module):
    """Norm over channels, projection to the width of the context encoder, dropout: (B, T, C) -> (B, T, D)."""

    def __init__(self, config: HubertConfig) -> None:
        super().__init__()
        channels = config.conv_dim[-1]
        self.norm = LayerNorm(channels, eps=config.layer_norm_eps) if config.feat_proj_layer_norm else nn.Identity()
        # PyTorch's default initialisation, as in fairseq. (fairseq leaves the layer out where C = D; its importer must insert identity.)
        self.linear = nn.Linear(channels, config.hidden_size)
        self.dropout = nn.Dropout(config.feat_proj_dropout)

    def forward(self, features: Tensor) -> Tensor:
        """(B, T, C) -> (B, T, D)."""
        x = self.linear(self.norm(features))
        return self.dropout(x.to(self.linear.weight.dtype))  # fp32 under autocast: the residual stream of pre-norm models starts here


class ContextEncoder(nn.Module):
    """Relative positions from a convolution, then transformer layers: (B, T, D) -> (B, T, D)."""

    def __init__(self, config: HubertConfig) -> None:
        super().__init__()
        self.pre_norm = config.do_stable_layer_norm
        self.positions = ConvPositions(config)
        self.norm = LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.num_hidden_layers))

    def forward(
        self, x: Tensor, *, valid: Tensor | None, layers: int | None, layer_keep: Sequence[bool] | None
    ) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Returns (last, what entered layer 1, the output of every layer that was asked for), each (B, T, D)."""
        depth = self._depth(layers)
        if layer_keep is not None and len(layer_keep) < depth:
            raise DataError(
                f"layer_keep says of {len(layer_keep)} layers whether they run, but {depth} are to run; give one value per layer"
            )
        attended = None
        if valid is not None:
            x = x.masked_fill(~valid[..., None], 0.0)  # the positional convolution would carry padding into real frames
            attended = valid[:, None, None, :]  # (B, 1, 1, T): every query of every head sees the real frames
        x = x + self.positions(x)
        embedded = x = self.dropout(x if self.pre_norm else self.norm(x))
        states = []
        for index, layer in enumerate(self.layers[:depth]):
            if layer_keep is None or layer_keep[index]:
                x = layer(x, attended)
            states.append(x)
        last = self.norm(x) if self.pre_norm and layers is None else x
        return last, embedded, states

    def _depth(self, layers: int | None) -> int:
        if layers is None:
            return len(self.layers)
        if not 1 <= layers <= len(self.layers):
            raise DataError(f"layer {layers} was asked for, but the network has layers 1 to {len(self.layers)}")
        return layers


class ConvPositions(nn.Module):
    """GELU of a wide grouped convolution with normalised weights: (B, T, D) -> (B, T, D), to be added to its input.

    The kernel is `g * v / |v|`, the norm taken per tap (weight_norm over dim 2), recomputed in fp32 in each forward.
    """

    def __init__(self, config: HubertConfig) -> None:
        super().__init__()
        width, self.taps, self.groups = config.hidden_size, config.num_conv_pos_embeddings, config.num_conv_pos_embedding_groups
        self.weight_v = nn.Parameter(torch.empty(width, width // self.groups, self.taps))
        nn.init.normal_(self.weight_v, std=math.sqrt(4.0 / (self.taps * width)))
        self.weight_g = nn.Parameter(self.weight_v.detach().norm(dim=(0, 1), keepdim=True).clone())  # (1, 1, taps)
        self.bias = nn.Parameter(torch.zeros(width))
        self.activation = ACTIVATIONS[config.feat_extract_activation]

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        weight = torch._weight_norm(self.weight_v, self.weight_g, 2)
        y = F.conv1d(x.transpose(1, 2), weight, self.bias, padding=self.taps // 2, groups=self.groups)  # (B, D, T or T + 1)
        return self.activation(y[..., : x.shape[1]]).transpose(1, 2)  # an even kernel makes one frame too many


class Block(nn.Module):
    """Self-attention and feed-forward, each with a residual; norms after them (Base) or before (Large): (B, T, D) -> (B, T, D)."""

    def __init__(self, config: HubertConfig) -> None:
        super().__init__()
        self.pre_norm = config.do_stable_layer_norm
        self.attention = SelfAttention(config)
        self.attention_norm = LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.feed_forward = FeedForward(config)
        self.feed_forward_norm = LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout)

    def forward(self, x: Tensor, attended: Tensor | None) -> Tensor:
        """attended: (B, 1, 1, T) bool, True for frames that may be looked at; None for all."""
        if self.pre_norm:
            x = x + self.dropout(self.attention(self.attention_norm(x), attended))
            return x + self.dropout(self.feed_forward(self.feed_forward_norm(x)))
        x = self.attention_norm(x + self.dropout(self.attention(x, attended)))
        return self.feed_forward_norm(x + self.dropout(self.feed_forward(x)))


class SelfAttention(nn.Module):
    """Multi-head self-attention, queries, keys and values from one matrix product: (B, T, D) -> (B, T, D)."""

    def __init__(self, config: HubertConfig) -> None:
        super().__init__()
        self.heads, self.dropout = config.num_attention_heads, config.attention_dropout
        self.qkv = _linear(config.hidden_size, 3 * config.hidden_size)  # rows: queries, keys, values
        self.out = _linear(config.hidden_size, config.hidden_size)

    def forward(self, x: Tensor, attended: Tensor | None) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        batch, frames, width = x.shape
        qkv = self.qkv(x).view(batch, frames, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each (B, H, T, D / H)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=attended, dropout_p=self.dropout if self.training else 0.0)
        return self.out(y.transpose(1, 2).reshape(batch, frames, width))


class FeedForward(nn.Module):
    """Two projections with an activation between: (B, T, D) -> (B, T, D)."""

    def __init__(self, config: HubertConfig) -> None:
        super().__init__()
        self.up = _linear(config.hidden_size, config.intermediate_size)
        self.down = _linear(config.intermediate_size, config.hidden_size)
        self.activation = ACTIVATIONS[config.hidden_act]
        self.dropout = nn.Dropout(config.activation_dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        return self.down(self.dropout(self.activation(self.up(x))))


class LayerNorm(nn.LayerNorm):
    """Layer norm computed in fp32 and returned in the dtype of its weights: fp32 under autocast, so the residual stream is fp32."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        y = F.layer_norm(x.float(), self.normalized_shape, self.weight.float(), self.bias.float(), self.eps)
        return y.to(self.weight.dtype)


def _linear(inputs: int, outputs: int) -> nn.Linear:
    """A projection of the transformer layers, initialised like BERT's: N(0, 0.02), bias 0."""
    linear = nn.Linear(inputs, outputs)
    nn.init.normal_(linear.weight, std=0.02)
    nn.init.zeros_(linear.bias)
    return linear
