"""HuBERT (Hsu et al. 2021, arXiv:2106.07447): conv encoder, projection, span mask, context encoder.

Shapes: B utterances, S samples, T frames, C conv channels, D width, H heads, L layer (1-based).
Residuals are fp32 under autocast (see Hubert.configure). Dropout is the only randomness here: the
caller draws masks and dropped layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from hubert_pretrain.errors import DataError
from hubert_pretrain.fields import AUTO
from hubert_pretrain.model.attention import AttentionFn, AttentionMask, Chunks, backend
from hubert_pretrain.model.config import HubertConfig
from hubert_pretrain.model.conv_encoder import ACTIVATIONS, ConvEncoder, scale_gradient
from hubert_pretrain.model.half_precision import Linear, layer_norm
from hubert_pretrain.model.log_mel import LogMelEncoder
from hubert_pretrain.model.positional_conv import BatchNormPositionalConv, PositionalConv

WHOLE_UTTERANCE = 0
"""Length of a chunk that stands for the whole utterance: the offline network."""
ActiveLayers = Sequence[bool | Tensor]
"""For each layer whether it runs, or (B,) bool: the rows for which it runs. A layer of some or of
no rows is computed all the same, and its parameters get a gradient, perhaps of zero.
"""


@dataclass
class HubertOutput:
    """Output of the network for a batch of waveforms."""

    last: Tensor
    """(B, T, D) output of the last layer that ran. Pre-norm models: after the final norm, unless
    `layers` stopped before the last layer.
    """
    feature_penalty: Tensor
    """Scalar, fp32: mean square of the conv encoder's output. It is computed after
    `scale_gradient`, so the gradient of the penalty is scaled too.
    """
    encoder_input: Tensor
    """(B, T, D) input of layer 1: projected, masked, with positions added; post-norm models:
    normalised.
    """
    hidden_states: list[Tensor] | None = None
    """Output (B, T, D) of layers 1 ... L after the residual (post-norm models: and its norm), never
    after the final norm. "Layer 6" is `hidden_states[5]`, as in fairseq's
    `extract_features(output_layer=6)`.

    `transformers` differs: its list begins with `encoder_input`, and for pre-norm models its last
    entry is after the final norm in version 4.57, before it in version 5.
    """
    attentions: list[Tensor | None] | None = None
    """Attention weights (B, H, T, T) of layer 1 ... L; None for a layer that was dropped."""


class Hubert(nn.Module):
    """The network: waveform (B, S) -> frames (B, T, D).

    `config` holds every size; `grid` maps samples to frames. `configure` chooses how the same
    result is computed: the attention back end and gradient checkpointing.
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
        self.gradient_checkpointing = False
        if config.conv_gradient_scale == 0:
            self.conv_encoder.requires_grad_(False)

    def configure(
        self,
        *,
        attention: str = "sdpa",
        gradient_checkpointing: bool = False,
        residual: str = "fp32",
        positions: str = AUTO,
    ) -> Hubert:
        """Choose how the same result is computed; returns self.

        Args:
            attention: a name in model/attention.py. Raises ConfigError for an unknown one.
            gradient_checkpointing: compute layers again in the backward pass instead of storing
                their activations: less memory, about a third more time.
            residual: "bf16" rounds the residual stream to bf16 under bf16 autocast, where it is
                fp32 otherwise: less memory traffic, not shown to be harmless.
            positions: form of the positional convolution, a name in model/positional_conv.py; auto:
                as suits the device.
        """
        backend(attention)
        self.attention = attention
        self.gradient_checkpointing = gradient_checkpointing
        self.projection.bf16_residual = residual == "bf16"
        self.context_encoder.positions.form = positions
        return self

    def in_chunks(self, chunk_frames: int | None, left_context_frames: int | None = None) -> Hubert:
        """Let each frame see its own chunk and so many frames before it (None: all); without a
        chunk the whole utterance. Returns self. Raises ConfigError for a network that cannot.
        """
        config = replace(
            self.config, chunk_frames=chunk_frames, left_context_frames=left_context_frames
        )
        config.validate()
        self.config = config
        self.context_encoder.set_chunks(config)
        return self

    def forward(
        self,
        waveform: Tensor,
        *,
        valid: Tensor | None = None,
        mask: Tensor | None = None,
        channel_mask: Tensor | None = None,
        layers: int | None = None,
        active_layers: ActiveLayers | None = None,
        hidden_states: bool = False,
        attentions: bool = False,
        num_samples: Tensor | None = None,
        freeze_front_end: bool = False,
        views: int = 1,
        chunk_frames: int | None = None,
    ) -> HubertOutput:
        """Compute frames from (B, S) float waveforms at 16 kHz.

        The caller normalises the waveform when `config.normalize_waveform` (model/preprocess.py).

        Args:
            valid: (B, T) bool, True for real frames. None: no padding, so no attention mask is
                built and flash attention applies.
            mask: (B, T) bool, True for masked frames.
            channel_mask: (B, D) bool, True for channels that are set to zero.
            layers: run only the first so many layers.
            active_layers: for each layer True, False for a dropped layer, or (B,) bool, True for
                the rows for which it runs; None: all run.
            hidden_states: also return the output of every layer.
            attentions: also return attention weights; the back end is then "eager".
            num_samples: (B,) real samples of each row. With it the norm over time of group-norm
                models leaves padding out: a padded row gives the same frames as alone. No other
                implementation does that, so it is not the default.
            freeze_front_end: no gradients for the conv encoder, a fifth of the cost of Base.
            views: compute so many rows of each waveform, the first of all waveforms first; `valid`,
                `mask`, `channel_mask` and `active_layers` have views x B rows. The front end, which
                no mask changes, runs once.
            chunk_frames: a frame sees its own chunk of so many frames and what precedes it
                (`config.left_context_frames`); WHOLE_UTTERANCE: everything; None: as
                `config.chunk_frames` says.

        Raises DataError for a waveform of another shape or shorter than one window.
        """
        if num_samples is not None and num_samples.shape != waveform.shape[:1]:
            raise DataError(
                f"num_samples must have shape (B,) = {tuple(waveform.shape[:1])}, "
                f"found {tuple(num_samples.shape)}"
            )

        # Front end and projection.
        features = self.encode_frames(waveform, num_samples, freeze=freeze_front_end)  # (B, T, C)
        if views > 1:
            features = features.repeat(views, 1, 1)
        x = self.projection(features)  # (B, T, D)

        # Masked frames become the learnt mask embedding (section II-B of the paper).
        if mask is not None:
            x = torch.where(
                self._frames_like(x, mask, "mask")[..., None], self.mask_embedding.to(x.dtype), x
            )
        if channel_mask is not None:
            if channel_mask.shape != (x.shape[0], x.shape[2]):
                raise DataError(
                    f"channel_mask must have shape (B, D) = {(x.shape[0], x.shape[2])}, "
                    f"found {tuple(channel_mask.shape)}"
                )
            x = x.masked_fill(channel_mask[:, None, :], 0.0)
        if valid is not None:
            self._frames_like(x, valid, "valid")

        # Transformer layers.
        context = self.context_encoder(
            x,
            valid=valid,
            layers=layers,
            active_layers=active_layers,
            attention="eager" if attentions else self.attention,
            gradient_checkpointing=self.gradient_checkpointing,
            chunk_frames=chunk_frames,
        )
        return HubertOutput(
            last=context.last,
            feature_penalty=features.float().square().mean(),
            encoder_input=context.encoder_input,
            hidden_states=context.states if hidden_states else None,
            attentions=context.attentions if attentions else None,
        )

    def encode_frames(
        self, waveform: Tensor, num_samples: Tensor | None = None, *, freeze: bool = False
    ) -> Tensor:
        """The front end alone: (B, S) -> (B, T, C).

        Its gradient is scaled by `config.conv_gradient_scale`. With a scale of 0 or `freeze` no
        gradient is computed.
        """
        if waveform.ndim != 2 or not waveform.is_floating_point():
            raise DataError(
                f"expected a float waveform of shape (B, S), found {waveform.dtype} "
                f"{tuple(waveform.shape)}; mix down to mono"
            )
        if waveform.shape[1] < self.grid.window:
            raise DataError(
                f"waveform of {waveform.shape[1]} samples is shorter than one window of "
                f"{self.grid.window}; leave it out or pad it"
            )
        scale = 0.0 if freeze else self.config.conv_gradient_scale
        with torch.set_grad_enabled(torch.is_grad_enabled() and scale > 0):
            features = self.conv_encoder(
                waveform, num_samples, gradient_checkpointing=self.gradient_checkpointing
            )
        return scale_gradient(features, scale) if scale > 0 else features

    @staticmethod
    def _frames_like(x: Tensor, frames: Tensor, name: str) -> Tensor:
        if frames.shape != x.shape[:2] or frames.dtype != torch.bool:
            raise DataError(
                f"{name} must be bool of shape (B, T) = {tuple(x.shape[:2])}, "
                f"found {frames.dtype} {tuple(frames.shape)}"
            )
        return frames


