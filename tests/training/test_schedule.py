"""Learning rates against fairseq's formulas."""

from __future__ import annotations

import math

import pytest

from hubert_pretrain.training.optim import linear_schedule, tri_stage_schedule


def test_linear_starts_above_zero_peaks_and_ends_at_zero() -> None:
    factors = [linear_schedule(step, steps=100, warmup_steps=8) for step in range(100)]
    assert factors[0] == 1 / 8
    assert factors[7] == factors[8] == max(factors) == 1.0
    assert factors[99] == pytest.approx(1 / 92)
    assert linear_schedule(100, steps=100, warmup_steps=8) == 0.0


def test_linear_decays_as_fairseq_does() -> None:
    # polynomial_decay with power 1 after u completed updates: 1 - (u - warmup) / (max - warmup)
    for updates in (32_000, 100_000, 249_999):
        expected = 1 - (updates - 32_000) / (250_000 - 32_000)
        assert linear_schedule(updates, steps=250_000, warmup_steps=32_000) == pytest.approx(
            expected
        )


def test_linear_without_warmup() -> None:
    assert linear_schedule(0, steps=10, warmup_steps=0) == 1.0


def test_tri_stage() -> None:
    values = {
        "steps": 1000,
        "warmup_fraction": 0.1,
        "hold_fraction": 0.4,
        "initial_scale": 0.01,
        "final_scale": 0.05,
    }
    assert tri_stage_schedule(0, **values) == pytest.approx(0.01)
    assert tri_stage_schedule(50, **values) == pytest.approx(0.01 + 0.99 * 0.5)
    assert tri_stage_schedule(100, **values) == tri_stage_schedule(499, **values) == 1.0
    assert tri_stage_schedule(750, **values) == pytest.approx(math.exp(math.log(0.05) * 0.5))
    assert (
        tri_stage_schedule(1000, **values)
        == tri_stage_schedule(5000, **values)
        == pytest.approx(0.05)
    )
