"""torch.compile of the parts of a network: fewer passes over memory, the same numbers up to
rounding.

The parts are compiled separately, each as one graph per shape. So a layer can be left out, layers
that are alike share their compilation, and no part is compiled again because another one changes.
Crops have few lengths (data/batching.py), and no shape is dynamic.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar, cast

from torch import nn

from hubert_pretrain.model.hubert import Block, Hubert

Function = TypeVar("Function", bound=Callable[..., Any])

GRAPHS_PER_SHAPE = 4
"""Most graphs of one part for one shape: the head predicts masked and unmasked frames, in training
and in validation. All others learn, or do not.
"""
CACHE = "TORCHINDUCTOR_CACHE_DIR"
"""Environment variable: folder in which torch.compile keeps what it has made."""


class Compiler:
    """torch.compile with the settings of a training, and the time and number of its graphs."""

    def __init__(
        self,
        *,
        mode: str = "default",
        shapes: int = 1,
        backend: str = "inductor",
        sharded: bool = False,
    ) -> None:
        """
        Args:
            mode: of torch.compile.
            shapes: number of input shapes that will come, those of validation included.
            backend: of torch.compile.
            sharded: weights will be sharded over the ranks. They are gathered between the parts,
                outside of a graph: a layer is then two parts, and the head is not compiled.
        """
        import torch._dynamo

        self.sharded = sharded
        self.clock = CompileClock()
        self._options: dict[str, Any] = {"backend": backend}
        if backend == "inductor":
            self._options["mode"] = mode
        # Layers share the limit, because they share their code. fullgraph makes an error of what
        # would else run uncompiled without a message.
        limits: Any = torch._dynamo.config
        limits.recompile_limit = max(limits.recompile_limit, GRAPHS_PER_SHAPE * shapes)
        limits.accumulated_recompile_limit = max(
            limits.accumulated_recompile_limit, limits.recompile_limit
        )

    def __call__(self, function: Function) -> Function:
        """The function, compiled at its first call with each shape. A break of its graph raises."""
        import torch

        compiled = torch.compile(function, fullgraph=True, dynamic=False, **self._options)
        return cast("Function", compiled)

    def compile_network(self, model: Hubert) -> None:
        """Compile the parts of a network, in place; the names of weights stay."""
        for part in self._parts(model):
            # Only `forward`, so that hooks of the part run outside the graph.
            part.forward = self(part.forward)  # type: ignore[method-assign]

    def _parts(self, model: Hubert) -> Iterator[nn.Module]:
        encoder = model.context_encoder
        yield model.conv_encoder
        yield encoder.positions
        for layer in encoder.layers:
            assert isinstance(layer, Block)
            if self.sharded:
                yield layer.attention
                yield layer.feed_forward
            else:
                yield layer


class CompileClock:
    """Seconds that this process has spent compiling, and graphs that it has made, since the clock
    was created.
    """

    def __init__(self) -> None:
        from torch._dynamo.callback import on_compile_end, on_compile_start

        self.seconds = 0.0
        self._started = 0.0
        self._graphs_before = _graphs()
        on_compile_start(self._start)
        on_compile_end(self._end)

    @property
    def graphs(self) -> int:
        """Number of graphs."""
        return _graphs() - self._graphs_before

    def _start(self, *_: Any) -> None:
        self._started = time.perf_counter()

    def _end(self, *_: Any) -> None:
        self.seconds += time.perf_counter() - self._started


def _graphs() -> int:
    from torch._dynamo.utils import counters

    return int(counters["stats"]["unique_graphs"])


def keep_compiled(folder: Path) -> None:
    """Let torch.compile keep what it makes in a folder, for the next process, unless the user has
    chosen one (TORCHINDUCTOR_CACHE_DIR).
    """
    os.environ.setdefault(CACHE, str(folder))


def host_compilers(*, on_gpu: bool) -> list[str]:
    """Names of the compilers that torch.compile may call: for C on a GPU (Triton), C++ on a CPU."""
    variable, names = ("CC", ["gcc", "clang"]) if on_gpu else ("CXX", ["g++"])
    return [os.environ[variable]] if variable in os.environ else names


def host_compiler(*, on_gpu: bool) -> str | None:
    """The first of them that is on the PATH."""
    return next((name for name in host_compilers(on_gpu=on_gpu) if shutil.which(name)), None)


def missing_on_gpu() -> str | None:
    """A part that torch.compile needs on this machine's GPU and does not find."""
    from torch.utils._triton import has_triton

    if not has_triton():
        return "Triton for this GPU"
    if host_compiler(on_gpu=True) is None:
        return f"a C compiler ({' or '.join(host_compilers(on_gpu=True))})"
    return None