class FeatureProjection(nn.Module):
    """Norm over channels, projection to the model's width, dropout: (B, T, C) -> (B, T, D)."""

    bf16_residual = False
    """Leave the output in bf16 under autocast. See Hubert.configure."""

    def __init__(self, config: HubertConfig) -> None:
        super().__init__()
        channels = config.frame_channels
        self.norm = (
            LayerNorm(channels, eps=config.layer_norm_eps)
            if config.feat_proj_layer_norm
            else nn.Identity()
        )
        # PyTorch's default initialisation, as in fairseq. fairseq has no such layer when C = D; the
        # reader of its checkpoints inserts an identity.
        self.linear = Linear(channels, config.hidden_size)
        self.dropout = nn.Dropout(config.feat_proj_dropout)

    def forward(self, features: Tensor) -> Tensor:
        """(B, T, C) -> (B, T, D)."""
        x = self.linear(self.norm(features))
        # The residual stream starts here: fp32 under autocast, unless it may be bf16.
        if not (self.bf16_residual and x.dtype == torch.bfloat16):
            x = x.to(self.linear.weight.dtype)
        return self.dropout(x)


class ContextOutput(NamedTuple):
    """Output of the context encoder; the fields are those of HubertOutput."""

    last: Tensor
    encoder_input: Tensor
    states: list[Tensor]
    attentions: list[Tensor | None]


