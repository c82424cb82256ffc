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

    def forward(self, waveform: Tensor, num_samples: Tensor | None = None) -> Tensor:
        """(B, S) -> (B, T, C). `num_samples`: (B,) real samples of each row, for norms over time that leave padding out."""
        x = waveform[:, None]  # (B, 1, S)
        for layer in self.layers:
            x = layer(x, num_samples)
            num_samples = None  # only layer 1 can have a norm over time
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

    def forward(self, x: Tensor, num_samples: Tensor | None = None) -> Tensor:
        """(B, C_in, S) -> (B, C_out, S'). `num_samples`: (B,) real inputs of each row, None when all are."""
        x = self.conv(x)
        if num_samples is not None and isinstance(self.norm, TimeNorm):
            x = self.norm(x, (num_samples - self.conv.kernel_size[0]) // self.conv.stride[0] + 1)
        elif self.norm is not None:
            x = self.norm(x)
        return self.activation(x)


class TimeNorm(nn.GroupNorm):
    """Each channel to zero mean and unit variance over time: a group norm with one channel per group.

    Padding is part of the statistics, as in every other implementation, unless the real lengths are given.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(num_groups=channels, num_channels=channels)

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """(B, C, S) -> (B, C, S), in fp32 whatever the precision (a sum over 50,000 samples), returned in the dtype it came in.

        lengths: (B,) real positions of each row, at its beginning; None when all are.
        """
        weight, bias = self.weight.float(), self.bias.float()
        if lengths is None:
            return F.group_norm(x.float(), self.num_groups, weight, bias, self.eps).to(x.dtype)
        count = lengths[:, None, None].clamp(min=1)  # an empty row must not become NaN
        real = torch.arange(x.shape[2], device=x.device) < count  # (B, 1, S)
        mean = x.float().mul(real).sum(2, keepdim=True) / count  # (B, C, 1)
        centred = x.float() - mean
        variance = centred.square().mul(real).sum(2, keepdim=True) / count
        return (centred * torch.rsqrt(variance + self.eps) * weight[:, None] + bias[:, None]).to(x.dtype)


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
