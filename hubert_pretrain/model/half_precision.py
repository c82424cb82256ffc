"""Half precision without casts that repeat: copies of the weights that last a whole step, and layer
norms that read and write bf16.

Autocast casts each weight again in every micro-batch, and each input of a norm to fp32.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

DTYPES = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
"""Precisions of a training that computes products in half precision, and its dtype."""


class Linear(nn.Linear):
    """nn.Linear that uses copies of its weights while a step has them."""

    copies: tuple[Tensor, Tensor | None] | None = None

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D')."""
        return F.linear(x, *weights_of(self))


class Conv1d(nn.Conv1d):
    """The parameters of a convolution; `weights_of` gives copies of them while a step has any."""

    copies: tuple[Tensor, Tensor | None] | None = None


def weights_of(module: Linear | Conv1d) -> tuple[Tensor, Tensor | None]:
    """Weight and bias, or their copies in half precision. Gradients go to the parameters."""
    if module.copies is None:
        return module.weight, module.bias
    weight, bias = module.copies
    copied = _Copied.apply
    # A compiled backward pass cannot ask whether there is a sum yet.
    if not torch.compiler.is_compiling() and module.weight.grad_dtype is None:
        copied = _CopiedOnce.apply
    return (
        copied(module.weight, weight),
        None if bias is None else copied(module.bias, bias),
    )


class HalfCopies:
    """Copies of the weights of a network in half precision, made once per step.

    They are what autocast would make in each micro-batch, to the bit. Between two steps, where
    weights may change, the modules do not have them; no checkpoint does.
    """

    def __init__(
        self, network: nn.Module, dtype: torch.dtype, *, used_once: nn.Module | None = None
    ) -> None:
        """
        Args:
            network: whose weights are copied.
            dtype: of the copies.
            used_once: part of it whose weights have one use in a forward pass: their gradients are
                added in half precision to the fp32 sum of the step. (Those of two uses would be
                added to each other in half precision first.)
        """
        for module in () if used_once is None else used_once.modules():
            if isinstance(module, (Linear, Conv1d)) and _is_copied(module):
                for parameter in module.parameters(recurse=False):
                    parameter.grad_dtype = None  # any: a sum in fp32 takes both
        self._modules = [
            module
            for module in network.modules()
            if isinstance(module, (Linear, Conv1d)) and _is_copied(module)
        ]
        self._parameters: list[Tensor] = []
        self._copies: list[Tensor] = []
        self._pairs: list[tuple[Tensor, Tensor | None]] = []
        for module in self._modules:
            weight = self._copy_of(module.weight, dtype)
            bias = None if module.bias is None else self._copy_of(module.bias, dtype)
            self._pairs.append((weight, bias))

    def take(self) -> None:
        """Copy the weights as they are now, and let the modules use the copies."""
        with torch.no_grad():
            torch._foreach_copy_(self._copies, self._parameters)
        for module, pair in zip(self._modules, self._pairs, strict=True):
            module.copies = pair

    def drop(self) -> None:
        """Let the modules use the weights themselves, before an update changes them."""
        for module in self._modules:
            module.copies = None

    def _copy_of(self, parameter: Tensor, dtype: torch.dtype) -> Tensor:
        copy = torch.empty_like(parameter, dtype=dtype, requires_grad=False)
        self._parameters.append(parameter)
        self._copies.append(copy)
        return copy


def layer_norm(x: Tensor, norm: nn.LayerNorm) -> Tensor:
    """The norm of (..., D) in x's dtype, with statistics in fp32.

    A GPU reads and writes bf16 in one kernel that sums in fp32. Everything else is computed in
    fp32: gradients may overflow in fp16, and a CPU would sum those of the weights in bf16.
    """
    in_bf16 = x.dtype == torch.bfloat16 and x.device.type != "cpu"
    dtype = torch.bfloat16 if in_bf16 else torch.float32
    with torch.autocast(x.device.type, enabled=False):
        y = F.layer_norm(
            x.to(dtype), norm.normalized_shape, norm.weight.to(dtype), norm.bias.to(dtype), norm.eps
        )
    return y.to(x.dtype)


class _Copied(torch.autograd.Function):
    """The copy of a parameter; its gradient is the parameter's."""

    @staticmethod
    def forward(context: Any, parameter: Tensor, copy: Tensor) -> Tensor:
        return copy.view_as(copy)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return gradient.float(), None


class _CopiedOnce(torch.autograd.Function):
    """The same. Once the step has a sum of gradients, which is fp32, it takes the gradient as it
    is: one kernel adds it, and no fp32 copy of it is written.
    """

    @staticmethod
    def forward(context: Any, parameter: Tensor, copy: Tensor) -> Tensor:
        context.parameter = parameter
        return copy.view_as(copy)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        has_sum = context.parameter.grad is not None
        return (gradient if has_sum else gradient.float()), None


def _is_copied(module: Linear | Conv1d) -> bool:
    """Convolutions are computed in fp32 on a CPU (model/conv_encoder.py)."""
    return isinstance(module, Linear) or module.weight.device.type != "cpu"
