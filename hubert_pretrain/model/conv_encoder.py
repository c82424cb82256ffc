"""The conv encoder: waveform -> frames.

Source: wav2vec 2.0, arXiv:2006.11477, section 2; fairseq's ConvFeatureExtractionModel.
Shapes: B utterances, S samples, T or U frames in or out of a layer, C channels.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from hubert_pretrain.model.config import HubertConfig
from hubert_pretrain.model.half_precision import Conv1d, layer_norm, weights_of

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "relu": F.relu,
    "selu": F.selu,
    "gelu_new": partial(F.gelu, approximate="tanh"),
    "silu": F.silu,
}
RECOMPUTED_ON_CPU = 2
"""First layers whose norms and activations are always recomputed on a CPU: three quarters of the
memory. On a GPU it would be 6 % of the traffic of a step.
"""
BLOCK = 64
"""Windows of the first layer whose products are summed in fp32."""
CHUNK_BYTES = 64 << 20
"""Output of the first layer for the rows of one chunk on a CPU (Base: 10 s of audio)."""


class ConvEncoder(nn.Module):
    """A stack of unpadded convolutions: (B, S) -> (B, T, C), T = `config.grid.num_frames(S)`.

    Each layer is a convolution, a norm (or none) and an activation.
    """

    def __init__(self, config: HubertConfig) -> None:
        super().__init__()
        channels = [1, *config.conv_dim]
        self.layers = nn.ModuleList()
        for i, (kernel, stride) in enumerate(
            zip(config.conv_kernel, config.conv_stride, strict=True)
        ):
            self.layers.append(
                ConvLayer(
                    channels[i],
                    channels[i + 1],
                    kernel=kernel,
                    stride=stride,
                    bias=config.conv_bias,
                    norm=config.feat_extract_norm,
                    first=i == 0,
                    activation=config.feat_extract_activation,
                )
            )

    def forward(
        self,
        waveform: Tensor,
        num_samples: Tensor | None = None,
        *,
        gradient_checkpointing: bool = False,
    ) -> Tensor:
        """(B, S) -> (B, T, C).

        num_samples: (B,) real samples of each row, for a norm over time that leaves padding out.
        gradient_checkpointing: store only the outputs of convolutions for the backward pass. On a
            CPU the first layers, the longest ones, always do so.
        """
        compiled = torch.compiler.is_compiling()
        if waveform.device.type != "cpu" or not torch.is_grad_enabled() or compiled:
            return self.encode(waveform, num_samples, gradient_checkpointing)
        # In chunks of rows on a CPU: the backward pass holds several outputs of the first layer.
        rows = waveform.split(self.rows_per_chunk(waveform))
        lengths = [None] * len(rows) if num_samples is None else num_samples.split(len(rows[0]))
        return torch.cat(
            [
                self.encode(waveforms, real_samples, gradient_checkpointing)
                for waveforms, real_samples in zip(rows, lengths, strict=True)
            ]
        )

    def rows_per_chunk(self, waveform: Tensor) -> int:
        """Number of rows of (B, S) for which the first layer's output takes CHUNK_BYTES, or 1."""
        conv = cast("ConvLayer", self.layers[0]).conv
        bytes_per_row = 4 * conv.out_channels * waveform.shape[1] // conv.stride[0]
        return max(1, CHUNK_BYTES // bytes_per_row)

    def encode(
        self, waveform: Tensor, num_samples: Tensor | None, gradient_checkpointing: bool
    ) -> Tensor:
        """`forward` for all rows at once."""
        first, *others = cast("list[ConvLayer]", list(self.layers))
        recomputed = RECOMPUTED_ON_CPU if waveform.device.type == "cpu" else 0
        if gradient_checkpointing:
            recomputed = len(others)
        x = waveform[:, None]  # (B, 1, S)
        # All that precedes the next convolution.
        finish: Callable[[Tensor], Tensor] = partial(first, num_samples=num_samples)
        for i, layer in enumerate(others):
            # A checkpointed piece is a layer's norm and activation and the next convolution. The
            # recomputation stops before that convolution, which needs only its input. So norms and
            # activations are computed twice, and of the convolutions only the first layer's, a
            # hundredth of all operations.
            if torch.is_grad_enabled() and i < recomputed:
                x = checkpoint(
                    finish_and_convolve,
                    finish,
                    layer,
                    x,
                    use_reentrant=False,
                    preserve_rng_state=False,  # nothing is random here
                )
            else:
                x = finish_and_convolve(finish, layer, x)  # (B, C, T) -> (B, C, U)
            finish = layer.finish
        return finish(x).transpose(1, 2)  # (B, C, T) -> (B, T, C)


class ConvLayer(nn.Module):
    """Convolution, norm and activation: (B, C_in, T) -> (B, C_out, U).

    The norm is over time per channel ("group", only in the first layer), over channels ("layer"),
    or none.
    """

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        *,
        kernel: int,
        stride: int,
        bias: bool,
        norm: str,
        first: bool,
        activation: str,
    ) -> None:
        super().__init__()
        self.conv = Conv1d(channels_in, channels_out, kernel, stride=stride, bias=bias)
        nn.init.kaiming_normal_(self.conv.weight)
        self.norm: nn.Module | None = None
        if norm == "layer":
            self.norm = ChannelNorm(channels_out)
        elif first:
            self.norm = TimeNorm(channels_out)
        self.activation = ACTIVATIONS[activation]

    def forward(self, x: Tensor, num_samples: Tensor | None = None) -> Tensor:
        """(B, C_in, T) -> (B, C_out, U). `num_samples`: as in ConvEncoder.forward."""
        lengths = None
        if num_samples is not None:
            lengths = (num_samples - self.conv.kernel_size[0]) // self.conv.stride[0] + 1
        # Without gradients and in fp32 every bit is that of PyTorch's modules.
        exact = not torch.is_grad_enabled() and not torch.is_autocast_enabled(x.device.type)
        if isinstance(self.norm, TimeNorm) and not exact:
            return self.activation(self.norm.of_convolution(x, self.conv, lengths))
        return self.finish(self.convolve(x), lengths)

    def convolve(self, x: Tensor) -> Tensor:
        """(B, C_in, T) -> (B, C_out, U), the convolution alone."""
        return convolve(x, *weights_of(self.conv), stride=self.conv.stride[0])

    def finish(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Norm and activation: (B, C, U) -> (B, C, U). `lengths`: as in TimeNorm.forward."""
        if isinstance(self.norm, TimeNorm):
            x = self.norm(x, lengths)
        elif self.norm is not None:
            x = self.norm(x)
        return self.activation(x)


class TimeNorm(nn.GroupNorm):
    """Each channel to zero mean and unit variance over time: a group norm, one channel per group.

    Padding is part of the statistics, as in every other implementation, unless the real lengths are
    given.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(num_groups=channels, num_channels=channels)

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """(B, C, T) -> (B, C, T) in x's dtype, with statistics in fp32 (sums over 50,000 samples).

        lengths: (B,) real positions of each row, at its beginning; None when all are.
        """
        if lengths is None:
            weight = self.weight.to(x.dtype)
            bias = self.bias.to(x.dtype)
            with torch.autocast(x.device.type, enabled=False):
                return F.group_norm(x, self.num_groups, weight, bias, self.eps)
        weight = self.weight.float()
        bias = self.bias.float()
        count = lengths[:, None, None].clamp(min=1)  # an empty row must not become NaN
        real = torch.arange(x.shape[2], device=x.device) < count  # (B, 1, T)
        mean = x.float().mul(real).sum(2, keepdim=True) / count  # (B, C, 1)
        centred = x.float() - mean
        variance = centred.square().mul(real).sum(2, keepdim=True) / count
        y = centred * torch.rsqrt(variance + self.eps) * weight[:, None] + bias[:, None]
        return y.to(x.dtype)

    def of_convolution(self, x: Tensor, conv: nn.Conv1d, lengths: Tensor | None = None) -> Tensor:
        """The norm of conv(x) for a narrow x, without a pass over the result.

        (B, C_in, T) -> (B, C, U). The mean window is subtracted first: the norm over time cancels
        any constant of a window, and bf16 would round an offset of the waveform instead of the
        speech. A channel of the result is then w . window with mean 0 and variance
        w' Cov(window) w: the norm becomes a factor on each utterance's kernel. (A bias of the
        convolution cancels.)

        lengths: as in `forward`.
        """
        kernel = conv.weight.flatten(1).float()  # (C, C_in k)
        windows = x.unfold(2, conv.kernel_size[0], conv.stride[0])  # (B, C_in, U, k)
        windows = windows.transpose(1, 2).flatten(2).float()  # (B, U, C_in k)
        with torch.autocast(x.device.type, enabled=False):
            windows, covariance = centred(windows, lengths)
            # (C, C_in k) times (C_in k, C_in k) of each utterance: small, so in fp64.
            variance = ((kernel.double() @ covariance) * kernel.double()).sum(2)  # (B, C)
            scale = torch.rsqrt(variance.float() + self.eps) * self.weight.float()
        # The norm's bias is the kernel's entry for a further number in each window, always 1.
        # Zeros fill up to a multiple of 8, for which GPUs have fast products.
        n = kernel.shape[1]
        filled = -(n + 1) % 8
        bias = self.bias.float()[None, :, None].expand(len(x), -1, 1)  # (B, C, 1)
        kernels = F.pad(torch.cat([kernel * scale[..., None], bias], dim=2), (0, filled))
        windows = F.pad(F.pad(windows, (0, 1), value=1.0), (0, filled))  # (B, U, n + 1 + filled)
        if prefers_channels_last(kernels):
            return exact_on_cpu(torch.bmm, windows, kernels.mT).mT
        return exact_on_cpu(torch.bmm, kernels, windows.mT)


def centred(windows: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor]:
    """Windows (B, U, n) without their mean over time, and their covariance (B, n, n) in fp64.

    Products are summed in fp32 over BLOCK windows each and those sums in fp64: as exact as fp64
    products, which few GPUs have, to 1e-8.

    lengths: (B,) real ones of the U positions, at the beginning; None when all are.
    """
    if lengths is None:
        count: Tensor | int = windows.shape[1]
        windows = windows - windows.mean(1, keepdim=True)
        real = windows
    else:
        count = lengths[:, None, None].clamp(min=1)  # an empty row must not become NaN
        is_real = (
            torch.arange(windows.shape[1], device=windows.device)[:, None] < count
        )  # (B, U, 1)
        windows = windows - (windows * is_real).sum(1, keepdim=True) / count
        real = windows * is_real
    blocks = F.pad(real, (0, 0, 0, -windows.shape[1] % BLOCK)).unflatten(1, (-1, BLOCK))
    return windows, (blocks.mT @ blocks).sum(1, dtype=torch.float64) / count


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of (B, C, T) in x's dtype, with statistics in fp32."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T) -> (B, C, T)."""
        return layer_norm(x.transpose(1, 2), self).transpose(1, 2)


def convolve(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    stride: int = 1,
    padding: int = 0,
    groups: int = 1,
) -> Tensor:
    """F.conv1d in the memory format that is fastest: (B, C_in, T) -> (B, C_out, U)."""
    if not prefers_channels_last(x, groups):
        conv1d = partial(F.conv1d, stride=stride, padding=padding, groups=groups)
        return exact_on_cpu(conv1d, x, weight, bias)
    # conv1d copies its input to channels first; conv2d takes (B, C, 1, T) as it lies.
    conv2d = partial(F.conv2d, stride=(1, stride), padding=(0, padding), groups=groups)
    x = x.unsqueeze(2).contiguous(memory_format=torch.channels_last)
    return exact_on_cpu(conv2d, x, weight.unsqueeze(2), bias).squeeze(2)


def prefers_channels_last(x: Tensor, groups: int = 1) -> bool:
    """The memory format of x (B, C, T) in which it is convolved and its gradients are computed.

    cuDNN's half-precision kernels are for channels last (not measured here). On a CPU (oneDNN)
    channels last wins up to 128 channels; of wider ones the weight's gradient becomes three times
    slower. Without gradients a CPU's bits are those of other libraries.
    """
    if x.device.type != "cpu":
        return x.shape[1] > 1 and groups == 1
    return 1 < x.shape[1] <= 128 and torch.is_grad_enabled()


def exact_on_cpu(function: Callable[..., Tensor], *factors: Tensor | None) -> Tensor:
    """A convolution or product, on CPUs at least in fp32 and returned in the dtype it would have.

    In bf16, CPUs with AMX give wrong results for some grouped convolutions, and CPUs without bf16
    instructions round the sum over the batch in a weight's gradient after each utterance.
    """
    x = factors[0]
    assert x is not None
    if x.device.type != "cpu":
        return function(*factors)
    dtype = x.dtype
    if torch.is_autocast_enabled("cpu"):
        dtype = torch.get_autocast_dtype("cpu")
    exact = torch.promote_types(x.dtype, torch.float32)
    with torch.autocast("cpu", enabled=False):
        y = function(*(None if factor is None else factor.to(exact) for factor in factors))
    return y.to(dtype)


def finish_and_convolve(finish: Callable[[Tensor], Tensor], layer: ConvLayer, x: Tensor) -> Tensor:
    """The rest of one layer, then the convolution of the next: (B, C, T) -> (B, C, U)."""
    return layer.convolve(finish(x))


def scale_gradient(x: Tensor, scale: float) -> Tensor:
    """`x` itself, bit by bit, with its gradient multiplied by `scale` (fairseq's GradMultiply)."""
    if scale == 1.0 or not torch.is_grad_enabled():
        return x
    return _ScaledGradient.apply(x, scale)


class _ScaledGradient(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, x: Tensor, scale: float) -> Tensor:
        context.scale = scale
        return x.view_as(x)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return gradient * context.scale, None
