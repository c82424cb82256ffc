"""Learning rates against fairseq's formulas."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from hubert_pretrain.config.schema import PretrainConfig
from hubert_pretrain.model.config import HubertConfig
from hubert_pretrain.model.heads import CodebookHead
from hubert_pretrain.model.hubert import Hubert
from hubert_pretrain.training.optim import (
    AdamWSettings,
    Schedule,
    adamw,
    cosine_schedule,
    linear_schedule,
    pretraining_schedule,
    tri_stage_schedule,
    undecayed_parameters,
    update_norm,
    wsd_schedule,
)
from tests.ranks import outputs_of_two_ranks


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


def after_warmup(schedule: Schedule, steps: int, warmup: int) -> list[float]:
    return [schedule(step) for step in range(warmup, steps + 1)]


def reference(make: Any, **arguments: Any) -> list[float]:
    """The same schedule by transformers, whose warm-up is one update behind."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = make(optimizer, **arguments)
    rates = []
    for _ in range(arguments["num_training_steps"] + 1):
        rates.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    return rates[arguments["num_warmup_steps"] :]


def test_cosine_at_known_points_and_as_transformers_has_it() -> None:
    from transformers import get_cosine_schedule_with_warmup as theirs

    schedule = cosine_schedule(100, 0.2)
    assert [schedule(step) for step in (0, 9, 19)] == [1 / 20, 10 / 20, 1.0]
    assert [schedule(step) for step in (20, 40, 60, 80, 100, 150)] == pytest.approx(
        [1.0, (2 + math.sqrt(2)) / 4, 0.5, (2 - math.sqrt(2)) / 4, 0.0, 0.0]
    )
    expected = reference(theirs, num_warmup_steps=20, num_training_steps=100)
    assert after_warmup(schedule, 100, 20) == pytest.approx(expected)


def test_wsd_at_known_points_and_as_transformers_has_it() -> None:
    from transformers import get_wsd_schedule as theirs

    schedule = wsd_schedule(100, 0.1, 0.2, final_scale=0.1)
    assert schedule(4) == 0.5
    assert {schedule(step) for step in range(9, 81)} == {1.0}
    assert [schedule(step) for step in (85, 100, 200)] == pytest.approx([0.55, 0.1, 0.1])
    expected = reference(
        theirs,
        num_warmup_steps=10,
        num_decay_steps=20,
        num_training_steps=100,
        decay_type="1-sqrt",
        min_lr_ratio=0.1,
    )
    assert after_warmup(schedule, 100, 10) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("values", "middle"),
    [({}, 0.5), ({"schedule": "cosine"}, 0.5), ({"schedule": "wsd", "decay_fraction": 0.25}, 1.0)],
)
def test_the_schedule_of_a_recipe(values: dict[str, Any], middle: float) -> None:
    config = PretrainConfig(steps=100, warmup_fraction=0.0, final_lr_scale=0.2, **values)
    schedule = pretraining_schedule(config)
    assert [schedule(0), schedule(100)] == pytest.approx([1.0, 0.2])
    assert schedule(50) == pytest.approx(0.2 + 0.8 * middle)


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


def test_decay_of_matrices_alone_spares_biases_norms_and_embeddings() -> None:
    """Of the whole network and its head, by hand: conv kernels and linear maps decay, and nothing
    else does.
    """
    network = nn.ModuleDict(
        {
            "model": Hubert(
                HubertConfig(
                    conv_dim=[8] * 7,
                    hidden_size=16,
                    num_hidden_layers=1,
                    num_attention_heads=2,
                    intermediate_size=32,
                    num_conv_pos_embeddings=8,
                    num_conv_pos_embedding_groups=2,
                    projection_size=8,
                )
            ),
            "head": CodebookHead(16, 8, [5]),
        }
    )
    settings = AdamWSettings.of(
        PretrainConfig(learning_rate=0.1, weight_decay=0.5, weight_decay_on="matrices")
    )
    spared = undecayed_parameters(network, settings)
    names = {name for name, parameter in network.named_parameters() if parameter not in spared}
    words = ("norm", "embedding", "bias", "weight_g")
    assert not [name for name in names if any(word in name for word in words)]
    maps = {
        f"{name}.weight"
        for name, part in network.named_modules()
        if isinstance(part, (nn.Linear, nn.Conv1d))
    }
    assert maps <= names
    optimizer = adamw(network.parameters(), settings, undecayed=spared)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.5, 0.0]
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(
        list(network.parameters())
    )
    every = AdamWSettings.of(PretrainConfig(learning_rate=0.1))
    assert undecayed_parameters(network, every) == set()


