"""Convolutions over time as matrix products of strided views, keeping little for the backward pass.

With channels last, the `stride` frames from each output's first one on are one row of a matrix that already lies in memory, (T', stride C).
A kernel as wide as the stride is one product with it; a third tap at stride 2 is a second product with the rows one further, of which only
the first C columns count. No im2col copy, no transposes, and the products run at the speed of any other.

Shapes: B rows, T frames in, U frames out, C channels in, O channels out, k taps, s stride; weights are nn.Conv1d's, (O, C, k).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

NARROW = 64
"""Up to so many numbers per window (one channel of sound) copying the windows is cheaper than several products of few columns."""


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int) -> Tensor:
    """(B, T, C) -> (B, U, O), U = (T - k) // s + 1: what conv1d makes of the transposed input. No gradients: see `recomputed`."""
    x = x.contiguous()
    out, taps = (x.shape[1] - weight.shape[2]) // stride + 1, _taps(weight)
    y = x.new_empty(x.shape[0], out, weight.shape[0])
    for number, (rows, columns) in enumerate(_views(x, out, weight.shape[2], stride)):
        _multiply(y, rows, taps[columns], add=number > 0)
    return y if bias is None else y.add_(bias)


def convolve_backward(
    gradient: Tensor, x: Tensor, weight: Tensor, stride: int, *, into_x: bool, into_weight: bool
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of `convolve` by x (B, T, C) and by the weight (O, C, k), where asked for, given that by its result (B, U, O)."""
    gradient, x = gradient.contiguous(), x.contiguous()
    out, kernel, taps = gradient.shape[1], weight.shape[2], _taps(weight)
    by_x = by_weight = None
    if into_x:
        if _narrow(weight):
            by_x = _scatter(gradient @ taps.T, x, kernel, stride)
        else:
            by_x = torch.zeros_like(x) if kernel < stride else torch.empty_like(x)
            by_x[:, out * stride :] = 0.0  # the first product writes all that is before
            for number, (rows, columns) in enumerate(_views(by_x, out, kernel, stride)):
                _multiply(rows, gradient, taps[columns].T, add=number > 0)
    if into_weight:
        by_taps = torch.empty_like(taps)
        for rows, columns in _views(x, out, kernel, stride):
            _accumulate(by_taps[columns], rows, gradient)
        by_weight = by_taps.unflatten(0, (kernel, -1)).permute(2, 1, 0)
    return by_x, by_weight


def _taps(weight: Tensor) -> Tensor:
    """(O, C, k) -> (kC, O)."""
    return weight.permute(2, 1, 0).reshape(-1, weight.shape[0]).contiguous()


def _narrow(weight: Tensor) -> bool:
    return weight.shape[1] * weight.shape[2] <= NARROW


def _views(x: Tensor, out: int, kernel: int, stride: int) -> Iterator[tuple[Tensor, slice]]:
    """The matrices (B, U, n) whose rows together are the windows of x (B, T, C), and the columns of the window that each holds."""
    batch, frames, channels = x.shape
    if kernel * channels <= NARROW:
        yield x.as_strided((batch, out, kernel * channels), (frames * channels, stride * channels, 1)).contiguous(), slice(None)
        return
    for first in range(0, kernel, stride):
        width = min(stride, kernel - first) * channels
        strides = (frames * channels, stride * channels, 1)
        offset = x.storage_offset() + first * channels
        yield x.as_strided((batch, out, width), strides, offset), slice(first * channels, first * channels + width)


def _multiply(y: Tensor, a: Tensor, b: Tensor, *, add: bool) -> None:
    """y (+)= a @ b, (B, U, m) (+)= (B, U, n) @ (n, m), in place of a strided y."""
    if y.device.type != "cpu":
        torch.baddbmm(y, a, b.expand(len(a), -1, -1), beta=int(add), out=y)
        return
    for row, left in zip(y, a, strict=True):  # a batched product of such strides has no fast form on a CPU
        if add:
            row.addmm_(left, b)
        else:
            torch.mm(left, b, out=row)


def _accumulate(y: Tensor, a: Tensor, b: Tensor) -> None:
    """y = sum over B of a.T @ b: (n, m) = (B, U, n), (B, U, m)."""
    for number, (left, right) in enumerate(zip(a, b, strict=True)):
        if number:
            y.addmm_(left.T, right)
        else:
            torch.mm(left.T, right, out=y)


def _scatter(windows: Tensor, x: Tensor, kernel: int, stride: int) -> Tensor:
    """(B, U, kC) -> (B, T, C): each number added where its window had it."""
    by_x = torch.zeros_like(x)
    for tap, part in enumerate(windows.unflatten(2, (kernel, -1)).unbind(2)):
        by_x[:, tap : tap + part.shape[1] * stride : stride][:, : part.shape[1]] += part
    return by_x


Before = Callable[..., Tensor]
"""(x, *parameters) -> (B, T, C): norm and activation of the layer before, in operations that autograd knows."""


class _Recomputed(torch.autograd.Function):
    """convolve(before(x, *parameters)) that keeps x alone and computes `before` again for the backward pass."""

    @staticmethod
    def forward(
        ctx: Any, before: Before, stride: int, x: Tensor, weight: Tensor, bias: Tensor | None, *parameters: Tensor | None
    ) -> Tensor:
        ctx.before, ctx.stride, ctx.has_bias = before, stride, bias is not None
        ctx.autocast = {"dtype": torch.get_autocast_dtype(x.device.type), "enabled": torch.is_autocast_enabled(x.device.type)}
        ctx.save_for_backward(x, weight, *parameters)
        return _step(before, stride, x, weight, bias, parameters)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, weight, *parameters = ctx.saved_tensors
        wanted = ctx.needs_input_grad
        leaves = [
            None if tensor is None else tensor.detach().requires_grad_(needed)
            for tensor, needed in zip((x, *parameters), (wanted[2], *wanted[5:]), strict=True)
        ]
        with torch.enable_grad(), torch.autocast(x.device.type, **ctx.autocast):
            entering = ctx.before(*leaves)
        onward = [leaf for leaf in leaves if leaf is not None and leaf.requires_grad]
        typed = weight.to(gradient.dtype)
        by_entering, by_weight = convolve_backward(
            gradient, entering.detach().to(gradient.dtype), typed, ctx.stride, into_x=bool(onward), into_weight=wanted[3]
        )
        found: Iterator[Tensor | None] = iter(())
        if by_entering is not None:
            found = iter(torch.autograd.grad(entering, onward, by_entering.to(entering.dtype), allow_unused=True))
        by_x, *by_parameters = [next(found) if leaf is not None and leaf.requires_grad else None for leaf in leaves]
        by_bias = gradient.sum((0, 1), dtype=weight.dtype) if ctx.has_bias and wanted[4] else None
        by_weight = None if by_weight is None else by_weight.to(weight.dtype)
        return None, None, by_x, by_weight, by_bias, *by_parameters


def _step(before: Before, stride: int, x: Tensor, weight: Tensor, bias: Tensor | None, parameters: tuple[Tensor | None, ...]) -> Tensor:
    entering, device = before(x, *parameters), x.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else entering.dtype
    with torch.autocast(device, enabled=False):
        return convolve(entering.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype), stride)


def recomputed(
    before: Before, parameters: tuple[Tensor | None, ...], x: Tensor, weight: Tensor, bias: Tensor | None, stride: int
) -> Tensor:
    """convolve(before(x, *parameters), weight, bias, stride) with gradients for all of them, of which only x is kept.

    Autograd alone would keep what enters and what leaves each norm and activation: of HuBERT Base's conv encoder three quarters more.
    """
    if torch.is_grad_enabled():
        return _Recomputed.apply(before, stride, x, weight, bias, *parameters)  # type: ignore[no-any-return]
    return _step(before, stride, x, weight, bias, parameters)
