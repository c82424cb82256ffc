"""The conv encoder: waveform -> frames (wav2vec 2.0, arXiv:2006.11477, section 2; fairseq's ConvFeatureExtractionModel).

Shapes: B utterances, S samples, T frames, C channels.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hubert_pretrain.model.config import HubertConfig

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "relu": F.relu,
    "selu": F.selu,
    "gelu_new": partial(F.gelu, approximate="tanh"),
    "silu": F.silu,
}


class ConvEncoder(nn.Module):
    """A stack of unpadded convolutions: (B, S) -> (B, T, C), with `T = config.grid.num_frames(S)`."""

    def __init__(self, config: HubertConfig) -> None:
        super().__init__()
        widths = [1, *config.conv_dim]
        self.layers = nn.ModuleList(
            ConvLayer(
                widths[i],
                widths[i + 1],
                kernel=config.conv_kernel[i],
                stride=config.conv_stride[i],
                bias=config.conv_bias,
                norm=config.feat_extract_norm if i == 0 or config.feat_extract_norm == "layer" else None,
                activation=config.feat_extract_activation,
            )
            for i in range(len(config.conv_dim))
        )

    def forward(self, waveform: Tensor) -> Tensor:
        """(B, S) -> (B, T, C)."""
        x = waveform[:, None]  # (B, 1, S)
        for layer in self.layers:
            x = layer(x)
        return x.transpose(1, 2)  # (B, C, T) -> (B, T, C)


class ConvLayer(nn.Module):
    """Convolution, norm (over time per channel, over channels, or none), activation: (B, C_in, S) -> (B, C_out, S')."""

    def __init__(
        self, channels_in: int, channels_out: int, *, kernel: int, stride: int, bias: bool, norm: str | None, activation: str
    ) -> None:
        super().__init__()
        self.conv = nn.Conv1d(channels_in, channels_out, kernel, stride=stride, bias=bias)
        nn.init.kaiming_normal_(self.conv.weight)
        norms = {"group": TimeNorm, "layer": ChannelNorm}
        self.norm = norms[norm](channels_out) if norm else None
        self.activation = ACTIVATIONS[activation]

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, S) -> (B, C_out, S')."""
        x = self.conv(x)
        if self.norm is not None:
            x = self.norm(x)
        return self.activation(x)


class TimeNorm(nn.GroupNorm):
    """Each channel to zero mean and unit variance over time: a group norm with one channel per group. Padding is part of the statistics."""

    def __init__(self, channels: int) -> None:
        super().__init__(num_groups=channels, num_channels=channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, S) -> (B, C, S), in fp32 whatever the precision (a sum over 50,000 samples), returned in the dtype it came in."""
        return F.group_norm(x.float(), self.num_groups, self.weight.float(), self.bias.float(), self.eps).to(x.dtype)


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of (B, C, S), in fp32, returned in the dtype it came in."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, S) -> (B, C, S)."""
        y = x.float().transpose(1, 2)
        y = F.layer_norm(y, self.normalized_shape, self.weight.float(), self.bias.float(), self.eps)
        return y.transpose(1, 2).to(x.dtype)


class GradientScale(torch.autograd.Function):
    """Identity whose gradient is multiplied (fairseq's GradMultiply)."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor, scale: float) -> Tensor:  # noqa: D102
        ctx.scale = scale  # type: ignore[attr-defined]
        return x.view_as(x)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]  # noqa: D102
        return gradient * ctx.scale, None  # type: ignore[attr-defined]


def scale_gradient(x: Tensor, scale: float) -> Tensor:
    """`x`, whose gradient will be multiplied by `scale`."""
    return x if scale == 1.0 else GradientScale.apply(x, scale)
