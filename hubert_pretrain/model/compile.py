"""torch.compile, layer by layer or the whole network: fewer passes over memory, the same numbers up
to rounding.

Crops have few lengths (data/batching.py), so every shape is compiled for itself: nothing is
dynamic, and CUDA graphs apply.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from hubert_pretrain.errors import ConfigError
from hubert_pretrain.model.hubert import Hubert

_VARIANTS = 6
"""Compilations per shape at most: training, its logged steps, both again with a frozen front end,
validation in training and after it.
"""


def compile_network(
    model: Hubert, what: str, *, mode: str = "default", shapes: int = 1, backend: str = "inductor"
) -> CompileClock | None:
    """Has parts of the network compiled when they first run.

    Args:
        model: changed in place; names of weights stay. what: "none"; "layers": each transformer
        layer, which are alike and so compile once per shape; "model": all of it as one graph. mode:
        of torch.compile. "reduce-overhead" replays CUDA graphs. shapes: how many input shapes there
        will be. backend: of torch.compile.

    Returns what measures how long that takes; None where nothing is compiled.

    Raises ConfigError for "model" with layer drop, which would make a new graph of every choice of
    layers.
    """
    if what == "none":
        return None
    if what == "model" and model.config.layerdrop > 0:
        raise ConfigError(
            f"trainer.compile=model with model.layerdrop={model.config.layerdrop}: set that to 0, or trainer.compile=layers"
        )
    import torch
    import torch._dynamo

    # Beyond its limit torch would silently run uncompiled.
    dynamo: Any = torch._dynamo.config
    dynamo.recompile_limit = max(dynamo.recompile_limit, _VARIANTS * shapes)
    dynamo.accumulated_recompile_limit = max(
        dynamo.accumulated_recompile_limit, 2 * dynamo.recompile_limit
    )
    dynamo.fail_on_recompile_limit_hit = True

    options: dict[str, Any] = {"mode": mode} if backend == "inductor" else {}
    parts = model.context_encoder.layers if what == "layers" else [model]
    for part in parts:
        # The forward alone: what watches a layer from outside (hooks) stays outside.
        compiled: Callable[..., Any] = torch.compile(
            part.forward, dynamic=False, backend=backend, **options
        )
        part.forward = compiled  # type: ignore[method-assign, assignment]
    return CompileClock()


class CompileClock:
    """Seconds that this process has spent compiling since the clock was made."""

    def __init__(self) -> None:
        from torch._dynamo.callback import on_compile_end, on_compile_start

        self.seconds = 0.0
        self._started = 0.0
        on_compile_start(self._start)
        on_compile_end(self._end)

    def _start(self, *_: Any) -> None:
        self._started = time.perf_counter()

    def _end(self, *_: Any) -> None:
        self.seconds += time.perf_counter() - self._started
