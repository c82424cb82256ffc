"""A convolution over time with many taps and groups, whose gradients are computed in the frequency
domain on a CPU.

PyTorch takes four times as long for the gradients of HuBERT's positional convolution (128 taps, 16
groups) as for its forward pass. By FFT of blocks (overlap-save for the weight, overlap-add for the
input) they take a small part of the multiplications. The forward pass is PyTorch's.

Shapes: B rows, D channels in and out, G groups of W = D / G, T frames, K taps, U = T + 2 padding -
K + 1 frames out, J blocks of L frames, N = L + K - 1 points of an FFT, Q = N / 2 + 1 frequencies.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def long_convolution(
    x: Tensor, weight: Tensor, bias: Tensor, *, padding: int, groups: int
) -> Tensor:
    """F.conv1d: (B, D, T), (D, W, K), (D,) -> (B, D, U)."""
    by_fft = (
        x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and not torch.is_autocast_enabled("cpu")
    )
    if by_fft and torch.is_grad_enabled() and not torch.compiler.is_compiling():
        return _LongConvolution.apply(x, weight, bias, padding, groups)  # type: ignore[no-any-return]
    return F.conv1d(x, weight, bias, padding=padding, groups=groups)


class _LongConvolution(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, padding: int, groups: int
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.padding = padding
        ctx.groups = groups
        return F.conv1d(x, weight, bias, padding=padding, groups=groups)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, weight = ctx.saved_tensors
        blocks = _Blocks(gradient, weight.shape[2], ctx.groups)
        by_x = (
            blocks.by_x(weight)[..., ctx.padding : ctx.padding + x.shape[2]]
            if ctx.needs_input_grad[0]
            else None
        )
        by_weight = (
            blocks.by_weight(F.pad(x, (ctx.padding, ctx.padding)))
            if ctx.needs_input_grad[1]
            else None
        )
        by_bias = gradient.sum((0, 2)) if ctx.needs_input_grad[2] else None
        return by_x, by_weight, by_bias, None, None


class _Blocks:
    """The gradient by the result, (B, D, U), as spectra of its blocks."""

    def __init__(self, gradient: Tensor, taps: int, groups: int) -> None:
        self.taps = taps
        self.groups = groups
        self.points = (
            2 << (taps - 1).bit_length()
        )  # N: twice the taps or a little more, a power of two
        self.length = self.points - taps + 1  # L
        self.count = -(-gradient.shape[2] // self.length)  # J
        padded = F.pad(gradient, (0, self.count * self.length - gradient.shape[2]))
        self.spectra = self._spectra(padded.unflatten(2, (self.count, self.length)))

    def _spectra(self, blocks: Tensor) -> Tensor:
        """(B, D, J, L or N) -> (G, Q, B J, W)."""
        found = torch.fft.rfft(blocks, self.points).unflatten(
            1, (self.groups, -1)
        )  # (B, G, W, J, Q)
        return found.permute(1, 4, 0, 3, 2).flatten(2, 3)

    def by_x(self, weight: Tensor) -> Tensor:
        """Gradient by the padded input: (D, W, K) -> (B, D, (J + 1) L). The last K - 1 frames of a
        block fall into the next.
        """
        kernels = (
            torch.fft.rfft(weight, self.points).unflatten(0, (self.groups, -1)).permute(0, 3, 1, 2)
        )  # (G, Q, W out, W in)
        products = torch.matmul(self.spectra, kernels).unflatten(
            2, (-1, self.count)
        )  # (G, Q, B, J, W)
        blocks = torch.fft.irfft(
            products.permute(2, 0, 4, 3, 1).flatten(1, 2), self.points
        )  # (B, D, J, N)
        added = F.pad(blocks[..., : self.length], (0, 0, 0, 1))  # (B, D, J + 1, L)
        added[:, :, 1:, : self.taps - 1] += blocks[..., self.length :]
        return added.flatten(2)

    def by_weight(self, padded: Tensor) -> Tensor:
        """Gradient by the weight, given the padded input (B, D, U + K - 1): (D, W, K)."""
        frames = (self.count - 1) * self.length + self.points
        windows = F.pad(padded, (0, frames - padded.shape[2])).unfold(
            2, self.points, self.length
        )  # (B, D, J, N)
        products = torch.matmul(
            self.spectra.conj().mT, self._spectra(windows)
        )  # (G, Q, W out, W in)
        return torch.fft.irfft(products.permute(0, 2, 3, 1), self.points)[..., : self.taps].flatten(
            0, 1
        )
