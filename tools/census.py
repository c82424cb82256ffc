"""Counts of a training step of Base as a GPU would run it: kernels, and the bytes that they move.

    python tools/census.py
    python tools/census.py --fuse 1 8 --recipe base_ls960 trainer.residual=bf16

The step is computed without data, on PyTorch's meta device, uncompiled, with bf16 autocast, flash
attention and fused dropout put in by hand, since that device has none of them. Counted is a forward
and backward pass of the longest shape; a kernel is an operation that is no view and no allocation.
The bytes are those of its inputs and outputs, each once. Real kernels may be more (a convolution
that pads first) or fewer (fused ones).
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from hubert_pretrain.config import compose
from hubert_pretrain.config.schema import Recipe
from hubert_pretrain.data.batching import BatchShape
from hubert_pretrain.errors import HubertPretrainError
from hubert_pretrain.frames import samples, seconds
from hubert_pretrain.model.half_precision import HalfCopies
from hubert_pretrain.model.masking import expected_count
from hubert_pretrain.pretrain.module import PretrainModule
from hubert_pretrain.tools import benchmarking
from hubert_pretrain.tools.command import report

K = 500
IN_BF16 = {
    F.linear,
    F.conv1d,
    F.conv2d,
    torch.bmm,
    torch.matmul,
    torch.mm,
    torch.addmm,
    torch.baddbmm,
    Tensor.matmul,
    Tensor.__matmul__,
    Tensor.bmm,
}
"""Operations that autocast computes in bf16."""
IN_FP32 = {F.layer_norm, F.group_norm, F.cross_entropy, torch.pow, Tensor.pow, Tensor.square}
"""Operations that it computes in fp32."""


@dataclass(frozen=True, kw_only=True)
class Census:
    """Of one forward and backward pass."""

    kernels: int
    bytes: int
    audio_seconds: float

    @property
    def bytes_per_second(self) -> float:
        """Of audio."""
        return self.bytes / self.audio_seconds


class Count(TorchDispatchMode):
    """Kernels and the bytes that they read and write."""

    def __init__(self) -> None:
        super().__init__()
        self.kernels = 0
        self.bytes = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Count an operation that does more than give its input another form."""
        result = function(*args, **(kwargs or {}))
        if function is torch.ops.aten.convolution.default and is_channels_last(args[0]):
            # This device forgets the memory format, and the next convolution would copy.
            result = torch.empty_like(result, memory_format=torch.channels_last)
        given = tensors((args, kwargs))
        made = tensors(result)
        places = {place_of(each) for each in given}
        changes_nothing = all(place_of(each) in places for each in made)
        is_allocation = "empty" in function._schema.name
        if not function._schema.is_mutable and ((given and changes_nothing) or is_allocation):
            return result
        self.kernels += 1
        moved = {(place_of(each), each.storage_offset()): size_of(each) for each in [*given, *made]}
        self.bytes += sum(moved.values())
        return result


def tensors(tree: Any) -> list[Tensor]:
    """All tensors of a structure."""
    return [each for each in tree_leaves(tree) if isinstance(each, Tensor)]


def place_of(tensor: Tensor) -> int:
    """The storage that it lies in."""
    return tensor.untyped_storage()._cdata


def size_of(tensor: Tensor) -> int:
    """Bytes that a kernel reads of it: an expanded axis is read once."""
    numbers = 1
    for length, stride in zip(tensor.shape, tensor.stride(), strict=True):
        if stride != 0:
            numbers *= length
    return numbers * tensor.element_size()


def is_channels_last(x: Tensor) -> bool:
    """True for (B, C, H, T) whose channels lie side by side."""
    return x.ndim == 4 and x.stride(1) == 1


class FusedDropout(torch.autograd.Function):
    """F.dropout as on a GPU: one kernel in each direction."""

    @staticmethod
    def forward(context: Any, x: Tensor, probability: float) -> Tensor:
        """x with a share of zeros, the rest scaled."""
        y, mask = torch.ops.aten.native_dropout(x, probability, True)
        context.save_for_backward(mask)
        context.scale = 1 / (1 - probability)
        return y

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Any:  # type: ignore[override]
        """The same of the gradient."""
        (mask,) = context.saved_tensors
        return torch.ops.aten.native_dropout_backward(gradient, mask, context.scale), None


class Autocast(contextlib.ContextDecorator):
    """The part of torch.autocast that a network sees, for every device."""

    enabled = False

    def __init__(self, device: str, dtype: Any = None, enabled: bool = True) -> None:
        self._wished = enabled
        self._before = False

    def __enter__(self) -> None:
        self._before = Autocast.enabled
        Autocast.enabled = self._wished

    def __exit__(self, *_: object) -> None:
        Autocast.enabled = self._before


