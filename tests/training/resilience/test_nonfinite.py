"""A step with a bad number changes nothing and is counted; too many end the run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from hubert_pretrain.config.schema import PretrainConfig
from hubert_pretrain.errors import HubertPretrainError
from hubert_pretrain.training.optim import AdamWSettings, adamw, update_norm
from hubert_pretrain.training.resilience.nonfinite import FILE, NonFiniteGuard

NAN = float("nan")
INF = float("inf")


def optimiser() -> tuple[torch.nn.Parameter, torch.optim.AdamW]:
    weight = torch.nn.Parameter(torch.arange(4.0))
    return weight, adamw([weight], AdamWSettings.of(PretrainConfig(learning_rate=0.1)))


def train(
    gradients: list[float], guard: NonFiniteGuard, losses: list[float] | None = None
) -> tuple[torch.Tensor, torch.optim.AdamW]:
    weight, adam = optimiser()
    for step, gradient in enumerate(gradients):
        weight.grad = torch.full((4,), gradient)
        guard.record(step, torch.tensor(1.0 if losses is None else losses[step]))
        guard.decide(adam, step, weight.grad.norm())
        adam.step()
    return weight.detach(), adam


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_a_skipped_step_is_a_step_that_never_was(bad: float) -> None:
    """Weights, moments and Adam's own count are those of the other steps alone, to the bit."""
    skipped, one = train([bad, 1.0, bad, 2.0, bad], NonFiniteGuard(10))
    never, other = train([1.0, 2.0], NonFiniteGuard(10))
    assert torch.equal(skipped, never)
    for found, expected in zip(one.state.values(), other.state.values(), strict=True):
        assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_bad_loss_with_a_fine_gradient_is_skipped_too() -> None:
    guard = NonFiniteGuard(10)
    weights, _ = train([1.0, 1.0], guard, losses=[1.0, INF])
    assert torch.equal(weights, train([1.0], NonFiniteGuard(10))[0])
    guard.report()
    assert guard.total == 1


def test_what_was_skipped_is_counted_and_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    guard = NonFiniteGuard(2, lambda index: f"batch {index}", folder=tmp_path)
    train([1.0, NAN, 1.0, NAN, NAN], guard, losses=[1.0, NAN, 1.0, 1.0, NAN])
    guard.report()
    assert guard.state() == {"total": 3, "in_a_row": 2, "by_scaler": 0}
    assert (
        "not a number in batch 1; batch 4: skipped 3 steps, weights unchanged (3 skipped in all)"
        in caplog.text
    )
    assert json.loads((tmp_path / FILE).read_text()) == {
        "steps": [2, 4, 5],
        "micro_batches": ["batch 1", "batch 4"],
    }


def test_too_many_in_a_row_end_it_also_over_two_readings() -> None:
    guard = NonFiniteGuard(2)
    train([NAN, NAN], guard)
    guard.report()
    train([NAN], guard)
    with pytest.raises(
        HubertPretrainError,
        match=r"3 steps in a row, 3 in all, were skipped.*max_skipped_steps=2.*learning rate",
    ):
        guard.report()


def test_too_many_in_all_end_it() -> None:
    guard = NonFiniteGuard(1)
    for _ in range(10):
        train([NAN, 1.0], guard)
        guard.report()
    train([NAN, 1.0], guard)
    with pytest.raises(HubertPretrainError, match="11 in all"):
        guard.report()


def test_the_scaler_of_fp16_has_its_own_count() -> None:
    """Its infinite gradients are no fault; a loss that is no number is."""
    guard = NonFiniteGuard(2, scaled=True)
    train([INF, INF, INF, INF, 1.0], guard, losses=[1.0, 1.0, 1.0, NAN, 1.0])
    guard.report()
    assert (guard.by_scaler, guard.total) == (3, 1)


def test_the_update_norm_is_that_of_the_update() -> None:
    weight, adam = optimiser()
    for gradient in (1.0, -0.3, 0.7):
        before = weight.detach().clone()
        weight.grad = torch.full((4,), gradient)
        adam.step()
    assert update_norm(adam, 0.1) == pytest.approx(
        float((weight.detach() - before).norm()), rel=1e-2
    )
