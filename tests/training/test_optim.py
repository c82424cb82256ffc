"""Learning rates against fairseq's formulas."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from hubert_pretrain.training.optim import (
    AdamWSettings,
    adamw,
    linear_schedule,
    tri_stage_schedule,
)


def test_linear_starts_above_zero_peaks_and_ends_at_zero() -> None:
    schedule = linear_schedule(100, 0.08)
    factors = [schedule(step) for step in range(100)]
    assert factors[0] == 1 / 8
    assert factors[7] == factors[8] == max(factors) == 1.0
    assert factors[99] == pytest.approx(1 / 92)
    assert schedule(100) == 0.0


def test_linear_decays_as_fairseq_does() -> None:
    # polynomial_decay with power 1 after u completed updates: 1 - (u - warmup) / (max - warmup)
    schedule = linear_schedule(250_000, 0.128)
    for updates in (32_000, 100_000, 249_999):
        expected = 1 - (updates - 32_000) / (250_000 - 32_000)
        assert schedule(updates) == pytest.approx(expected)


def test_linear_without_warmup() -> None:
    assert linear_schedule(10, 0.0)(0) == 1.0


def test_tri_stage() -> None:
    schedule = tri_stage_schedule(
        1000, warmup_fraction=0.1, hold_fraction=0.4, initial_scale=0.01, final_scale=0.05
    )
    assert schedule(0) == pytest.approx(0.01)
    assert schedule(50) == pytest.approx(0.01 + 0.99 * 0.5)
    assert schedule(100) == schedule(499) == 1.0
    assert schedule(750) == pytest.approx(math.exp(math.log(0.05) * 0.5))
    assert schedule(1000) == schedule(5000) == pytest.approx(0.05)


def test_the_settings_of_a_recipe_reach_adamw() -> None:
    weight = nn.Parameter(torch.ones(3))
    frozen = nn.Parameter(torch.ones(3), requires_grad=False)
    settings = AdamWSettings(
        learning_rate=0.1, betas=(0.8, 0.9), eps=1e-3, weight_decay=0.25, clip_norm=1.0
    )
    optimizer = adamw([weight, frozen], settings)
    (group,) = optimizer.param_groups
    assert group["params"] == [weight]
    assert (group["lr"], group["betas"]) == (0.1, (0.8, 0.9))
    assert (group["eps"], group["weight_decay"]) == (1e-3, 0.25)
    weight.grad = torch.zeros(3)
    optimizer.step()
    # Without a gradient only the decay moves the weight.
    torch.testing.assert_close(weight.detach(), torch.full((3,), 1 - 0.1 * 0.25))
