"""Convolutions over time as matrix products of strided views.

With channels last, the `stride` frames from each output's first one on are one row of a matrix that
already lies in memory, (T', stride C). A kernel as wide as the stride is one product with it; a
third tap at stride 2 is a second product with the rows one further, of which only the first C
columns count. No im2col copy, no transposes, and the products run at the speed of any other.

Shapes: B rows, T frames in, U frames out, C channels in, O channels out, k taps, s stride; weights
are nn.Conv1d's, (O, C, k).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

NARROW = 256
"""Up to so many numbers per window, the gradient by the taps is cheaper as one product with a copy
of the windows.
"""


def as_taps(weight: Tensor) -> Tensor:
    """(O, C, k) -> (kC, O), the form in which `convolve` wants its weight."""
    return weight.permute(2, 1, 0).reshape(-1, weight.shape[0]).contiguous()


def as_weight(taps: Tensor, kernel: int) -> Tensor:
    """(kC, O) -> (O, C, k)."""
    return taps.unflatten(0, (kernel, -1)).permute(2, 1, 0)


def convolve(x: Tensor, taps: Tensor, kernel: int, stride: int, out: Tensor) -> Tensor:
    """`out` (B, U, O), U = (T - k) // s + 1, is filled with what conv1d makes of x (B, T, C),
    transposed. No gradients.
    """
    for number, (rows, columns) in enumerate(_views(x.contiguous(), out.shape[1], kernel, stride)):
        _multiply(out, rows, taps[columns], add=number > 0)
    return out


def gradient_by_x(gradient: Tensor, x: Tensor, taps: Tensor, kernel: int, stride: int) -> Tensor:
    """Of `convolve` by its x (B, T, C), given that by its result (B, U, O)."""
    out = gradient.shape[1]
    by_x = torch.zeros_like(x) if kernel < stride else torch.empty_like(x)
    by_x[:, out * stride :] = 0.0  # the first product writes all that is before
    for number, (rows, columns) in enumerate(_views(by_x, out, kernel, stride)):
        _multiply(rows, gradient, taps[columns].T, add=number > 0)
    return by_x


def add_gradient_by_taps(
    by_taps: Tensor, gradient: Tensor, x: Tensor, kernel: int, stride: int
) -> None:
    """Adds that of `convolve` by its taps to `by_taps` (kC, O)."""
    out = gradient.shape[1]
    width = kernel * x.shape[2]
    views = (
        _views(x, out, kernel, stride)
        if width > NARROW
        else [(_view(x, out, stride, 0, width).contiguous(), slice(None))]
    )
    for rows, columns in views:
        for left, right in zip(rows, gradient, strict=True):
            by_taps[columns].addmm_(left.T, right)


def _views(x: Tensor, out: int, kernel: int, stride: int) -> Iterator[tuple[Tensor, slice]]:
    """The matrices (B, U, n) whose rows together are the windows of x (B, T, C), and the columns of
    the window that each holds.
    """
    for first in range(0, kernel, stride):
        start = first * x.shape[2]
        width = min(stride, kernel - first) * x.shape[2]
        yield _view(x, out, stride, start, width), slice(start, start + width)


def _view(x: Tensor, out: int, stride: int, start: int, width: int) -> Tensor:
    """(B, U, width): so many numbers of every window of x (B, T, C), from one of them on."""
    batch, frames, channels = x.shape
    return x.as_strided(
        (batch, out, width), (frames * channels, stride * channels, 1), x.storage_offset() + start
    )


def _multiply(y: Tensor, a: Tensor, b: Tensor, *, add: bool) -> None:
    """y (+)= a @ b, (B, U, m) (+)= (B, U, n) @ (n, m), in place of a strided y."""
    if y.device.type != "cpu":
        torch.baddbmm(y, a, b.expand(len(a), -1, -1), beta=int(add), out=y)
        return
    for row, left in zip(
        y, a, strict=True
    ):  # a batched product of such strides has no fast form on a CPU
        if add:
            row.addmm_(left, b)
        else:
            torch.mm(left, b, out=row)
