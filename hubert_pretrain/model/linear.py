"""nn.Linear that trains faster on a CPU: two of its three products by oneDNN, which on the AMD core we measured beats MKL by 5 to 25 %.

(docs/benchmarks.md has the figures; the gradient of the weight is not faster that way.) Elsewhere, in other precisions, in inference and
in compiled graphs it is nn.Linear. Shapes: N inputs, M outputs.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Linear(nn.Linear):
    """(..., N) -> (..., M)."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., N) -> (..., M)."""
        if (
            torch.compiler.is_compiling()
            or not torch.is_grad_enabled()
            or not torch.backends.mkldnn.is_available()
            or torch.is_autocast_enabled(x.device.type)
            or any(tensor.device.type != "cpu" or tensor.dtype != torch.float32 for tensor in (x, self.weight))
        ):
            return F.linear(x, self.weight, self.bias)
        return _OneDnnLinear.apply(x, self.weight, self.bias)  # type: ignore[no-any-return]


class _OneDnnLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _product(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, weight = ctx.saved_tensors
        by_x = _product(gradient.contiguous(), weight.T, None) if ctx.needs_input_grad[0] else None
        flat = gradient.flatten(0, -2)
        by_weight = flat.T @ x.flatten(0, -2) if ctx.needs_input_grad[1] else None
        by_bias = flat.sum(0) if ctx.needs_input_grad[2] else None
        return by_x, by_weight, by_bias


def _product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x @ weight.T + bias; the weight dense in memory, one way or the other (of a slice oneDNN makes a product a thousand times slower)."""
    y: Tensor = torch.ops.mkldnn._linear_pointwise(x.contiguous(), weight, bias, "none", [], "")
    return y
