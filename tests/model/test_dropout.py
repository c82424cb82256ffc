from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from hubert_pretrain.model.dropout import Draws, Dropout


@given(
    shape=st.lists(st.integers(0, 9), min_size=1, max_size=3),
    probability=st.floats(0.001, 0.999),
    seed=st.integers(0, 2**63 - 1),
)
def test_what_stays_is_scaled_and_the_gradient_is_that_of_the_same_draws(
    shape: list[int], probability: float, seed: int
) -> None:
    torch.manual_seed(seed)
    x = torch.rand(shape).add_(1.0).requires_grad_()
    y = Dropout(probability)(x)
    stays = y > 0
    torch.testing.assert_close(
        y, torch.where(stays, x / (1 - probability), 0.0), rtol=0.01, atol=0.0
    )
    (gradient,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(gradient, (y / x).detach())


@pytest.mark.parametrize("probability", [0.05, 0.1, 0.5, 0.95])
def test_as_many_go_as_with_pytorch(probability: float) -> None:
    torch.manual_seed(1)
    x = torch.ones(1000, 1000)
    ours = Dropout(probability)(x)
    theirs = nn.Dropout(probability)(x)
    deviation = (probability * (1 - probability) / x.numel()) ** 0.5
    for y in (ours, theirs):
        assert abs(float((y == 0).double().mean()) - probability) < 5 * deviation
    torch.testing.assert_close(ours.max(), theirs.max(), rtol=1e-4, atol=0.0)


def test_neighbours_are_independent() -> None:
    """The four draws of one 64-bit number, and those of the next: no correlation beyond chance at
    any of sixteen distances.
    """
    kept = Draws(3, 0.5).kept((1_000_000,)).double() - 0.5
    for distance in range(1, 17):
        assert abs(float((kept[:-distance] * kept[distance:]).mean() / 0.25)) < 5e-3


def test_seeds_decide_and_each_layer_draws_anew() -> None:
    x = torch.ones(100)
    torch.manual_seed(1)
    first = Dropout(0.5)(x)
    second = Dropout(0.5)(x)
    torch.manual_seed(1)
    assert torch.equal(Dropout(0.5)(x), first)
    assert not torch.equal(first, second)


@pytest.mark.parametrize(("probability", "training"), [(0.0, True), (0.3, False)])
def test_nothing_is_dropped_without_training_or_probability(
    probability: float, training: bool
) -> None:
    x = torch.randn(50)
    assert torch.equal(Dropout(probability).train(training)(x), x)


def test_everything_goes_at_one_and_almost_everything_just_below() -> None:
    x = torch.ones(1000)
    assert not Dropout(1.0)(x).any()
    assert torch.isfinite(Dropout(1 - 1e-9)(x)).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_keeps_the_precision(dtype: torch.dtype) -> None:
    assert Dropout(0.3)(torch.ones(10, dtype=dtype)).dtype == dtype
