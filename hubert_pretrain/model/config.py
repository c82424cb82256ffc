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
| target_lang | language_adapters.load_language |

Fields of a checkpoint read from `transformers` are kept in its `extra["transformers"]`, and an
export writes them again.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from hubert_pretrain.errors import ConfigError, did_you_mean
from hubert_pretrain.frames import FrameGrid, samples

ACTIVATIONS = ["gelu", "relu", "selu", "gelu_new", "silu"]
"""Names of `transformers`; "gelu" is the exact one (erf), "gelu_new" the tanh approximation."""

FRONT_ENDS = ["conv", "log_mel"]
"""From waveform to frames: the conv encoder, or log-mel energies, which cost almost nothing
(model/log_mel.py).
"""

ATTENTIONS = ["sdpa", "eager", "flex"]
"""Attention back ends (model/attention.py). They give the same numbers, so they are no part of the
configuration of a network.
"""

COMPILED = ["none", "layers", "model"]
"""Parts of the network that are compiled (model/compile.py)."""
COMPILE_MODES = ["default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"]
"""Modes of `torch.compile`."""

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

    probability: float = 0.8
    """Expected share of frames that start inside a span, before overlaps [mask_prob]."""
    span_frames: int = 10
    """L, the length of a span [mask_length]."""
    min_spans: int = 2
    """Spans per row, at least."""
    lengths: str = "static"
    """Distribution of their lengths: static (L), uniform (length_other to 2 L), normal (mean L,
    deviation length_other, at least 1) or poisson (mean L) [mask_selection]."""
    length_other: float = 0.0
    """Second parameter of uniform and normal [mask_other]."""
    overlap: bool = True
    """Spans may overlap [not no_mask_overlap]."""
    min_space: int = 1
    """Unmasked frames between spans that may not overlap [mask_min_space]."""


LARGEST: dict[str, float] = {
    "mel_bins": 1024,
    "mel_hop_seconds": 10,
    "mel_window_seconds": 10,
    "mel_stack": 64,
    "conv_dim": 16_384,
    "conv_kernel": 4096,
    "conv_stride": 4096,
    "hidden_size": 32_768,
    "num_hidden_layers": 1024,
    "num_attention_heads": 1024,
    "intermediate_size": 262_144,
    "num_conv_pos_embeddings": 4096,
    "num_conv_pos_embedding_groups": 32_768,
    "adapter_attn_dim": 32_768,
    "projection_size": 32_768,
}
"""Upper limits, about ten times those of the largest speech networks. A file with a larger value is
damaged, or made to fill the memory.
"""
MAX_CONV_LAYERS = 64


