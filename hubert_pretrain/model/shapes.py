"""Modules made for the shapes of their parameters alone, without memory and without values."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode


class _SkipNormal(TorchFunctionMode):
    """Leave out normal initialisation, which has no effect on the meta device.

    PyTorch runs it there in Python, and imports its compiler for that: 1.5 seconds of processor
    time in every program that loads a checkpoint.
    """

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if function in (nn.init.normal_, torch.Tensor.normal_):
            tensor: Tensor = args[0] if args else kwargs["tensor"]
            if tensor.is_meta:
                return tensor
        return function(*args, **kwargs)


@contextlib.contextmanager
def shapes_only() -> Iterator[None]:
    """Modules made inside have parameters on the meta device."""
    with torch.device("meta"), _SkipNormal():
        yield
