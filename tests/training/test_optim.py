"""Learning rates against fairseq's formulas."""

from __future__ import annotations

import math

import pytest

from hubert_pretrain.training.optim import linear_schedule, tri_stage_schedule


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
