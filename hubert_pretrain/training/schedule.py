"""Learning-rate schedules as pure functions of the update, so that resuming needs nothing but the step number."""

from __future__ import annotations

import math


def linear(step: int, *, steps: int, warmup_steps: int) -> float:
    """Share of the peak for update `step` (0-based): linearly up over `warmup_steps`, then linearly to 0 at `steps`.

    fairseq's `polynomial_decay`, except that the warm-up is one update ahead: fairseq runs its very first update with a rate of 0.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    return max(0.0, (steps - step) / max(1, steps - warmup_steps))


def tri_stage(step: int, *, steps: int, warmup_fraction: float, hold_fraction: float, initial_scale: float, final_scale: float) -> float:
    """Share of the peak for update `step` (0-based): linearly up from `initial_scale`, hold, exponentially down to `final_scale`.

    fairseq's `tri_stage` (SpecAugment, Park et al. 2019).
    """
    warmup_steps, hold_steps = round(steps * warmup_fraction), round(steps * hold_fraction)
    decay_steps = max(1, steps - warmup_steps - hold_steps)
    if step < warmup_steps:
        return initial_scale + (1.0 - initial_scale) * step / warmup_steps
    past = max(0, step - warmup_steps - hold_steps)
    return math.exp(math.log(final_scale) * min(1.0, past / decay_steps))