@dataclass
class HubertConfig:
    """All that determines the shapes of the weights and the function that the network computes.

    Fields are named as in `transformers.HubertConfig`; fairseq's name, where it differs, is in
    brackets. Defaults are HuBERT Base.
    """

    front_end: str = "conv"
    """conv: the conv encoder; log_mel: mel energies, then only feat_extract_activation of the conv
    encoder's fields is read."""

    # -- log-mel front end: waveform -> frames
    mel_bins: int = 80
    """Mel bands."""
    mel_hop_seconds: float = 0.01
    """Time from one mel frame to the next."""
    mel_window_seconds: float = 0.025
    """Time that one mel frame sees."""
    mel_stack: int = 2
    """Mel frames side by side in one frame: 2 make a frame every 20 ms, 4 every 40 ms."""

    # -- conv encoder: waveform -> frames
    conv_dim: list[int] = field(default_factory=lambda: [512] * 7)
    """Channels of each layer."""
    conv_kernel: list[int] = field(default_factory=lambda: [10, 3, 3, 3, 3, 2, 2])
    """Samples (layer 1) or frames that each layer sees: together a window of 25 ms."""
    conv_stride: list[int] = field(default_factory=lambda: [5, 2, 2, 2, 2, 2, 2])
    """Steps of each layer: together a frame every 20 ms."""
    conv_bias: bool = False
    """Convolutions have biases."""
    feat_extract_norm: str = "group"
    """group: norm over time in layer 1 only; layer: over channels in each layer
    [extractor_mode]."""
    feat_extract_activation: str = "gelu"
    """Activation of the conv encoder and of the positional convolution: gelu, relu, selu, gelu_new
    or silu."""
    conv_gradient_scale: float = 0.1
    """Gradient into the conv encoder times this; 0 freezes it [feature_grad_mult]."""

    # -- frames -> context encoder
    feat_proj_layer_norm: bool = True
    """Layer norm before the projection of frames to hidden_size."""
    feat_proj_dropout: float = 0.1
    """Dropout after that projection [dropout_input]."""

    # -- context encoder
    hidden_size: int = 768
    """D, the width of the transformer [encoder_embed_dim]."""
    num_hidden_layers: int = 12
    """Transformer layers [encoder_layers]."""
    num_attention_heads: int = 12
    """Attention heads of each layer [encoder_attention_heads]."""
    intermediate_size: int = 3072
    """Width of the feed-forward layers [encoder_ffn_embed_dim]."""
    hidden_act: str = "gelu"
    """Activation of the feed-forward layers: gelu, relu, selu, gelu_new or silu [activation_fn]."""
    hidden_dropout: float = 0.1
    """Dropout after attention, feed-forward and positions [dropout]."""
    attention_dropout: float = 0.1
    """Dropout of attention weights."""
    activation_dropout: float = 0.0
    """Dropout inside the feed-forward layers."""
    layerdrop: float = 0.05
    """Probability that a layer is left out of a training step [encoder_layerdrop]."""
    layer_norm_eps: float = 1e-5
    """Epsilon of the layer norms."""
    do_stable_layer_norm: bool = False
    """False: norm after each residual; True: before it [layer_norm_first]."""
    num_conv_pos_embeddings: int = 128
    """Frames that the positional convolution sees [conv_pos]."""
    num_conv_pos_embedding_groups: int = 16
    """Groups of the positional convolution [conv_pos_groups]."""
    conv_pos_batch_norm: bool = False
    """Positional convolution. False: normalised weights; True: batch norm before it."""
    adapter_attn_dim: int | None = None
    """Width of an adapter after each layer, swapped per language; null: no adapters."""
    initializer_range: float = 0.02
    """Standard deviation of the initial weights of the transformer layers."""

    # -- input and output
    normalize_waveform: bool = False
    """Zero mean and unit variance per utterance before the network [task.normalize]."""
    projection_size: int = 256
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
        """Raises ConfigError when no network can have these values, naming the field, the value and
        the expectation.
        """
        self._validate_sizes()
        _one_of("front_end", self.front_end, FRONT_ENDS)
        if self.front_end == "conv":
            self._validate_conv_encoder()
        else:
            self._validate_log_mel()
        self._validate_context_encoder()
        for name in ("feat_extract_activation", "hidden_act"):
            _one_of(name, getattr(self, name), ACTIVATIONS)
        for name in (
            "feat_proj_dropout",
            "hidden_dropout",
            "attention_dropout",
            "activation_dropout",
            "layerdrop",
        ):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ConfigError(
                    f"model.{name} is {getattr(self, name)}, "
                    "but a probability in [0, 1) was expected"
                )

    def _validate_sizes(self) -> None:
        """Upper limits, checked before anything is built."""
        for name, most in LARGEST.items():
            value = getattr(self, name)
            largest = max(value, default=0) if isinstance(value, list) else value
            if largest is not None and not largest <= most:
                raise ConfigError(
                    f"model.{name} is {largest}, but at most {most} is allowed; "
                    "no network is so large"
                )
        if len(self.conv_dim) > MAX_CONV_LAYERS:
            raise ConfigError(
                f"model.conv_dim has {len(self.conv_dim)} layers, "
                f"but at most {MAX_CONV_LAYERS} are allowed"
            )

    def _validate_conv_encoder(self) -> None:
        lengths = {
            name: len(getattr(self, name)) for name in ("conv_dim", "conv_kernel", "conv_stride")
        }
        if len(set(lengths.values())) != 1 or not self.conv_dim:
            found = ", ".join(f"model.{name} has {length}" for name, length in lengths.items())
            raise ConfigError(
                f"each conv layer needs a width, a kernel and a stride, but {found} values; "
                "give each the same number"
            )
        for name in lengths:
            if min(getattr(self, name)) < 1:
                raise ConfigError(
                    f"model.{name} is {list(getattr(self, name))}, "
                    "but every value must be at least 1"
                )
        _one_of("feat_extract_norm", self.feat_extract_norm, ["group", "layer"])
        if self.conv_gradient_scale < 0:
            raise ConfigError(
                f"model.conv_gradient_scale is {self.conv_gradient_scale}, "
                "but it must be 0 (frozen) or more"
            )

    def _validate_log_mel(self) -> None:
        for name in ("mel_bins", "mel_stack"):
            if getattr(self, name) < 1:
                raise ConfigError(
                    f"model.{name} is {getattr(self, name)}, but it must be at least 1"
                )
        for name, least in (("mel_hop_seconds", 1), ("mel_window_seconds", 2)):
            if samples(getattr(self, name)) < least:
                raise ConfigError(
                    f"model.{name} is {getattr(self, name)}, "
                    f"but it must be at least {least} samples, e.g. 0.01"
                )

    def _validate_context_encoder(self) -> None:
        for name in (
            "hidden_size",
            "num_hidden_layers",
            "num_attention_heads",
            "intermediate_size",
            "projection_size",
        ):
            if getattr(self, name) < 1:
                raise ConfigError(
                    f"model.{name} is {getattr(self, name)}, but it must be at least 1"
                )
        for name in ("num_attention_heads", "num_conv_pos_embedding_groups"):
            if self.hidden_size % getattr(self, name):
                raise ConfigError(
                    f"model.hidden_size {self.hidden_size} is not a multiple of "
                    f"model.{name} {getattr(self, name)}"
                )
        for name in ("num_conv_pos_embeddings", "adapter_attn_dim"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ConfigError(
                    f"model.{name} is {getattr(self, name)}, but it must be at least 1"
                )
        for name in ("layer_norm_eps", "initializer_range"):
            if not getattr(self, name) > 0:
                raise ConfigError(
                    f"model.{name} is {getattr(self, name)}, but it must be more than 0"
                )


def _one_of(name: str, value: str, choices: list[str]) -> None:
    if value not in choices:
        expected = f"one of {', '.join(choices)} was expected{did_you_mean(value, choices)}"
        raise ConfigError(f"model.{name} is {value!r}, but {expected}")
