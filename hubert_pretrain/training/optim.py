"""AdamW and learning-rate schedules.

From the recipe to the weights: `learning_rate` of a recipe -> `AdamWSettings.of` -> `adamw`; the
schedule scales it by a share of the peak after each update (`with_schedule`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor, nn

from hubert_pretrain.training.strategies import full_tensor

if TYPE_CHECKING:
    from hubert_pretrain.config.schema import FinetuneConfig, PretrainConfig

Schedule: TypeAlias = Callable[[int], float]
"""Updates done (0-based number of the next one) -> share of the peak learning rate."""


@dataclass(frozen=True, kw_only=True)
class AdamWSettings:
    """Optimiser hyper-parameters."""

    learning_rate: float  # peak
    betas: Sequence[float]
    eps: float
    weight_decay: float  # on every parameter, as in fairseq
    clip_norm: float  # global gradient norm; 0: no clipping

    @staticmethod
    def of(config: PretrainConfig | FinetuneConfig) -> AdamWSettings:
        """The settings of a training stage."""
        return AdamWSettings(
            learning_rate=config.learning_rate,
            betas=config.betas,
            eps=config.eps,
            weight_decay=config.weight_decay,
            clip_norm=config.clip_norm,
        )


def adamw(
    parameters: Iterable[nn.Parameter], settings: AdamWSettings, *, fused: bool = True
) -> torch.optim.AdamW:
    """AdamW over the parameters that learn.

    `fused` must be off under fp16: a fused step unscales gradients itself, after clipping.
    """
    learning = [parameter for parameter in parameters if parameter.requires_grad]
    can_fuse = all(parameter.device.type in ("cpu", "cuda") for parameter in learning)
    first, second = settings.betas
    return torch.optim.AdamW(
        learning,
        lr=settings.learning_rate,
        betas=(first, second),
        eps=settings.eps,
        weight_decay=settings.weight_decay,
        fused=fused and can_fuse,
    )


def with_schedule(optimizer: torch.optim.Optimizer, schedule: Schedule) -> dict[str, Any]:
    """The optimiser and its schedule in the form of Lightning's `configure_optimizers`, stepped
    after each update.
    """
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, schedule)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def linear_schedule(steps: int, warmup_fraction: float) -> Schedule:
    """Linear warm-up over a share of the steps, then linear decay to 0 at `steps`.

    fairseq's `polynomial_decay`, except that the warm-up is one update ahead: fairseq runs its very
    first update with a rate of 0.
    """
    warmup_steps = round(steps * warmup_fraction)

    def share_of_peak(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / warmup_steps
        return max(0.0, (steps - step) / max(1, steps - warmup_steps))

    return share_of_peak


def tri_stage_schedule(
    steps: int,
    *,
    warmup_fraction: float,
    hold_fraction: float,
    initial_scale: float,
    final_scale: float,
) -> Schedule:
    """Linear warm-up from `initial_scale`, hold, exponential decay to `final_scale`.

    fairseq's `tri_stage` (SpecAugment, Park et al. 2019).
    """
    warmup_steps = round(steps * warmup_fraction)
    hold_steps = round(steps * hold_fraction)
    decay_steps = max(1, steps - warmup_steps - hold_steps)

    def share_of_peak(step: int) -> float:
        if step < warmup_steps:
            return initial_scale + (1.0 - initial_scale) * step / warmup_steps
        decayed = max(0, step - warmup_steps - hold_steps)
        return math.exp(math.log(final_scale) * min(1.0, decayed / decay_steps))

    return share_of_peak


def update_norm(optimizer: torch.optim.Optimizer, rate: float) -> float:
    """Norm of the last update of all weights, rate x (m / (sqrt(v) + eps) + decay x weight) with
    Adam's moments.

    Waits for the device. Every rank must call it.

    Args:
        rate: the learning rate of that update (the schedule has moved on since).
    """
    total: Tensor | None = None
    for group in optimizer.param_groups:
        first, second = group["betas"]
        for parameter in group["params"]:
            state = optimizer.state.get(parameter)
            if not state:
                continue
            step = state["step"].to(parameter.device)
            mean = state["exp_avg"] / (1 - first**step)
            square = state["exp_avg_sq"] / (1 - second**step)
            decay = group["weight_decay"] * parameter.detach()
            update = rate * (mean / (square.sqrt() + group["eps"]) + decay)
            squares = torch.nan_to_num(update).float().square().sum()
            total = squares if total is None else total + squares
    return float(full_tensor(total).sqrt()) if total is not None else 0.0
