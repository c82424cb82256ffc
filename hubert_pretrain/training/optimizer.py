"""AdamW as fairseq runs it: decoupled decay on every parameter."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import nn


def adamw(
    parameters: Iterable[nn.Parameter], *, learning_rate: float, betas: Sequence[float], eps: float, weight_decay: float, fused: bool = True
) -> torch.optim.AdamW:
    """AdamW over the parameters that learn. `fused` must be off under fp16: a fused step unscales gradients itself, after clipping."""
    learning = [parameter for parameter in parameters if parameter.requires_grad]
    fused = fused and all(parameter.device.type in ("cpu", "cuda") for parameter in learning)
    first, second = betas
    return torch.optim.AdamW(learning, lr=learning_rate, betas=(first, second), eps=eps, weight_decay=weight_decay, fused=fused)


def with_schedule(optimizer: torch.optim.Optimizer, factor: Callable[[int], float]) -> dict[str, Any]:
    """What `configure_optimizers` returns: the peak rate times `factor(updates done)`, stepped after each update."""
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}
