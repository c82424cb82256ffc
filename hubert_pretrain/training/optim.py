"""AdamW and learning-rate schedules."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import nn

from hubert_pretrain.training.strategies import full_tensor


def adamw(
    parameters: Iterable[nn.Parameter],
    *,
    learning_rate: float,
    betas: Sequence[float],
    eps: float,
    weight_decay: float,
    fused: bool = True,
) -> torch.optim.AdamW:
    """AdamW over the parameters that learn. `fused` must be off under fp16: a fused step unscales
    gradients itself, after clipping.
    """
    learning = [parameter for parameter in parameters if parameter.requires_grad]
    fused = fused and all(parameter.device.type in ("cpu", "cuda") for parameter in learning)
    first, second = betas
    return torch.optim.AdamW(
        learning,
        lr=learning_rate,
        betas=(first, second),
        eps=eps,
        weight_decay=weight_decay,
        fused=fused,
    )


def with_schedule(
    optimizer: torch.optim.Optimizer, factor: Callable[[int], float]
) -> dict[str, Any]:
    """What `configure_optimizers` returns: the peak rate times `factor(updates done)`, stepped
    after each update.
    """
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def update_norm(optimizer: torch.optim.Optimizer, rate: float) -> float:
    """Length of the last update of all weights, rate x (m / (sqrt(v) + eps) + decay x weight) with
    Adam's moments.

    Args:
        rate: the learning rate of that update (the schedule has moved on since).

    Waits for the device. Every rank must call it.
    """
    total: torch.Tensor | None = None
    for group in optimizer.param_groups:
        first, second = group["betas"]
        for parameter in group["params"]:
            state = optimizer.state.get(parameter)
            if not state:
                continue
            step = state["step"].to(parameter.device)
            mean = state["exp_avg"] / (1 - first**step)
            square = state["exp_avg_sq"] / (1 - second**step)
            update = rate * (
                mean / (square.sqrt() + group["eps"]) + group["weight_decay"] * parameter.detach()
            )
            length = torch.nan_to_num(update).float().square().sum()
            total = length if total is None else total + length
    return float(full_tensor(total).sqrt()) if total is not None else 0.0


def linear_schedule(step: int, *, steps: int, warmup_steps: int) -> float:
    """Share of the peak for update `step` (0-based): linearly up over `warmup_steps`, then linearly
    to 0 at `steps`.

    fairseq's `polynomial_decay`, except that the warm-up is one update ahead: fairseq runs its very
    first update with a rate of 0.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    return max(0.0, (steps - step) / max(1, steps - warmup_steps))


def tri_stage_schedule(
    step: int,
    *,
    steps: int,
    warmup_fraction: float,
    hold_fraction: float,
    initial_scale: float,
    final_scale: float,
) -> float:
    """Share of the peak for update `step` (0-based): linearly up from `initial_scale`, hold,
    exponentially down to `final_scale`.

    fairseq's `tri_stage` (SpecAugment, Park et al. 2019).
    """
    warmup_steps = round(steps * warmup_fraction)
    hold_steps = round(steps * hold_fraction)
    decay_steps = max(1, steps - warmup_steps - hold_steps)
    if step < warmup_steps:
        return initial_scale + (1.0 - initial_scale) * step / warmup_steps
    past = max(0, step - warmup_steps - hold_steps)
    return math.exp(math.log(final_scale) * min(1.0, past / decay_steps))
