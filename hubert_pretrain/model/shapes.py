"""Modules made for the shapes of their parameters alone, without memory and without values."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode


def _unchanged(tensor: Tensor, *_: Any, **__: Any) -> Tensor:
    return tensor


def _summed(tensor: Tensor, *, dim: tuple[int, ...], keepdim: bool, **_: Any) -> Tensor:
    return tensor.sum(dim=dim, keepdim=keepdim)


_SAME_SHAPE: dict[Any, Callable[..., Tensor]] = {
    nn.init.normal_: _unchanged,
    Tensor.normal_: _unchanged,
    Tensor.norm: _summed,
}
"""Functions that PyTorch runs in Python on the meta device, importing its compiler for that (1.5
seconds of processor time in every program that loads a checkpoint), and others that give the same
shape.
"""


class _WithoutCompiler(TorchFunctionMode):
    """Replace the functions of `_SAME_SHAPE` for tensors without values."""

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = dict(kwargs or {})
        if function in _SAME_SHAPE:
            tensor: Tensor = args[0] if args else kwargs["tensor"]
            if tensor.is_meta:
                function = _SAME_SHAPE[function]
        return function(*args, **kwargs)


@contextlib.contextmanager
def shapes_only() -> Iterator[None]:
    """Modules made inside have parameters on the meta device."""
    with torch.device("meta"), _WithoutCompiler():
        yield
