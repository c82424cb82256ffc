"""Configuration of a network: a plain dataclass, without torch, so that the command line checks a
recipe quickly.

Some fields of `transformers.HubertConfig` are no part of the network. They are settings of:

| field | here |
|---|---|
| vocab_size, final_dropout | heads.CTCHead |
| use_weighted_layer_sum, classifier_proj_size | heads.ClassificationHead |
| ctc_loss_reduction, ctc_zero_infinity | finetune.ctc.CtcTask |
| apply_spec_augment, mask_time_*, mask_feature_* | spec_augment.SpecAugment |
| pad_token_id | the blank, here always the first symbol of the vocabulary |
| bos_token_id, eos_token_id | those symbols in the vocabulary |
| target_lang | interop.load.load_checkpoint(target_lang=) |

Fields of a checkpoint read from `transformers` are kept in its `extra["transformers"]`, and an
export writes them again.
"""

from __future__ import annotations

from dataclasses import dataclass

from hubert_pretrain.fields import (
    Allowed,
    all_between,
    between,
    choice,
    faults_of_values,
    field,
    positive,
    raise_faults,
    share,
    share_below_one,
    zero_or_more,
)
from hubert_pretrain.frames import FrameGrid, samples

ACTIVATIONS = ["gelu", "relu", "selu", "gelu_new", "silu"]
"""Names of `transformers`; "gelu" is the exact one (erf), "gelu_new" the tanh approximation."""

FRONT_ENDS = ["conv", "log_mel"]
"""From waveform to frames: the conv encoder, or log-mel energies, which cost almost nothing
(model/log_mel.py).
"""

POSITIONAL_FORMS = ["conv", "fft", "products"]
"""Forms of the positional convolution (model/positional_conv.py). They give the same numbers."""
ATTENTIONS = ["sdpa", "eager", "flex"]
"""Attention back ends (model/attention.py). They give the same numbers, so they are no part of the
configuration of a network.
"""

ADAPTER_WIDTH = 16
"""Width of new adapters, unless it is stated: that of MMS."""
COMPILED = ["none", "auto", "parts"]
"""Values of `trainer.compile` (model/compile.py)."""
COMPILE_MODES = ["default", "max-autotune-no-cudagraphs"]
"""Modes of `torch.compile` without CUDA graphs."""
NO_CUDA_GRAPHS = (
    "the others replay CUDA graphs, which write over the gradients that a step accumulates"
)

SPAN_LENGTHS = ["static", "uniform", "normal", "poisson"]
"""Distributions of the lengths of masked spans (model/masking.py)."""

MASK_SAMPLERS = ["reference", "transformers"]
"""Mask samplers of fine-tuning: fairseq's (model/masking.py) or that of `transformers`
(model/spec_augment.py).
"""


@dataclass
class SpanMask:
    """Settings of masks: spans of frames from random starts (paper section II-B).

    The same settings make masks of channels, where a "frame" is one of D channels. A name in
    brackets is fairseq's.
    """

    probability: float = field(0.8, share)
    """Expected share of frames that start inside a span, before overlaps [mask_prob]."""
    span_frames: int = field(10, positive)
    """L, the length of a span [mask_length]."""
    min_spans: int = field(2, zero_or_more)
    """Spans per row, at least."""
    lengths: str = field("static", choice(*SPAN_LENGTHS))
    """Distribution of their lengths: static (L), uniform (length_other to 2 L), normal (mean L,
    deviation length_other, at least 1) or poisson (mean L) [mask_selection]."""
    length_other: float = field(0.0, zero_or_more)
    """Second parameter of uniform and normal [mask_other]."""
    overlap: bool = True
    """Spans may overlap [not no_mask_overlap]."""
    min_space: int = field(1, zero_or_more)
    """Unmasked frames between spans that may not overlap [mask_min_space]."""


MAX_CONV_LAYERS = 64
MAX_MEL_SECONDS = 10.0


def _span_of(least: int) -> Allowed:
    """Seconds that are at least so many samples."""
    return Allowed(
        f"at least {least} samples and at most {MAX_MEL_SECONDS:g} s, e.g. 0.01",
        lambda value: value <= MAX_MEL_SECONDS and samples(value) >= least,
    )


