"""A training step on a GPU that is not there: tensors that know their device and have no data, so
that every operation between two devices, and every question to the device, is seen.

The backward pass needs a driver; its operations are traced on the meta device (test_step_cost.py).
Here gradients are given, and everything after them runs: clipping, the decision about the step,
the optimiser, the average of the weights, the meter.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)

from hubert_pretrain.model import log_mel
from hubert_pretrain.model.config import HubertConfig
from hubert_pretrain.pretrain.module import PretrainModule
from hubert_pretrain.training.ema import EMA
from tests.pretrain.test_step_cost import FAST, LARGE, SMALL, Step, Trace


def findings(config: dict[str, Any], *, softmax: bool = False, logging: bool = False) -> list[str]:
    """Operations of two steps that mix devices or wait."""
    with FakeTensorMode(allow_non_fake_inputs=False):
        network = HubertConfig(**{**SMALL, **config})
        step = Step(network, rows=3, frames=99, device="cuda", softmax=softmax, logging=logging)
        module = step.module
        optimizer = step.trainer.optimizers[0]
        average = EMA(0.999)
        trainer: Any = step.trainer
        average.on_train_start(trainer, module)
        with Trace("cuda") as trace:
            try:
                for _ in range(2):
                    with torch.autocast("cuda", torch.bfloat16):
                        loss = module.training_step(step.batch, 0)
                    assert loss.requires_grad
                    for parameter in module.parameters():
                        parameter.grad = torch.zeros_like(parameter)
                    module.on_before_optimizer_step(optimizer)
                    module.configure_gradient_clipping(optimizer)
                    optimizer.step()
                    optimizer.zero_grad()
                    average.on_train_batch_end(trainer, module, None, step.batch, 0)
            except (DataDependentOutputException, DynamicOutputShapeException) as error:
                trace.asked.append(str(error))
    return trace.asked + trace.mixed


@pytest.fixture(autouse=True)
def without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """bf16 autocast, and a front end whose filters are not checked: they have no values."""
    monkeypatch.setattr("torch.cuda.amp.common.amp_definitely_not_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_: True)
    monkeypatch.setattr(log_mel, "bool", lambda _: False, raising=False)


@pytest.mark.parametrize("logging", [False, True])
@pytest.mark.parametrize(
    ("config", "softmax"),
    [({"layerdrop": 0.5}, False), (LARGE, False), (FAST, True)],
)
def test_a_step_neither_mixes_devices_nor_waits(
    config: dict[str, Any], softmax: bool, logging: bool
) -> None:
    assert findings(config, softmax=softmax, logging=logging) == []


WAITING: dict[str, Callable[[Tensor], Any]] = {
    "item": lambda loss: loss.item(),
    "float": lambda loss: float(loss),
    "if": lambda loss: 1 if loss > 0 else 2,
    "tolist": lambda loss: loss.tolist(),
    "cpu": lambda loss: loss.cpu(),
    "to the host without blocking": lambda loss: loss.to("cpu", non_blocking=True),
    "nonzero": lambda loss: loss.expand(3).nonzero(),
    "where": lambda loss: torch.where(loss.expand(3) > 0),
    "a boolean index": lambda loss: loss.expand(3)[loss.expand(3) > 0],
    "an assignment to a boolean index": lambda loss: loss.repeat(3).__setitem__(
        loss.expand(3) > 0, 1.0
    ),
    "masked_select": lambda loss: loss.expand(3).masked_select(loss.expand(3) > 0),
    "unique": lambda loss: loss.expand(3).unique(),
    "equal": lambda loss: torch.equal(loss, loss),
    "a number that becomes a tensor": lambda loss: torch.tensor([1.0, 2.0], device=loss.device),
    "a copy from the host": lambda loss: loss.clone().copy_(torch.ones(())),
    "a number among tensors": lambda loss: torch.where(loss > 0, torch.tensor(1.0), 0.0),
    "a list as an index": lambda loss: loss.expand(3)[[0, 1]],
}


@pytest.mark.parametrize("name", WAITING)
def test_what_would_wait_in_a_step_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    watch = PretrainModule.watch

    def waiting(self: PretrainModule, index: int, loss: Tensor, **more: Any) -> None:
        WAITING[name](loss.detach())
        watch(self, index, loss, **more)

    monkeypatch.setattr(PretrainModule, "watch", waiting)
    assert findings({}) != []
