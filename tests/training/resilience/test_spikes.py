"""An update with a gradient norm far above the median is skipped, without asking the device."""

from __future__ import annotations

import random
import statistics
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from hubert_pretrain.training.resilience import spikes
from hubert_pretrain.training.resilience.nonfinite import NonFiniteGuard
from hubert_pretrain.training.resilience.spikes import SpikeGuard
from tests.training.resilience.test_nonfinite import train


@pytest.fixture(autouse=True)
def short_window(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spikes, "WINDOW", 5)


def decisions(guard: SpikeGuard, norms: list[float]) -> list[bool]:
    return [bool(guard.is_spike(torch.tensor(norm))) for norm in norms]


def test_decisions_are_those_of_python_with_a_list() -> None:
    draw = random.Random(3)
    norms = [draw.lognormvariate(0, 1) * (10 if draw.random() < 0.1 else 1) for _ in range(300)]
    norms[40] = float("nan")
    norms[50] = float("inf")
    expected = []
    recent: list[float] = []
    for norm in norms:
        finite = norm - norm == 0
        expected.append(finite and len(recent) == 5 and norm > 3 * statistics.median(recent))
        recent = [*recent, norm][-5:] if finite else recent
    assert decisions(SpikeGuard(3), norms) == expected
    assert 10 < sum(expected) < 100


def test_a_lasting_change_is_followed() -> None:
    assert decisions(SpikeGuard(4), [1.0] * 5 + [9.0] * 5) == [False] * 5 + [True] * 3 + [False] * 2


def test_it_goes_on_from_its_state() -> None:
    norms = [1.0, 1.2, 0.9, 1.1, 1.0, 5.0, 1.0, 4.0, 6.0]
    whole = decisions(SpikeGuard(3), norms)
    first = SpikeGuard(3)
    begun = decisions(first, norms[:6])
    second = SpikeGuard(3)
    second.load_state(first.state())
    assert begun + decisions(second, norms[6:]) == whole


class Questions(TorchDispatchMode):
    """Counts what the host asks the device."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def test_a_skipped_spike_is_a_step_that_never_was_and_no_fault(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It counts as a spike, not towards `max_skipped_steps`."""
    calm = [1.0, 1.1, 0.9, 1.0, 1.0]
    guard = NonFiniteGuard(0, spikes=SpikeGuard(10))
    weights, adam = train([*calm, 50.0, 1.0], guard)
    expected, other = train([*calm, 1.0], NonFiniteGuard(0))
    assert torch.equal(weights, expected)
    for found, needed in zip(adam.state.values(), other.state.values(), strict=True):
        assert all(torch.equal(found[name], needed[name]) for name in needed)
    guard.report()
    assert guard.total == 0
    assert guard.spikes is not None
    assert guard.spikes.total == 1
    assert (
        "step 6: the gradient norm was above 10 times its median: skipped 1 updates" in caplog.text
    )


def test_nothing_is_asked_of_the_device_while_deciding() -> None:
    with Questions() as asked:
        SpikeGuard(3).is_spike(torch.tensor(1.0))
    assert asked.count == 0
