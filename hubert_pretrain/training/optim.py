"""AdamW and learning-rate schedules.

From the recipe to the weights: `learning_rate` of a recipe -> `AdamWSettings.of` -> `adamw`; the
schedule scales it by a share of the peak after each update (`with_schedule`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor, nn

from hubert_pretrain.training.strategies import full_tensor

if TYPE_CHECKING:
    from hubert_pretrain.config.schema import (
        FinetuneConfig,
        PretrainConfig,
        SpinConfig,
        TrainingConfig,
    )

ALL = "all"
MATRICES = "matrices"

Schedule: TypeAlias = Callable[[int], float]
"""Updates done (0-based number of the next one) -> share of the peak learning rate."""


@dataclass(frozen=True, kw_only=True)
class AdamWSettings:
    """Optimiser hyper-parameters."""

    learning_rate: float  # peak
    betas: Sequence[float]
    eps: float
    weight_decay: float
    weight_decay_on: str = ALL  # every parameter, as in fairseq; or MATRICES
    clip_norm: float  # global gradient norm; 0: no clipping
    max_gradient_spike: float = 0.0  # see SpikeGuard; 0: any

    @staticmethod
    def of(config: TrainingConfig) -> AdamWSettings:
        """The settings of a training stage."""
        return AdamWSettings(
            learning_rate=config.learning_rate,
            betas=config.betas,
            eps=config.eps,
            weight_decay=config.weight_decay,
            weight_decay_on=config.weight_decay_on,
            clip_norm=config.clip_norm,
            max_gradient_spike=config.max_gradient_spike,
        )


def adamw(
    parameters: Iterable[nn.Parameter],
    settings: AdamWSettings,
    *,
    undecayed: Container[nn.Parameter] = (),
    rates: Mapping[nn.Parameter, float] | None = None,
    fused: bool = True,
) -> torch.optim.AdamW:
    """AdamW over the parameters that learn; those of `undecayed` are in groups without decay, and
    those with a peak rate of their own in `rates` in groups of that rate, the highest first.

    `fused` must be off under fp16: a fused step unscales gradients itself, after clipping.
    """
    learning = [parameter for parameter in parameters if parameter.requires_grad]
    can_fuse = all(parameter.device.type in ("cpu", "cuda") for parameter in learning)
    members: dict[tuple[bool, float], list[nn.Parameter]] = {}
    for each in learning:
        rate = (rates or {}).get(each, settings.learning_rate)
        members.setdefault((each in undecayed, rate), []).append(each)
    groups: list[dict[str, Any]] = []
    for spared, rate in sorted(members, key=lambda key: (key[0], -key[1])):
        groups.append({"params": members[spared, rate], "lr": rate})
        if spared:
            groups[-1]["weight_decay"] = 0.0
    first, second = settings.betas
    return torch.optim.AdamW(
        groups,
        lr=settings.learning_rate,
        betas=(first, second),
        eps=settings.eps,
        weight_decay=settings.weight_decay,
        fused=fused and can_fuse,
    )


def undecayed_parameters(module: nn.Module, settings: AdamWSettings) -> set[nn.Parameter]:
    """The parameters on which `weight_decay_on=matrices` has no effect: biases, gains of norms and
    of weight normalisation, mixing weights, and embeddings (of masked frames, of clusters, of
    symbols).
    """
    found: set[nn.Parameter] = set()
    if settings.weight_decay_on == MATRICES:
        for part in module.modules():
            for name, parameter in part.named_parameters(recurse=False):
                is_matrix = sum(size > 1 for size in parameter.shape) > 1
                if not is_matrix or "embedding" in name or isinstance(part, nn.Embedding):
                    found.add(parameter)
    return found


def with_schedule(optimizer: torch.optim.Optimizer, schedule: Schedule) -> dict[str, Any]:
    """The optimiser and its schedule in the form of Lightning's `configure_optimizers`, stepped
    after each update.
    """
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, schedule)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def follow(scheduler: torch.optim.lr_scheduler.LambdaLR) -> None:
    """Set the rates to those of the schedule after the updates that were done."""
    parts = zip(
        scheduler.optimizer.param_groups, scheduler.base_lrs, scheduler.lr_lambdas, strict=True
    )
    for group, peak, share_of_peak in parts:
        group["lr"] = peak * share_of_peak(scheduler.last_epoch)


def pretraining_schedule(config: PretrainConfig) -> Schedule:
    """The schedule of a recipe."""
    if config.schedule == "wsd":
        return wsd_schedule(
            config.steps,
            config.warmup_fraction,
            config.decay_fraction,
            final_scale=config.final_lr_scale,
        )
    make = cosine_schedule if config.schedule == "cosine" else linear_schedule
    return make(config.steps, config.warmup_fraction, final_scale=config.final_lr_scale)


def spin_schedule(config: SpinConfig) -> Schedule:
    """The schedule of a speaker-invariant stage."""
    return linear_schedule(config.steps, config.warmup_fraction, final_scale=config.final_lr_scale)


def finetuning_schedule(config: FinetuneConfig) -> Schedule:
    """The schedule of a task."""
    return tri_stage_schedule(
        config.steps,
        warmup_fraction=config.warmup_fraction,
        hold_fraction=config.hold_fraction,
        initial_scale=config.initial_lr_scale,
        final_scale=config.final_lr_scale,
    )


def linear_schedule(steps: int, warmup_fraction: float, *, final_scale: float = 0.0) -> Schedule:
    """Linear warm-up over w steps, a share of all N, then linear decay to f = `final_scale`:
    f + (1 - f) (N - n) / (N - w) after n updates.

    fairseq's `polynomial_decay`, except that the warm-up is one update ahead, (n + 1) / w: fairseq
    runs its very first update with a rate of 0.
    """
    warmup_steps = round(steps * warmup_fraction)

    def fall(step: int) -> float:
        return max(0.0, (steps - step) / max(1, steps - warmup_steps))

    return _after_warmup(warmup_steps, fall, final_scale)


def cosine_schedule(steps: int, warmup_fraction: float, *, final_scale: float = 0.0) -> Schedule:
    """The same warm-up, then half a cosine:
    f + (1 - f) (1 + cos(pi (n - w) / (N - w))) / 2 after n updates.
    """
    warmup_steps = round(steps * warmup_fraction)

    def fall(step: int) -> float:
        done = min(1.0, (step - warmup_steps) / max(1, steps - warmup_steps))
        return (1.0 + math.cos(math.pi * done)) / 2.0

    return _after_warmup(warmup_steps, fall, final_scale)


def wsd_schedule(
    steps: int, warmup_fraction: float, decay_fraction: float, *, final_scale: float = 0.0
) -> Schedule:
    """Warm-up, stable, decay: the same warm-up, then the peak, and in the last d steps, a share of
    all N, f + (1 - f) (1 - sqrt((n - (N - d)) / d)) after n updates (Haegele et al. 2024).

    Between warm-up and decay the rate does not depend on N, so a training that is made longer goes
    on from there.
    """
    stable_until = wsd_decay_start(steps, decay_fraction)

    def fall(step: int) -> float:
        decayed = (step - stable_until) / max(1, steps - stable_until)
        return 1.0 - math.sqrt(min(1.0, max(0.0, decayed)))

    return _after_warmup(round(steps * warmup_fraction), fall, final_scale)


def wsd_decay_start(steps: int, decay_fraction: float) -> int:
    """The number of updates after which the decay of `wsd_schedule` begins."""
    return steps - round(steps * decay_fraction)


def _after_warmup(warmup_steps: int, fall: Schedule, final_scale: float) -> Schedule:
    """A linear rise, then a fall from the peak to `final_scale`; `fall` goes from 1 to 0."""

    def share_of_peak(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / warmup_steps
        return final_scale + (1.0 - final_scale) * fall(step)

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


@torch.no_grad()
def update_norm(optimizer: torch.optim.Optimizer, rate: float) -> float:
    """Norm of the last update of all weights, rate x (m / (sqrt(v) + eps) + decay x weight) with
    Adam's moments.

    A few operations for all parameters together, with memory for two copies of them. Waits for the
    device. Every rank must call it.

    Args:
        rate: the learning rate of the first group in that update (the schedule, which scales all
            groups alike, has moved on since).
    """
    updates: list[Tensor] = []
    peaks = [group.get("initial_lr", group["lr"]) for group in optimizer.param_groups]
    for group, peak in zip(optimizer.param_groups, peaks, strict=True):
        first, second = group["betas"]
        owned = [each for each in group["params"] if optimizer.state.get(each)]
        if not owned:
            continue
        steps = torch.stack([optimizer.state[each]["step"] for each in owned]).tolist()
        moved = [(each, step) for each, step in zip(owned, steps, strict=True) if step > 0]
        if not moved:
            continue
        parameters = [each for each, _ in moved]
        means = [optimizer.state[each]["exp_avg"] for each, _ in moved]
        squares = [optimizer.state[each]["exp_avg_sq"] for each, _ in moved]
        divisors = torch._foreach_sqrt(squares)
        torch._foreach_div_(divisors, [math.sqrt(1 - second**step) for _, step in moved])
        torch._foreach_add_(divisors, group["eps"])
        of_group = torch._foreach_div(means, divisors)
        torch._foreach_div_(of_group, [1 - first**step for _, step in moved])
        torch._foreach_add_(of_group, parameters, alpha=group["weight_decay"])
        if peak != peaks[0]:
            torch._foreach_mul_(of_group, peak / peaks[0])
        updates += of_group
    if not updates:
        return 0.0
    return rate * float(full_tensor(torch.nn.utils.get_total_norm(updates, foreach=True)))
