"""Dropout on a CPU with 16 random bits a number. PyTorch takes 32 of a slower generator, and ten
nanoseconds: of a step of Base 2 %.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

LEVELS = 1 << 16
"""A probability is right to 1/131072, and the factor on what stays is that of the rounded one."""


class Dropout(nn.Dropout):
    """nn.Dropout: (...) -> (...) with each number zero with probability `p` in training, and the
    others times 1 / (1 - p).
    """

    def forward(self, x: Tensor) -> Tensor:
        """(...) -> (...)."""
        ours = (
            x.device.type == "cpu"
            and 0.0 < self.p < 1.0
            and not self.inplace
            and not torch.compiler.is_compiling()
        )
        if self.training and ours:
            return _Dropout.apply(x, self.p)  # type: ignore[no-any-return]
        return super().forward(x)


class Draws:
    """What is dropped, drawn from a seed: the same again for the backward pass."""

    def __init__(self, seed: int, probability: float) -> None:
        self._source = np.random.SFC64(seed)
        self._below = min(round(probability * LEVELS), LEVELS - 1)
        self.factor = LEVELS / (LEVELS - self._below)
        """On what stays."""

    def kept(self, shape: Sequence[int]) -> Tensor:
        """int8 of this shape, 1 for what stays and 0 for what goes; other ones each time."""
        count = math.prod(shape)
        bits = self._source.random_raw(-(-count // 4)).view(np.int16)[:count]
        stays = bits >= np.int16(
            self._below - LEVELS // 2
        )  # NumPy's comparison takes a tenth of the time of torch's
        return torch.from_numpy(stays.view(np.int8)).view(*shape)


def draw_seed() -> int:
    """From PyTorch's generator, as every random number of a step, so that seeds and resumed runs
    mean what they say.
    """
    return int(torch.empty(1, dtype=torch.int64).random_().numpy()[0])


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, probability: float) -> Tensor:
        draws = Draws(draw_seed(), probability)
        kept = draws.kept(x.shape)
        ctx.factor = draws.factor
        ctx.save_for_backward(kept)
        return _scaled(x, kept, ctx.factor)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        (kept,) = ctx.saved_tensors
        return _scaled(gradient, kept, ctx.factor), None


def _scaled(x: Tensor, kept: Tensor, factor: float) -> Tensor:
    """A product with zeros and ones of the same type, in their array: `masked_fill` looks at number
    after number, and takes six times as long."""
    return kept.to(x.dtype).mul_(x).mul_(factor)