def is_enabled(device: str = "") -> bool:
    """torch.is_autocast_enabled."""
    return Autocast.enabled


class BFloat16(TorchFunctionMode):
    """Autocast's casts, and a GPU's kernels of attention and dropout."""

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Call a function of PyTorch."""
        options = dict(kwargs or {})
        if function is F.scaled_dot_product_attention:
            q, k, v = (each.to(torch.bfloat16) for each in args[:3])
            dropout = options.get("dropout_p", 0.0)
            return torch.ops.aten._scaled_dot_product_flash_attention(q, k, v, dropout)[0]
        if function is F.dropout:
            return fused_dropout(*args, **options)
        if Autocast.enabled and function in IN_BF16:
            args, options = cast((args, options), torch.float32, torch.bfloat16)
        elif Autocast.enabled and function in IN_FP32:
            args, options = cast((args, options), torch.bfloat16, torch.float32)
        return function(*args, **options)


def fused_dropout(x: Tensor, p: float, training: bool = True, inplace: bool = False) -> Tensor:
    """F.dropout as on a GPU."""
    return FusedDropout.apply(x, p) if training and p > 0 else x


def cast(tree: Any, old: torch.dtype, new: torch.dtype) -> Any:
    """A structure with its tensors of one dtype in another."""

    def change(value: Any) -> Any:
        return value.to(new) if isinstance(value, Tensor) and value.dtype == old else value

    return tree_map(change, tree)


@contextlib.contextmanager
def autocast_by_hand() -> Iterator[None]:
    """bf16-mixed on a device that has no autocast."""
    with (
        mock.patch.object(torch, "autocast", Autocast),
        mock.patch.object(torch, "is_autocast_enabled", is_enabled),
        mock.patch.object(torch, "get_autocast_dtype", return_value=torch.bfloat16),
        BFloat16(),
    ):
        yield


def count(recipe_name: str, overrides: Sequence[str] = (), *, fuse: int = 1) -> Census:
    """The census of the first iteration of a recipe, with `fuse` micro-batches in the pass."""
    recipe = compose.recipe_of([f"+recipe={recipe_name}", "data.root=.", *overrides])
    meta = torch.device("meta")
    with meta:
        module, shape = training_module(recipe)
        module.train()
        batch = module.blank_batch(shape, fuse, meta)
        for parameter in module.parameters():
            parameter.grad = torch.zeros_like(parameter)
        HalfCopies(module, torch.bfloat16).take()
    with autocast_by_hand(), Count() as counted:
        with torch.autocast("meta", torch.bfloat16):
            loss = module.loss_of(batch)
        loss.backward()
    return Census(
        kernels=counted.kernels,
        bytes=counted.bytes,
        audio_seconds=seconds(batch["waveform"].numel()),
    )


def training_module(recipe: Recipe) -> tuple[PretrainModule, BatchShape]:
    """The module of the first iteration, uncompiled, and the longest shape of its micro-batches."""
    from hubert_pretrain.stages.runner import import_stage

    stage = import_stage("pretrain")
    config = next(iter(recipe.iterations.values())).pretrain
    recipe.trainer.compile = "none"
    module = stage.build_module(recipe, config, [K], recipe.seed)
    grid = recipe.model.grid
    longest = min(config.max_crop_seconds, config.micro_batch_seconds)
    num_frames = int(grid.num_frames(samples(longest)))
    return module, BatchShape(
        num_frames=num_frames,
        batch_rows=max(1, round(config.micro_batch_seconds / longest)),
        masked_frames=expected_count(num_frames, config.mask),
    )


def main(words: Sequence[str] | None = None) -> int:
    """Prints a line for each number of micro-batches, and all as JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--recipe", default="base_ls960", help="its first iteration")
    parser.add_argument("--fuse", type=int, nargs="+", default=[1, 8])
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="of the recipe")
    options = parser.parse_intermixed_args(words)
    rows = {}
    try:
        for fuse in options.fuse:
            found = count(options.recipe, options.overrides, fuse=fuse)
            print(
                f"fuse {fuse}: {found.kernels:,} kernels in {found.audio_seconds:.1f} s of audio, "
                f"{found.kernels / found.audio_seconds:.1f} and "
                f"{found.bytes_per_second / 1e6:.0f} MB per second of audio"
            )
            rows[f"fuse_{fuse}"] = {
                "kernels": found.kernels,
                "audio_seconds": found.audio_seconds,
                "megabytes_per_second": found.bytes_per_second / 1e6,
            }
    except HubertPretrainError as error:
        return report(error)
    benchmarking.print_json("census", rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
