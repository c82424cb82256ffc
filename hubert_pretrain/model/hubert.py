"""HuBERT (Hsu et al. 2021, arXiv:2106.07447): conv encoder, projection, span mask, context encoder.

Shapes: B utterances, S samples, T frames, C conv channels, D width, H heads, L layer (1-based).
Norms and residuals are fp32 under autocast; nothing here is random but dropout: masks and dropped
layers are given by the caller.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from hubert_pretrain.errors import DataError
from hubert_pretrain.model.attention import AttentionFn, AttentionMask, backend
from hubert_pretrain.model.config import HubertConfig
from hubert_pretrain.model.conv_encoder import ACTIVATIONS, ConvEncoder, scale_gradient
from hubert_pretrain.model.log_mel import LogMelEncoder
from hubert_pretrain.model.positional_conv import BatchNormPositionalConv, PositionalConv


@dataclass
class HubertOutput:
    """What the network makes of a batch of waveforms."""

    last: Tensor
    """(B, T, D) output of the last layer that ran; after the final norm for pre-norm models, unless
    `layers` asked for fewer.
    """
    feature_penalty: Tensor
    """Scalar, fp32: mean square of the conv encoder's output, taken after its gradient is scaled
    (so the penalty's gradient is too).
    """
    embedded: Tensor
    """(B, T, D) what enters layer 1: projected, masked, positions added, and for post-norm models
    normalised.
    """
    hidden_states: list[Tensor] | None = None
    """Output of layer 1 ... L after its residual (and its norm, for post-norm models), never after
    a final norm: "layer 6" is always `hidden_states[5]`, as fairseq's
    `extract_features(output_layer=6)`. (`transformers` puts `embedded` before them; whether its
    last one is after the final norm of a pre-norm model depends on its version: yes in 4.57, no in
    5.x.)"""
    attentions: list[Tensor | None] | None = None
    """Attention weights (B, H, T, T) of layer 1 ... L; None for a layer that was dropped."""


class Hubert(nn.Module):
    """The network. `config` gives every size; `grid` says which samples each frame sees.

    Two switches change how it is computed but not what: `attention`, the name of a back end
    (model/attention.py), and `recompute`, whether layers are computed again for their gradients
    instead of being kept (gradient checkpointing: less memory, a third more time).
    """

    def __init__(self, config: HubertConfig) -> None:
        super().__init__()
        config.validate()
        self.config = config
        self.grid = config.grid
        self.conv_encoder = (
            ConvEncoder(config) if config.front_end == "conv" else LogMelEncoder(config)
        )
        self.projection = FeatureProjection(config)
        self.mask_embedding = nn.Parameter(torch.empty(config.hidden_size).uniform_())
        self.context_encoder = ContextEncoder(config)
        self.attention = "sdpa"
        self.recompute = False
        if config.conv_gradient_scale == 0:
            self.conv_encoder.requires_grad_(False)

    def computed(self, *, attention: str = "sdpa", recompute: bool = False) -> Hubert:
        """Sets both switches, and returns itself. Raises ConfigError for a back end that does not
        exist.
        """
        backend(attention)
        self.attention = attention
        self.recompute = recompute
        return self

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
        attentions: bool = False,
        num_samples: Tensor | None = None,
        freeze_front_end: bool = False,
    ) -> HubertOutput:
        """Runs the network on (B, S) float waveforms at 16 kHz, normalised by the caller when
        `config.normalize_waveform`.

        valid: (B, T) bool, True for real frames; None when there is no padding, and then no
        attention mask is built (flash attention). mask: (B, T) bool, True for frames to hide.
        channel_mask: (B, D) bool, True for channels to set to zero. layers: run only the first so
        many. layer_keep: which layers run (layer drop); None for all. hidden_states: whether to
        return the output of every layer. attentions: the attention weights too (then the back end
        is "eager"). num_samples: (B,) real samples of each row. Given, the norm over time of
        group-norm models leaves padding out, and a padded row
            gives what it gives alone. No other implementation does so, hence it is not the default.
        freeze_front_end: compute no gradients of the conv encoder: a fifth of what Base costs.

        Raises DataError for a waveform of another shape or shorter than one window.
        """
        if num_samples is not None and num_samples.shape != waveform.shape[:1]:
            raise DataError(
                f"num_samples must have shape (B,) = {tuple(waveform.shape[:1])}, found {tuple(num_samples.shape)}"
            )
        features = self.encode_frames(waveform, num_samples, freeze=freeze_front_end)  # (B, T, C)
        x = self.projection(features)  # (B, T, D)
        if mask is not None:
            x = torch.where(
                self._frames_like(x, mask, "mask")[..., None], self.mask_embedding.to(x.dtype), x
            )
        if channel_mask is not None:
            if channel_mask.shape != (x.shape[0], x.shape[2]):
                raise DataError(
                    f"channel_mask must have shape (B, D) = {(x.shape[0], x.shape[2])}, found {tuple(channel_mask.shape)}"
                )
            x = x.masked_fill(channel_mask[:, None, :], 0.0)
        if valid is not None:
            self._frames_like(x, valid, "valid")
        context = self.context_encoder(
            x,
            valid=valid,
            layers=layers,
            layer_keep=layer_keep,
            attention="eager" if attentions else self.attention,
            recompute=self.recompute,
        )
        return HubertOutput(
            last=context.last,
            feature_penalty=features.float().square().mean(),
            embedded=context.embedded,
            hidden_states=context.states if hidden_states else None,
            attentions=context.attentions if attentions else None,
        )

    def encode_frames(
        self, waveform: Tensor, num_samples: Tensor | None = None, *, freeze: bool = False
    ) -> Tensor:
        """(B, S) -> (B, T, C): the front end alone, its gradient scaled by
        `config.conv_gradient_scale` (0, or `freeze`: none at all).
        """
        if waveform.ndim != 2 or not waveform.is_floating_point():
            raise DataError(
                f"expected a float waveform of shape (B, S), found {waveform.dtype} {tuple(waveform.shape)}; mix down to mono"
            )
        if waveform.shape[1] < self.grid.window:
            raise DataError(
                f"waveform of {waveform.shape[1]} samples is shorter than one window of {self.grid.window}; leave it out or pad it"
            )
        scale = 0.0 if freeze else self.config.conv_gradient_scale
        with torch.set_grad_enabled(torch.is_grad_enabled() and scale > 0):
            features = self.conv_encoder(waveform, num_samples, recompute=self.recompute)
        return scale_gradient(features, scale) if scale > 0 else features

    @staticmethod
    def _frames_like(x: Tensor, frames: Tensor, name: str) -> Tensor:
        if frames.shape != x.shape[:2] or frames.dtype != torch.bool:
            raise DataError(
                f"{name} must be bool of shape (B, T) = {tuple(x.shape[:2])}, found {frames.dtype} {tuple(frames.shape)}"
            )
        return frames


class FeatureProjection(nn.Module):
    """Norm over channels, projection to the width of the context encoder, dropout: (B, T, C) -> (B,
    T, D).
    """

    def __init__(self, config: HubertConfig) -> None:
        super().__init__()
        channels = config.frame_channels
        self.norm = (
            LayerNorm(channels, eps=config.layer_norm_eps)
            if config.feat_proj_layer_norm
            else nn.Identity()
        )
        # PyTorch's default initialisation, as in fairseq. (fairseq leaves the layer out where C =
        # D; its importer must insert identity.)
        self.linear = nn.Linear(channels, config.hidden_size)
        self.dropout = nn.Dropout(config.feat_proj_dropout)

    def forward(self, features: Tensor) -> Tensor:
        """(B, T, C) -> (B, T, D)."""
        x = self.linear(self.norm(features))
        return self.dropout(
            x.to(self.linear.weight.dtype)
        )  # fp32 under autocast: the residual stream of pre-norm models starts here


class ContextOutput(NamedTuple):
    """What the context encoder makes: see HubertOutput."""

    last: Tensor
    embedded: Tensor
    states: list[Tensor]
    attentions: list[Tensor | None]


class ContextEncoder(nn.Module):
    """Relative positions from a convolution, then transformer layers: (B, T, D) -> (B, T, D)."""

    def __init__(self, config: HubertConfig) -> None:
        super().__init__()
        self.pre_norm = config.do_stable_layer_norm
        self.positions = (
            BatchNormPositionalConv(config)
            if config.conv_pos_batch_norm
            else PositionalConv(config)
        )
        self.norm = LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.num_hidden_layers))

    def forward(
        self,
        x: Tensor,
        *,
        valid: Tensor | None = None,
        layers: int | None = None,
        layer_keep: Sequence[bool] | None = None,
        attention: str = "sdpa",
        recompute: bool = False,
    ) -> ContextOutput:
        """The arguments are those of Hubert.forward and its switches."""
        keep = self._keep(layers, layer_keep)
        prepare, attend = backend(attention)
        if valid is not None:
            x = x.masked_fill(
                ~valid[..., None], 0.0
            )  # the positional convolution would carry padding into real frames
        attended = None if valid is None else prepare(valid)
        x = x + self.positions(x)
        embedded = x = self.dropout(x if self.pre_norm else self.norm(x))
        states: list[Tensor] = []
        attentions: list[Tensor | None] = []
        for layer, kept in zip(self.layers, keep, strict=False):
            weights = None
            if kept and recompute and torch.is_grad_enabled():
                x, weights = checkpoint(layer, x, attended, attend, use_reentrant=False)
            elif kept:
                x, weights = layer(x, attended, attend)
            states.append(x)
            attentions.append(weights)
        last = self.norm(x) if self.pre_norm and layers is None else x
        return ContextOutput(last, embedded, states, attentions)

    def _keep(self, layers: int | None, layer_keep: Sequence[bool] | None) -> Sequence[bool]:
        """Which of the first `layers` layers run."""
        depth = self._depth(layers)
        if layer_keep is None:
            return [True] * depth
        if len(layer_keep) < depth:
            raise DataError(
                f"layer_keep says of {len(layer_keep)} layers whether they run, but {depth} are to run; give one value per layer"
            )
        return layer_keep[:depth]

    def _depth(self, layers: int | None) -> int:
        if layers is None:
            return len(self.layers)
        if not 1 <= layers <= len(self.layers):
            raise DataError(
                f"layer {layers} was asked for, but the network has layers 1 to {len(self.layers)}"
            )
        return layers


class Block(nn.Module):
    """Self-attention and feed-forward, each with a residual; norms after them (Base) or before
    (Large): (B, T, D) -> (B, T, D).

    With `adapter_attn_dim` an adapter follows, in its own residual.
    """

    def __init__(self, config: HubertConfig) -> None:
        super().__init__()
        self.pre_norm = config.do_stable_layer_norm
        self.attention = SelfAttention(config)
        self.attention_norm = LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.feed_forward = FeedForward(config)
        self.feed_forward_norm = LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout)
        self.adapter = (
            None if config.adapter_attn_dim is None else Adapter(config, config.adapter_attn_dim)
        )

    def forward(
        self, x: Tensor, attended: AttentionMask, attend: AttentionFn
    ) -> tuple[Tensor, Tensor | None]:
        """Returns (B, T, D) and, from back ends that have them, the attention weights (B, H, T,
        T).
        """
        if self.pre_norm:
            y, weights = self.attention(self.attention_norm(x), attended, attend)
            x = x + self.dropout(y)
            x = x + self.dropout(self.feed_forward(self.feed_forward_norm(x)))
        else:
            y, weights = self.attention(x, attended, attend)
            x = self.attention_norm(x + self.dropout(y))
            x = self.feed_forward_norm(x + self.dropout(self.feed_forward(x)))
        return (x if self.adapter is None else x + self.adapter(x)), weights


class SelfAttention(nn.Module):
    """Multi-head self-attention, queries, keys and values from one matrix product: (B, T, D) -> (B,
    T, D).
    """

    def __init__(self, config: HubertConfig) -> None:
        super().__init__()
        self.heads = config.num_attention_heads
        self.dropout = config.attention_dropout
        self.qkv = _linear(
            config.hidden_size, 3 * config.hidden_size, config.initializer_range
        )  # rows: queries, keys, values
        self.out = _linear(config.hidden_size, config.hidden_size, config.initializer_range)

    def forward(
        self, x: Tensor, attended: AttentionMask, attend: AttentionFn
    ) -> tuple[Tensor, Tensor | None]:
        """(B, T, D) -> (B, T, D) and the weights, if `attend` has them."""
        batch, frames, width = x.shape
        qkv = self.qkv(x).view(batch, frames, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each (B, H, T, D / H)
        y, weights = attend(q, k, v, attended, self.dropout if self.training else 0.0)
        return self.out(y.transpose(1, 2).reshape(batch, frames, width)), weights


class FeedForward(nn.Module):
    """Two projections with an activation between: (B, T, D) -> (B, T, D)."""

    def __init__(self, config: HubertConfig) -> None:
        super().__init__()
        self.up = _linear(config.hidden_size, config.intermediate_size, config.initializer_range)
        self.down = _linear(config.intermediate_size, config.hidden_size, config.initializer_range)
        self.activation = ACTIVATIONS[config.hidden_act]
        self.dropout = nn.Dropout(config.activation_dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        return self.down(self.dropout(self.activation(self.up(x))))


class Adapter(nn.Module):
    """A small correction of a layer's output, to be added to it: (B, T, D) -> (B, T, D). One set
    per language: model/language_adapters.py.

    Norm, projection to a few channels, ReLU, projection back (arXiv:2305.13516, section 4.2;
    `transformers`' HubertAttnAdapterLayer). The last projection starts at zero, so that a new
    adapter changes nothing.
    """

    def __init__(self, config: HubertConfig, width: int) -> None:
        super().__init__()
        self.norm = LayerNorm(config.hidden_size)  # its eps is 1e-5 whatever the network's
        self.down = _linear(config.hidden_size, width, config.initializer_range)
        self.up = _linear(width, config.hidden_size, 0.0)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        return self.up(F.relu(self.down(self.norm(x))))


class LayerNorm(nn.LayerNorm):
    """Layer norm computed in fp32 and returned in the dtype of its weights: fp32 under autocast, so
    the residual stream is fp32.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        y = F.layer_norm(
            x.float(), self.normalized_shape, self.weight.float(), self.bias.float(), self.eps
        )
        return y.to(self.weight.dtype)


def _linear(inputs: int, outputs: int, std: float) -> nn.Linear:
    """A projection of the transformer layers, initialised like BERT's: N(0, std), bias 0."""
    linear = nn.Linear(inputs, outputs)
    nn.init.normal_(linear.weight, std=std)
    nn.init.zeros_(linear.bias)
    return linear