class Counted(TorchDispatchMode):
    """Counts operations."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls += 1
        return func(*args, **(kwargs or {}))


def trained(count: int) -> tuple[torch.optim.AdamW, dict[nn.Parameter, Tensor]]:
    """AdamW after two updates of `count` weights, of which every third had the first one alone, and
    the weights before the last update.
    """
    torch.manual_seed(0)
    weights = [nn.Parameter(torch.randn(4, 3)) for _ in range(count)]
    settings = AdamWSettings(
        learning_rate=0.01, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.3, clip_norm=0.0
    )
    optimizer = adamw(weights, settings, undecayed=set(weights[: count // 2]))
    before: dict[nn.Parameter, Tensor] = {}
    for step in range(3):
        before = {weight: weight.detach().clone() for weight in weights}
        for number, weight in enumerate(weights):
            weight.grad = torch.randn(4, 3) if step < 2 or number % 3 else None
        optimizer.step()
    return optimizer, before


def test_the_update_norm_is_that_of_the_update_in_a_few_operations() -> None:
    optimizer, before = trained(9)
    moved = [weight for weight in before if weight.grad is not None]
    squares = [(weight.detach() - before[weight]).square().sum() for weight in moved]
    # A weight without a gradient did not move, but its last update counts as in any other step.
    for group in optimizer.param_groups:
        group["params"] = [weight for weight in group["params"] if weight.grad is not None]
    expected = float(torch.stack(squares).sum().sqrt())
    assert update_norm(optimizer, 0.01) == pytest.approx(expected, rel=0.005)

    counts = []
    for weights in (4, 40):
        optimizer, _ = trained(weights)
        with Counted() as counted:
            update_norm(optimizer, 0.01)
        counts.append(counted.calls)
    assert counts[0] == counts[1] < 40


def test_an_update_that_was_skipped_from_the_start_has_no_norm() -> None:
    weight = nn.Parameter(torch.ones(3))
    optimizer = adamw([weight], AdamWSettings.of(PretrainConfig(learning_rate=0.1)))
    assert update_norm(optimizer, 0.1) == 0.0
    weight.grad = torch.full((3,), torch.inf)
    optimizer.found_inf = torch.ones(())  # type: ignore[attr-defined]
    optimizer.step()
    assert update_norm(optimizer, 0.1) == 0.0


SHARDED = """
import copy, torch, torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from hubert_pretrain.training.optim import AdamWSettings, adamw, update_norm
dist.init_process_group("gloo")
torch.manual_seed(0)
plain = torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.LayerNorm(7), torch.nn.Linear(7, 3))
sharded = copy.deepcopy(plain)
fully_shard(sharded, mesh=init_device_mesh("cpu", (2,)))
settings = AdamWSettings(
    learning_rate=0.01, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.1, clip_norm=0.0
)
x = torch.randn(4, 5)
for network in (plain, sharded):
    optimizer = adamw(network.parameters(), settings)
    for _ in range(3):
        optimizer.zero_grad()
        network(x).square().sum().backward()
        optimizer.step()
    print(update_norm(optimizer, 0.01))
dist.destroy_process_group()
"""


def test_the_update_norm_of_shards_is_that_of_the_whole(tmp_path: Path) -> None:
    for output in outputs_of_two_ranks(SHARDED, tmp_path):
        whole, of_shards = map(float, output.split())
        assert of_shards == pytest.approx(whole, rel=1e-6)