@dataclass
class HubertConfig:
    """All that determines the shapes of the weights and the function that the network computes.

    Fields are named as in `transformers.HubertConfig`; fairseq's name, where it differs, is in
    brackets. Defaults are HuBERT Base.
    """

    front_end: str = field("conv", choice(*FRONT_ENDS))
    """conv: the conv encoder; log_mel: mel energies, then only feat_extract_activation of the conv
    encoder's fields is read."""

    # -- log-mel front end: waveform -> frames
    mel_bins: int = field(80, between(1, 1024))
    """Mel bands."""
    mel_hop_seconds: float = field(0.01, _span_of(1))
    """Time from one mel frame to the next."""
    mel_window_seconds: float = field(0.025, _span_of(2))
    """Time that one mel frame sees."""
    mel_stack: int = field(2, between(1, 64))
    """Mel frames side by side in one frame: 2 make a frame every 20 ms, 4 every 40 ms."""

    # -- conv encoder: waveform -> frames
    conv_dim: list[int] = field([512] * 7, all_between(1, 16_384))
    """Channels of each layer."""
    conv_kernel: list[int] = field([10, 3, 3, 3, 3, 2, 2], all_between(1, 4096))
    """Samples (layer 1) or frames that each layer sees: together a window of 25 ms."""
    conv_stride: list[int] = field([5, 2, 2, 2, 2, 2, 2], all_between(1, 4096))
    """Steps of each layer: together a frame every 20 ms."""
    conv_bias: bool = False
    """Convolutions have biases."""
    feat_extract_norm: str = field("group", choice("group", "layer"))
    """group: norm over time in layer 1 only; layer: over channels in each layer
    [extractor_mode]."""
    feat_extract_activation: str = field("gelu", choice(*ACTIVATIONS))
    """Activation of the conv encoder and of the positional convolution."""
    conv_gradient_scale: float = field(0.1, zero_or_more)
    """Gradient into the conv encoder times this; 0 freezes it [feature_grad_mult]."""

    # -- frames -> context encoder
    feat_proj_layer_norm: bool = True
    """Layer norm before the projection of frames to hidden_size."""
    feat_proj_dropout: float = field(0.1, share_below_one)
    """Dropout after that projection [dropout_input]."""

    # -- context encoder
    hidden_size: int = field(768, between(1, 32_768))
    """D, the width of the transformer [encoder_embed_dim]."""
    num_hidden_layers: int = field(12, between(1, 1024))
    """Transformer layers [encoder_layers]."""
    num_attention_heads: int = field(12, between(1, 1024))
    """Attention heads of each layer [encoder_attention_heads]."""
    intermediate_size: int = field(3072, between(1, 262_144))
    """Width of the feed-forward layers [encoder_ffn_embed_dim]."""
    hidden_act: str = field("gelu", choice(*ACTIVATIONS))
    """Activation of the feed-forward layers [activation_fn]."""
    hidden_dropout: float = field(0.1, share_below_one)
    """Dropout after attention, feed-forward and positions [dropout]."""
    attention_dropout: float = field(0.1, share_below_one)
    """Dropout of attention weights."""
    activation_dropout: float = field(0.0, share_below_one)
    """Dropout inside the feed-forward layers."""
    layerdrop: float = field(0.05, share_below_one)
    """Probability that a layer is left out of a training step [encoder_layerdrop]."""
    layer_norm_eps: float = field(1e-5, positive)
    """Epsilon of the layer norms."""
    do_stable_layer_norm: bool = False
    """False: norm after each residual; True: before it [layer_norm_first]."""
    num_conv_pos_embeddings: int = field(128, between(1, 4096))
    """Frames that the positional convolution sees [conv_pos]."""
    num_conv_pos_embedding_groups: int = field(16, between(1, 32_768))
    """Groups of the positional convolution [conv_pos_groups]."""
    conv_pos_batch_norm: bool = False
    """Positional convolution. False: normalised weights; True: batch norm before it."""
    adapter_attn_dim: int | None = field(None, between(1, 32_768))
    """Width of an adapter after each layer, swapped per language; null: no adapters."""
    initializer_range: float = field(0.02, positive)
    """Standard deviation of the initial weights of the transformer layers."""

    # -- streaming (model/streaming.py)
    chunk_frames: int | None = field(None, between(1, 100_000))
    """A frame sees its own chunk of so many frames and what precedes it; null: the whole utterance.
    Only without norms over the whole utterance (docs/streaming.md)."""
    left_context_frames: int | None = field(None, zero_or_more)
    """Frames before its chunk that a frame attends to; null: all."""

    # -- input and output
    normalize_waveform: bool = False
    """Zero mean and unit variance per utterance before the network [task.normalize]."""
    projection_size: int = field(256, between(1, 32_768))
    """d, the width of the unit embeddings that pretraining predicts [final_dim]."""

    @property
    def grid(self) -> FrameGrid:
        """The frame grid that the front end makes."""
        if self.front_end == "conv":
            return FrameGrid.of_convolutions(self.conv_kernel, self.conv_stride)
        return self.mel_grid.every(self.mel_stack)

    @property
    def mel_grid(self) -> FrameGrid:
        """The grid of the mel frames of a log-mel front end, before stacking."""
        return FrameGrid(window=samples(self.mel_window_seconds), hop=samples(self.mel_hop_seconds))

    @property
    def frame_channels(self) -> int:
        """C, the width of a frame of the front end."""
        return self.conv_dim[-1] if self.front_end == "conv" else self.mel_stack * self.mel_bins

    def validate(self) -> None:
        """Raises ConfigError when no network can have these values: each fault names the field, the
        value and the expectation.

        Upper limits are about ten times the largest speech networks: a file with a larger value is
        damaged, or made to fill the memory.
        """
        wrong = faults_of_values(self, "model")
        raise_faults(list(wrong.values()) or self._faults_between_fields())

    def _faults_between_fields(self) -> list[str]:
        unequal = [
            f"model.{name} {getattr(self, name)}"
            for name in ("num_attention_heads", "num_conv_pos_embedding_groups")
            if self.hidden_size % getattr(self, name)
        ]
        faults = []
        if unequal:
            faults.append(
                f"model.hidden_size {self.hidden_size} is not a multiple of {' and '.join(unequal)}"
            )
        if self.chunk_frames is not None:
            faults += faults_of_streaming(self, f"model.chunk_frames={self.chunk_frames}")
        if self.front_end != "conv":
            return faults
        lengths = {
            name: len(getattr(self, name)) for name in ("conv_dim", "conv_kernel", "conv_stride")
        }
        if len(set(lengths.values())) != 1 or not self.conv_dim:
            found = ", ".join(f"model.{name} has {length}" for name, length in lengths.items())
            faults.append(
                f"each conv layer needs a width, a kernel and a stride, but {found} values; "
                "give each the same number"
            )
        if len(self.conv_dim) > MAX_CONV_LAYERS:
            faults.append(
                f"model.conv_dim has {len(self.conv_dim)} layers, "
                f"but at most {MAX_CONV_LAYERS} are allowed"
            )
        return faults


def faults_of_streaming(config: HubertConfig, key: str, normalize: str = "model") -> list[str]:
    """One line for each part of a network that needs the whole utterance, so that no chunk of
    frames can be computed before its end.

    Args:
        key: the setting that asks for chunks, with its value.
        normalize: section of the `normalize_waveform` that the user sets.
    """
    faults = []
    if config.front_end == "conv" and config.feat_extract_norm == "group":
        faults.append(
            f"{key} with model.feat_extract_norm=group: the norm of the first conv layer takes "
            "mean and variance over the whole utterance; set model.feat_extract_norm=layer or "
            "model.front_end=log_mel"
        )
    if config.normalize_waveform:
        faults.append(
            f"{key} with normalize_waveform=true: the waveform is normalised over the whole "
            f"utterance; set {normalize}.normalize_waveform=false"
        )
    return faults
