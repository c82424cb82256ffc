"""The conv encoder: waveform -> frames (wav2vec 2.0, arXiv:2006.11477, section 2; fairseq's
ConvFeatureExtractionModel).

Shapes: B utterances, S samples, T frames, C channels.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hubert_pretrain.model.config import HubertConfig
from hubert_pretrain.model.tiled_convolution import Before, convolve_after

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "relu": F.relu,
    "selu": F.selu,
    "gelu_new": partial(F.gelu, approximate="tanh"),
    "silu": F.silu,
}


class ConvEncoder(nn.Module):
    """A stack of unpadded convolutions: (B, S) -> (B, T, C), with `T = config.grid.num_frames(S)`.

    With gradients it is computed as matrix products of strided views (model/tiled_convolution.py).
    Without them PyTorch's own convolution and norm run: as fast there, and every bit is that of
    other libraries.
    """

    def __init__(self, config: HubertConfig) -> None:
        super().__init__()
        widths = [1, *config.conv_dim]
        self.layers = nn.Sequential(
            *(
                ConvLayer(
                    widths[i],
                    widths[i + 1],
                    kernel=config.conv_kernel[i],
                    stride=config.conv_stride[i],
                    bias=config.conv_bias,
                    norm=config.feat_extract_norm
                    if i == 0 or config.feat_extract_norm == "layer"
                    else None,
                    activation=config.feat_extract_activation,
                )
                for i in range(len(config.conv_dim))
            )
        )

    def forward(self, waveform: Tensor, num_samples: Tensor | None = None) -> Tensor:
        """(B, S) -> (B, T, C). `num_samples`: (B,) real samples of each row, for norms over time
        that leave padding out.
        """
        if torch.is_grad_enabled():
            return self._by_products(waveform, num_samples)
        first, *others = self.layers
        x = first(waveform[:, None], num_samples)  # (B, C, U)
        for layer in others:
            x = layer(x)
        return x.transpose(1, 2)  # (B, C, T) -> (B, T, C)

    def _by_products(self, waveform: Tensor, num_samples: Tensor | None) -> Tensor:
        """(B, S) -> (B, T, C). Norm and activation of a layer are left to the next one, which
        computes them again for its gradients.
        """
        first, *others = cast("list[ConvLayer]", list(self.layers))
        if torch.compiler.is_compiling() and not isinstance(first.norm, TimeNorm):
            # A compiler fuses norms and activations, and decides itself what to compute again for
            # the gradients.
            return self.layers(waveform[:, None]).transpose(1, 2)
        # (B, S, 1)
        x = waveform[..., None]
        before = first.as_before(waveform[..., None], num_samples)
        if torch.compiler.is_compiling():
            y = before.function(x, *before.tensors).transpose(1, 2)  # (B, C, U)
            return self.layers[1:](y).transpose(1, 2)
        for layer in others:
            x = convolve_after(
                before, x, layer.conv.weight, layer.conv.bias, layer.stride
            )  # (B, T, C)
            before = Before(layer.finish, layer.finish_weights)
        return before.function(x, *before.tensors)


class ConvLayer(nn.Module):
    """Convolution, norm (over time per channel, over channels, or none) and activation."""

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        *,
        kernel: int,
        stride: int,
        bias: bool,
        norm: str | None,
        activation: str,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv1d(channels_in, channels_out, kernel, stride=stride, bias=bias)
        nn.init.kaiming_normal_(self.conv.weight)
        norms = {"group": TimeNorm, "layer": ChannelNorm}
        self.norm = norms[norm](channels_out) if norm else None
        self.activation = ACTIVATIONS[activation]
        self.stride = stride

    @property
    def finish_weights(self) -> tuple[Any, ...]:
        """Weight and bias of the norm, if there is one."""
        return () if self.norm is None else (self.norm.weight, self.norm.bias)

    def forward(self, x: Tensor, num_samples: Tensor | None = None) -> Tensor:
        """(B, C_in, T) -> (B, C_out, U), by PyTorch's convolution. `num_samples`: as in
        ConvEncoder.forward.
        """
        y = self.conv(x)
        if isinstance(self.norm, TimeNorm):
            real = (
                None
                if num_samples is None
                else (num_samples - self.conv.kernel_size[0]) // self.stride + 1
            )
            return self.activation(self.norm(y, real))
        if isinstance(self.norm, ChannelNorm):
            y = self.norm.normalise(y.transpose(1, 2), self.norm.weight, self.norm.bias).transpose(
                1, 2
            )
        return self.activation(y)

    def finish(self, y: Tensor, *norm: Tensor) -> Tensor:
        """What follows the convolution, given the weights of the norm: (B, U, C_out) -> (B, U,
        C_out).
        """
        return self.activation(
            self.norm.normalise(y, *norm) if isinstance(self.norm, ChannelNorm) else y
        )

    def as_before(self, x: Tensor, num_samples: Tensor | None) -> Before:
        """The layer as what comes before the next one, for narrow inputs (B, S, C_in): its windows
        times its kernel, norm, activation.
        """
        # (C_out, C_in k)
        flat = self.conv.weight.flatten(1)
        kernel = self.conv.kernel_size[0]
        if isinstance(self.norm, TimeNorm):  # which takes a bias away again
            folded = self.norm.folded_into(self.conv.weight, x, self.stride, num_samples)
        else:
            bias = flat.new_zeros(len(flat)) if self.conv.bias is None else self.conv.bias
            folded = torch.cat([flat, bias[:, None]], dim=1).expand(x.shape[0], -1, -1)

        def function(piece: Tensor, *tensors: Tensor) -> Tensor:
            *norm, weight = tensors
            windows = piece.unfold(1, kernel, self.stride).flatten(2)  # (B, U, C_in k)
            return self.finish(torch.bmm(F.pad(windows, (0, 1), value=1.0), weight.mT), *norm)

        shared = self.finish_weights if isinstance(self.norm, ChannelNorm) else ()
        return Before(function, shared, per_row=(folded,), kernel=kernel, stride=self.stride)


class TimeNorm(nn.GroupNorm):
    """Each channel to zero mean and unit variance over time: a group norm with one channel per
    group.

    Padding is part of the statistics, as in every other implementation, unless the real lengths are
    given.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(num_groups=channels, num_channels=channels)

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """(B, C, T) -> (B, C, T), in fp32 whatever the precision (a sum over 50,000 samples),
        returned in the dtype it came in.

        lengths: (B,) real positions of each row, at its beginning; None when all are.
        """
        weight = self.weight.float()
        bias = self.bias.float()
        if lengths is None:
            return F.group_norm(x.float(), self.num_groups, weight, bias, self.eps).to(x.dtype)
        count = lengths[:, None, None].clamp(min=1)  # an empty row must not become NaN
        real = torch.arange(x.shape[2], device=x.device) < count  # (B, 1, T)
        mean = x.float().mul(real).sum(2, keepdim=True) / count  # (B, C, 1)
        centred = x.float() - mean
        variance = centred.square().mul(real).sum(2, keepdim=True) / count
        return (centred * torch.rsqrt(variance + self.eps) * weight[:, None] + bias[:, None]).to(
            x.dtype
        )

    def folded_into(
        self, kernel: Tensor, x: Tensor, stride: int, lengths: Tensor | None = None
    ) -> Tensor:
        """The norm of a convolution of few taps, without a pass over its result: (C, C_in, k), (B,
        T, C_in) -> (B, C, C_in k + 1).

        A channel is w . window, so its mean over time is w . mean(windows) and its variance w'
        Cov(windows) w: the norm becomes a factor on the kernel of each utterance, and an offset
        (the last column). The statistics are float64 (sums over 50,000 positions, of which
        differences are taken).

        lengths: (B,) real ones of the T positions, at the beginning; None when all are.
        """
        windows = x.unfold(1, kernel.shape[2], stride).flatten(2)  # (B, T, C_in) -> (B, U, C_in k)
        flat = kernel.flatten(1).float()  # (C, C_in k)
        with torch.autocast(x.device.type, enabled=False):
            wide = windows.double()
            if lengths is None:
                mean = wide.mean(1, keepdim=True)  # (B, 1, C_in k)
                covariance = (wide - mean).mT @ (wide - mean) / wide.shape[1]
            else:
                count = ((lengths - kernel.shape[2]) // stride + 1)[:, None, None].clamp(
                    min=1
                )  # an empty row must not become NaN
                real = torch.arange(wide.shape[1], device=x.device)[:, None] < count  # (B, U, 1)
                mean = (wide * real).sum(1, keepdim=True) / count
                covariance = ((wide - mean) * real).mT @ (wide - mean) / count
            variance = ((flat.double() @ covariance) * flat.double()).sum(2)  # (B, C)
            scale = torch.rsqrt(variance.float() + self.eps) * self.weight.float()
            shift = self.bias.float() - (mean.float() @ flat.T)[:, 0] * scale
            return torch.cat([flat * scale[..., None], shift[..., None]], dim=2)


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of (B, U, C), in fp32, returned in the dtype it came in."""

    def normalise(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """(B, U, C) -> (B, U, C), with this weight and bias."""
        return F.layer_norm(
            x.float(), self.normalized_shape, weight.float(), bias.float(), self.eps
        ).to(x.dtype)


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