class ContextEncoder(nn.Module):
    """Convolutional positional embedding, then transformer layers: (B, T, D) -> (B, T, D)."""

    def __init__(self, config: HubertConfig) -> None:
        super().__init__()
        self.pre_norm = config.do_stable_layer_norm
        self.set_chunks(config)
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
        active_layers: ActiveLayers | None = None,
        attention: str = "sdpa",
        gradient_checkpointing: bool = False,
        chunk_frames: int | None = None,
    ) -> ContextOutput:
        """(B, T, D) -> ContextOutput. The arguments are those of Hubert.forward and configure."""
        active = self._active(layers, active_layers)
        chunks = self._chunks(chunk_frames, x.shape[1])
        prepare, attend = backend(attention)
        attention_mask = None
        if valid is not None:
            # The positional convolution would carry padding into real frames.
            x = x.masked_fill(~valid[..., None], 0.0)
            attention_mask = prepare(valid, chunks)
        elif chunks is not None:
            attention_mask = prepare(x.new_ones(1, x.shape[1], dtype=torch.bool), chunks)

        # Positions are added once, before layer 1. Post-norm models normalise here, pre-norm models
        # after the last layer.
        x = x + self.positions(x, None if chunks is None else chunks.frames)
        if not self.pre_norm:
            x = self.norm(x)
        x = self.dropout(x)
        encoder_input = x

        states: list[Tensor] = []
        attentions: list[Tensor | None] = []
        for layer, runs in zip(self.layers, active, strict=False):
            y = x
            weights = None
            if runs is False:
                pass
            elif gradient_checkpointing and torch.is_grad_enabled():
                y, weights = checkpoint(layer, x, attention_mask, attend, use_reentrant=False)
            else:
                y, weights = layer(x, attention_mask, attend)
            x = torch.where(runs[:, None, None], y, x) if isinstance(runs, Tensor) else y
            states.append(x)
            attentions.append(weights)
        last = self.norm(x) if self.pre_norm and layers is None else x
        return ContextOutput(last, encoder_input, states, attentions)

    def set_chunks(self, config: HubertConfig) -> None:
        """Take over `chunk_frames` and `left_context_frames`."""
        self.chunk_frames = config.chunk_frames or WHOLE_UTTERANCE
        self.left_context_frames = config.left_context_frames

    def _chunks(self, chunk_frames: int | None, num_frames: int) -> Chunks | None:
        """The chunks of an utterance; None where all frames see each other, for which back ends
        have faster kernels.
        """
        length = self.chunk_frames if chunk_frames is None else chunk_frames
        if length == WHOLE_UTTERANCE or length >= num_frames:
            return None
        return Chunks(length, self.left_context_frames)

    def _active(self, layers: int | None, active_layers: ActiveLayers | None) -> ActiveLayers:
        """For each of the first `layers` layers: whether it runs, or for which rows."""
        depth = self._depth(layers)
        if active_layers is None:
            return [True] * depth
        if len(active_layers) < depth:
            raise DataError(
                f"active_layers has {len(active_layers)} values for {depth} layers; "
                "give one value per layer"
            )
        return active_layers[:depth]

    def _depth(self, layers: int | None) -> int:
        if layers is None:
            return len(self.layers)
        if not 1 <= layers <= len(self.layers):
            raise DataError(
                f"layer {layers} does not exist; the network has layers 1 to {len(self.layers)}"
            )
        return layers


