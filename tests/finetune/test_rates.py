"""Learning rates of the head and of each layer, and their schedule."""

from __future__ import annotations

import math

import pytest
import torch

from hubert_pretrain.config.schema import FinetuneConfig, PretrainConfig
from hubert_pretrain.finetune.rates import Rates
from hubert_pretrain.model.checkpoint import load_model
from hubert_pretrain.model.config import HubertConfig
from hubert_pretrain.model.heads import CTCHead
from hubert_pretrain.model.hubert import Hubert
from hubert_pretrain.pipeline.workspace import Workspace
from hubert_pretrain.training.loggers import read_metrics
from hubert_pretrain.training.optim import AdamWSettings, adamw, update_norm, with_schedule
from tests.finetune.conftest import run_task

CTC = {"_target_": "hubert_pretrain.finetune.ctc.CtcTask"}


@pytest.mark.parametrize("pre_norm", [False, True])
def test_layers_learn_the_slower_the_lower_they_are(tiny: HubertConfig, pre_norm: bool) -> None:
    config = HubertConfig(**{**vars(tiny), "do_stable_layer_norm": pre_norm})
    model = Hubert(config)
    head = CTCHead(16, 5)
    rates = Rates(encoder=0.4, head=3.0, layer_decay=0.5).of(model, head)
    assert rates.keys() == {*model.parameters(), *head.parameters()}
    assert {rates[each] for each in head.parameters()} == {3.0}
    first, second = model.context_encoder.layers
    assert {rates[each] for each in second.parameters()} == {0.4}
    assert {rates[each] for each in first.parameters()} == {0.2}
    assert {rates[each] for each in model.conv_encoder.parameters()} == {0.1}
    assert rates[model.context_encoder.norm.weight] == (0.4 if pre_norm else 0.1)
    assert rates[model.mask_embedding] == 0.1


def test_one_rate_needs_no_groups() -> None:
    config = FinetuneConfig(learning_rate=1e-3)
    assert Rates.of_config(config) is None
    config.head_learning_rate = 1e-3
    assert Rates.of_config(config) is None
    config.head_learning_rate = 5e-3
    assert Rates.of_config(config) == Rates(1e-3, 5e-3, 1.0)


def test_an_update_is_that_of_an_optimiser_for_each_part() -> None:
    torch.manual_seed(0)
    slow = torch.nn.Linear(3, 3)
    fast = torch.nn.Linear(3, 2)
    settings = AdamWSettings.of(PretrainConfig(learning_rate=0.01, weight_decay=0.1))
    rates = dict.fromkeys(fast.parameters(), 0.05)
    both = [*slow.parameters(), *fast.parameters()]
    optimiser = adamw(both, settings, rates=rates)
    scheduled = with_schedule(optimiser, lambda step: 0.5**step)["lr_scheduler"]["scheduler"]
    assert [group["lr"] for group in optimiser.param_groups] == [0.05, 0.01]
    copies = [each.detach().clone().requires_grad_() for each in both]
    expected = [
        torch.optim.AdamW(
            part, lr=rate, betas=tuple(settings.betas), eps=settings.eps, weight_decay=0.1
        )
        for part, rate in ((copies[:2], 0.01), (copies[2:], 0.05))
    ]
    inputs = torch.randn(4, 3)
    for step in range(3):
        before = [each.detach().clone() for each in both]
        for parameters in (both, copies):
            hidden = torch.nn.functional.linear(inputs, parameters[0], parameters[1]).tanh()
            loss = torch.nn.functional.linear(hidden, parameters[2], parameters[3]).square().sum()
            loss.backward()
        optimiser.step()
        scheduled.step()
        for each, rate in zip(expected, (0.01, 0.05), strict=True):
            each.param_groups[0]["lr"] = rate * 0.5**step
            each.step()
            each.zero_grad()
        optimiser.zero_grad()
        for ours, theirs in zip(both, copies, strict=True):
            torch.testing.assert_close(ours, theirs)
        moved = math.sqrt(
            sum(
                float((new - old).detach().square().sum())
                for new, old in zip(both, before, strict=True)
            )
        )
        assert update_norm(optimiser, 0.05 * 0.5**step) == pytest.approx(moved, rel=0.02)


def test_a_recipe_sets_them(workspace: Workspace) -> None:
    """The head learns, and an encoder with almost no rate stays where it is."""
    rates = {"learning_rate": 1e-12, "head_learning_rate": 0.01, "layer_decay": 0.9}
    run_task(workspace, "asr", CTC, **rates, freeze_encoder_steps=0, log_every_steps=1)
    folder = workspace.partial_folder("finetune/asr")
    logged = [row["lr"] for row in read_metrics(folder / "logs" / "metrics.csv") if "lr" in row]
    assert max(logged) == pytest.approx(0.01)
    start = load_model(workspace.folder("it2/pretrain")).model.state_dict()
    for name, tensor in load_model(folder).model.state_dict().items():
        torch.testing.assert_close(tensor, start[name], atol=1e-9, rtol=1e-6)
    bias = load_model(folder).head_state["linear.bias"]
    assert bias.abs().max() > 1e-3
