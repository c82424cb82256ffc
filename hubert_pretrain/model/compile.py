"""torch.compile of each layer or of the whole network: fewer passes over memory, the same numbers
up to rounding.

Crops have few lengths (data/batching.py), so each shape is compiled separately. No shape is
dynamic, and CUDA graphs apply.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from hubert_pretrain.errors import ConfigError
from hubert_pretrain.model.hubert import Hubert

_VARIANTS = 6
"""Largest number of compilations per shape: training steps, logged steps, both again with a frozen
front end, validation during training and after it.
"""


def compile_network(
    model: Hubert, what: str, *, mode: str = "default", shapes: int = 1, backend: str = "inductor"
) -> CompileClock | None:
    """Compiles parts of the network at their first call.

    Args:
        model: changed in place; the names of weights stay.
        what: "none"; "layers": each transformer layer (they are alike, so each shape is compiled
            once); "model": the network as one graph.
        mode: of torch.compile. "reduce-overhead" replays CUDA graphs.
        shapes: number of input shapes that will come.
        backend: of torch.compile.

    Returns:
        A clock of the time spent compiling; None when nothing is compiled.

    Raises:
        ConfigError: "model" with layer drop, where each choice of layers would be a new graph.
    """
    if what == "none":
        return None
    if what == "model" and model.config.layerdrop > 0:
        raise ConfigError(
            f"trainer.compile=model with model.layerdrop={model.config.layerdrop}: "
            "set that to 0, or trainer.compile=layers"
        )
    import torch
    import torch._dynamo

    # Beyond this limit torch would run uncompiled, without a message.
    dynamo: Any = torch._dynamo.config
    dynamo.recompile_limit = max(dynamo.recompile_limit, _VARIANTS * shapes)
    dynamo.accumulated_recompile_limit = max(
        dynamo.accumulated_recompile_limit, 2 * dynamo.recompile_limit
    )
    dynamo.fail_on_recompile_limit_hit = True

    options: dict[str, Any] = {"mode": mode} if backend == "inductor" else {}
    parts = model.context_encoder.layers if what == "layers" else [model]
    for part in parts:
        # Only `forward`, so that hooks of the layer run outside the graph.
        compiled: Callable[..., Any] = torch.compile(
            part.forward, dynamic=False, backend=backend, **options
        )
        part.forward = compiled  # type: ignore[method-assign, assignment]
    return CompileClock()


class CompileClock:
    """Seconds that this process has spent compiling since the clock was created."""

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