class Block(nn.Module):
    """A transformer layer: self-attention and feed-forward, each in a residual branch.

    (B, T, D) -> (B, T, D). The norm is after the residual (post-norm, Base) or at the start of the
    branch (pre-norm, Large). With `adapter_attn_dim` an adapter follows in a branch of its own.
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
        self, x: Tensor, attention_mask: AttentionMask, attend: AttentionFn
    ) -> tuple[Tensor, Tensor | None]:
        """(B, T, D) -> (B, T, D) and attention weights (B, H, T, T), if the back end has them."""
        if self.pre_norm:
            y, weights = self.attention(self.attention_norm(x), attention_mask, attend)
            x = x + self.dropout(y)
            x = x + self.dropout(self.feed_forward(self.feed_forward_norm(x)))
        else:
            y, weights = self.attention(x, attention_mask, attend)
            x = self.attention_norm(x + self.dropout(y))
            x = self.feed_forward_norm(x + self.dropout(self.feed_forward(x)))
        if self.adapter is not None:
            x = x + self.adapter(x)
        return x, weights


class SelfAttention(nn.Module):
    """Multi-head self-attention: (B, T, D) -> (B, T, D).

    One matrix product makes queries, keys and values.
    """

    def __init__(self, config: HubertConfig) -> None:
        super().__init__()
        self.heads = config.num_attention_heads
        self.dropout = config.attention_dropout
        # Rows of the weight: queries, keys, values.
        self.qkv = _linear(config.hidden_size, 3 * config.hidden_size, config.initializer_range)
        self.out = _linear(config.hidden_size, config.hidden_size, config.initializer_range)

    def forward(
        self, x: Tensor, attention_mask: AttentionMask, attend: AttentionFn
    ) -> tuple[Tensor, Tensor | None]:
        """(B, T, D) -> (B, T, D) and the attention weights, if `attend` has them."""
        batch, frames, width = x.shape
        # By chunk, whose backward pass is one copy; that of an unbound dimension would be two.
        q, k, v = (
            part.view(batch, frames, self.heads, width // self.heads).transpose(1, 2)
            for part in self.qkv(x).chunk(3, dim=-1)
        )  # each (B, H, T, D / H)
        dropout = self.dropout if self.training else 0.0
        y, weights = attend(q, k, v, attention_mask, dropout)  # y: (B, H, T, D / H)
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
    """Bottleneck adapter: norm, projection to a few channels, ReLU, projection back.

    (B, T, D) -> (B, T, D), added to a layer's output (arXiv:2305.13516, section 4.2;
    `transformers`' HubertAttnAdapterLayer). One set per language: model/language_adapters.py. The
    last projection starts at zero, so a new adapter changes nothing.
    """

    def __init__(self, config: HubertConfig, width: int) -> None:
        super().__init__()
        self.norm = LayerNorm(config.hidden_size)  # eps 1e-5, unlike config.layer_norm_eps
        self.down = _linear(config.hidden_size, width, config.initializer_range)
        self.up = _linear(width, config.hidden_size, 0.0)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        return self.up(F.relu(self.down(self.norm(x))))


class LayerNorm(nn.LayerNorm):
    """Layer norm with statistics in fp32. bf16 stays bf16; anything else is computed in fp32 and
    returned in the dtype of the weights, so under autocast an fp32 residual stream stays fp32.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        if x.dtype == torch.bfloat16:
            return layer_norm(x, self)
        y = F.layer_norm(
            x.float(), self.normalized_shape, self.weight.float(), self.bias.float(), self.eps
        )
        return y.to(self.weight.dtype)


def _linear(inputs: int, outputs: int, std: float) -> Linear:
    """Linear projection initialised like BERT's: weights N(0, std), bias 0."""
    linear = Linear(inputs, outputs)
    nn.init.normal_(linear.weight, std=std)
    nn.init.zeros_(linear.bias)
    return linear
