"""Precision: process-wide settings of CUDA (TF32, attention by cuDNN), and a test of the
operations that a network uses in half precision on this machine.

PyTorch's defaults differ: convolutions round their factors to ten bits (TF32), matrix products do
not, and newer versions choose cuDNN's attention where it is fast.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from hubert_pretrain.model.config import HubertConfig
from hubert_pretrain.model.hubert import Hubert

HALF = (torch.bfloat16, torch.float16)
TOLERANCE = 0.05
"""Largest relative error of an operation. A right one has .003, in fp16 up to .03 where small
gradients underflow; a wrong one of oneDNN had .85.
"""
_TEST_SAMPLES = 8_000


def set_matmul_precision(*, tf32: bool, static_shapes: bool = False) -> None:
    """Sets the precision of fp32 products and convolutions on NVIDIA GPUs, for the whole process.

    Without effect on a CPU.

    Args:
        tf32: round the factors of fp32 products and convolutions to ten bits, several times as
            fast. False: full fp32. In bf16-mixed training only the small products of heads and
            statistics are fp32.
        static_shapes: batches have few shapes, so cuDNN's attention is allowed. It plans each new
            shape, which takes about a second; flash attention, nearly as fast, needs no plan.
    """
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    torch.backends.cudnn.allow_tf32 = tf32
    torch.backends.cuda.enable_cudnn_sdp(static_shapes)


@dataclass
class Comparison:
    """Operations in half precision compared with fp32."""

    operations: set[str] = field(default_factory=set)
    """Names of those that were compared."""
    faults: list[str] = field(default_factory=list)
    """`convolution of bfloat16 (2, 768, 24) (768, 48, 128): relative error 0.85`, the largest of
    each operation."""
    alone: set[str] = field(default_factory=set)
    """Names of those that have no fp32 form, such as flash attention on a GPU."""


def compare_operations(
    config: HubertConfig, dtype: torch.dtype, device: torch.device
) -> Comparison:
    """Compare each operation of a training step under autocast with the same one in fp32: forward
    and backward, in the widths of the network, with one transformer layer.
    """
    values: dict[str, Any] = {
        each.name: 0.0 for each in dataclasses.fields(config) if "dropout" in each.name
    }
    # Weights and gradients of a size that fp16 holds, as a training has them after its start.
    values |= {"initializer_range": config.hidden_size**-0.5, "conv_gradient_scale": 1.0}
    one = dataclasses.replace(config, num_hidden_layers=1, layerdrop=0.0, **values)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Hubert(one).train().to(device)
        waveform = torch.randn(2, _TEST_SAMPLES).to(device)
    watch = _Watch()
    with watch:
        with torch.autocast(device.type, dtype):
            hidden = model(waveform).last  # (B, T, D)
        hidden.float().square().sum().backward()  # a mean would underflow in fp16
    worst = {name: text for name, (_, text) in sorted(watch.faults.items())}
    return Comparison(watch.compared, list(worst.values()), watch.alone - watch.compared)


class _Watch(TorchDispatchMode):
    """Computes each operation on half-precision tensors a second time, in fp32."""

    def __init__(self) -> None:
        super().__init__()
        self.compared: set[str] = set()
        self.alone: set[str] = set()
        self.faults: dict[str, tuple[float, str]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        tensors = [each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
        half = [each.dtype for each in tensors if each.dtype in HALF]
        if not half or func._schema.is_mutable:
            return func(*args, **kwargs)
        result = func(*args, **kwargs)
        name = func.overloadpacket.__name__
        try:
            with torch.autocast(tensors[0].device.type, enabled=False):
                exact = func(*tree_map(_in_fp32, args), **tree_map(_in_fp32, kwargs))
        except RuntimeError:
            self.alone.add(name)
            return result
        self.compared.add(name)
        error = max(map(_relative_error, tree_leaves(result), tree_leaves(exact)), default=0.0)
        if not error <= max(TOLERANCE, self.faults.get(name, (0.0, ""))[0]):
            shapes = " ".join(str(tuple(each.shape)) for each in tensors)
            kind = str(half[0]).removeprefix("torch.")
            self.faults[name] = (error, f"{name} of {kind} {shapes}: relative error {error:.2g}")
        return result


def _in_fp32(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.dtype in HALF else value


def _relative_error(found: Any, exact: Any) -> float:
    """|found - exact| / |exact| of two tensors of numbers; 0 of anything else."""
    if not isinstance(found, Tensor) or not found.is_floating_point() or found.shape != exact.shape:
        return 0.0
    size = exact.float().norm()
    if size == 0:
        return float(found.float().norm())
    error = float((found.float() - exact.float()).norm() / size)
    return math.inf if math.isnan(error) else error
