"""A convolution and what comes before it (norm, activation), tile by tile, keeping little for the
backward pass.

On a CPU a tile is so short that what lies between the two stays in the cache: it is never written
to memory, neither in the forward pass nor in the backward pass, which computes it again. Elsewhere
a tile is the whole batch, and computing it again saves memory alone.

Shapes: B rows, T positions in, E frames that enter the convolution, U frames out, C channels in, O
channels out, k taps, s stride.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hubert_pretrain.model.strided_matmul import (
    add_gradient_by_taps,
    as_taps,
    as_weight,
    convolve,
    gradient_by_x,
)

TILE_BYTES = 4 << 20
"""Of the frames that enter a tile of the convolution on a CPU."""


@dataclass(frozen=True)
class Before:
    """What comes before a convolution: a function of windows of `kernel` positions, one every
    `stride`, and of tensors.
    """

    function: Callable[..., Tensor]
    """(x (b, t, C_in), *shared, *per_row) -> (b, e, C), e = (t - kernel) // stride + 1, in
    operations that autograd knows.
    """
    shared: tuple[Tensor | None, ...] = ()
    """What is the same for all rows."""
    per_row: tuple[Tensor, ...] = ()
    """(B, ...) each; `function` is given the b rows that it computes."""
    kernel: int = 1
    stride: int = 1

    @property
    def tensors(self) -> tuple[Tensor | None, ...]:
        """All of them."""
        return (*self.shared, *self.per_row)


class Tile(NamedTuple):
    """A part of the work."""

    rows: slice
    out: slice
    """Frames that it computes, 0 <= ... < U."""
    into: slice
    """Positions of x that it needs."""


def convolve_after(
    before: Before, x: Tensor, weight: Tensor, bias: Tensor | None, stride: int
) -> Tensor:
    """The convolution of before(x): (B, T, C_in), (O, C, k), (O,) -> (B, U, O), with gradients for
    all tensors, of which only x is kept.

    Autograd alone would keep what enters and what leaves each norm and activation: of HuBERT Base's
    conv encoder three quarters more.
    """
    if torch.is_grad_enabled():
        return _Tiled.apply(before, stride, x, weight, bias, *before.tensors)  # type: ignore[no-any-return]
    return _forward(before, stride, x, weight, bias, before.tensors)


class _Tiled(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        before: Before,
        stride: int,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        *tensors: Tensor | None,
    ) -> Tensor:
        ctx.before = before
        ctx.stride = stride
        ctx.has_bias = bias is not None
        ctx.autocast = {
            "dtype": torch.get_autocast_dtype(x.device.type),
            "enabled": torch.is_autocast_enabled(x.device.type),
        }
        ctx.save_for_backward(x, weight, *tensors)
        return _forward(before, stride, x, weight, bias, tensors)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, weight, *tensors = ctx.saved_tensors
        before = ctx.before
        stride = ctx.stride
        kernel = weight.shape[2]
        _, _, x_wanted, weight_wanted, bias_wanted, *wanted = ctx.needs_input_grad
        gradient, taps = gradient.contiguous(), as_taps(weight.to(gradient.dtype))
        by_taps = torch.zeros_like(taps) if weight_wanted else None
        by_x = _Stitched(x) if x_wanted else None
        by_tensors = [
            torch.zeros_like(tensor) if tensor is not None and wish else None
            for tensor, wish in zip(tensors, wanted, strict=True)
        ]
        for tile in _tiles(x, gradient.shape[1], weight, stride, before):
            parts = _parts(before, tensors, tile)
            leaves = [
                None if part is None else part.detach().requires_grad_(wish)
                for part, wish in zip(parts, wanted, strict=True)
            ]
            piece = x[tile.rows, tile.into].detach().requires_grad_(x_wanted)
            with torch.enable_grad(), torch.autocast(x.device.type, **ctx.autocast):
                entering = before.function(piece, *leaves)
            arriving = gradient[tile.rows, tile.out]
            frames = entering.detach().to(gradient.dtype)
            if by_taps is not None:
                add_gradient_by_taps(by_taps, arriving, frames, kernel, stride)
            onward = [leaf for leaf in (piece, *leaves) if leaf is not None and leaf.requires_grad]
            if not onward:
                continue
            by_frames = gradient_by_x(arriving, frames, taps, kernel, stride).to(entering.dtype)
            found = iter(torch.autograd.grad(entering, onward, by_frames))
            if by_x is not None:
                by_x.add(tile, next(found))
            for total in (part for part in _parts(before, by_tensors, tile) if part is not None):
                total += next(found)
        by_bias = gradient.sum((0, 1), dtype=weight.dtype) if ctx.has_bias and bias_wanted else None
        by_weight = None if by_taps is None else as_weight(by_taps, kernel).to(weight.dtype)
        return None, None, None if by_x is None else by_x.whole(), by_weight, by_bias, *by_tensors


def _forward(
    before: Before,
    stride: int,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    tensors: tuple[Tensor | None, ...],
) -> Tensor:
    device = x.device.type
    kernel = weight.shape[2]
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
    taps = as_taps(weight.to(dtype))
    entering_frames = (x.shape[1] - before.kernel) // before.stride + 1
    y = x.new_empty(
        x.shape[0], (entering_frames - kernel) // stride + 1, weight.shape[0], dtype=dtype
    )
    for tile in _tiles(x, y.shape[1], weight, stride, before):
        entering = before.function(x[tile.rows, tile.into], *_parts(before, tensors, tile)).to(
            dtype
        )
        with torch.autocast(device, enabled=False):
            convolve(entering, taps, kernel, stride, y[tile.rows, tile.out])
    return y if bias is None else y.add_(bias.to(dtype))


def _parts(before: Before, tensors: Any, tile: Tile) -> list[Tensor | None]:
    """The tensors that a tile needs: those of its rows, where each row has its own."""
    shared = len(before.shared)
    return [
        *tensors[:shared],
        *(None if tensor is None else tensor[tile.rows] for tensor in tensors[shared:]),
    ]


def _tiles(x: Tensor, out: int, weight: Tensor, stride: int, before: Before) -> Iterator[Tile]:
    """Several rows when they are short, parts of one when it is long; one tile in all unless on a
    CPU.
    """
    rows = len(x)
    length = out
    if x.device.type == "cpu":
        length = max(1, min(out, TILE_BYTES // (stride * weight.shape[1] * x.element_size())))
        rows = max(1, TILE_BYTES // (out * stride * weight.shape[1] * x.element_size()))
    for row in range(0, len(x), rows):
        for first in range(0, out, length):
            last = min(first + length, out) - 1
            frames = (last - first) * stride + weight.shape[2]
            start = first * stride * before.stride
            positions = slice(start, start + (frames - 1) * before.stride + before.kernel)
            yield Tile(slice(row, min(row + rows, len(x))), slice(first, last + 1), positions)


class _Stitched:
    """The gradient by x from those of tiles, whose ends overlap."""

    def __init__(self, x: Tensor) -> None:
        self._sum = torch.empty_like(x, memory_format=torch.contiguous_format)
        self._row = -1
        self._covered = x.shape[1]

    def add(self, tile: Tile, gradient: Tensor) -> None:
        """Tiles come row by row and from left to right."""
        if tile.rows.start != self._row:
            self._row = tile.rows.start
            self._covered = 0
        part = self._sum[tile.rows]
        start = tile.into.start
        part[:, self._covered : start] = 0.0  # where kernels leave gaps
        twice = max(self._covered - start, 0)
        part[:, start : start + twice] += gradient[:, :twice]
        part[:, start + twice : tile.into.stop] = gradient[:, twice:]
        self._covered = tile.into.stop

    def whole(self) -> Tensor:
        """(B, T, C)."""
        self._sum[:, self._covered :] = 0.0  # positions after the last window, as many in every row
        return self._sum
