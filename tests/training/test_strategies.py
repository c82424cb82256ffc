"""The choice of a distributed strategy, and presets that share the paper's batch. Whole runs are
compared in tests/pretrain/test_world_sizes.py.
"""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from hubert_pretrain.config import compose
from hubert_pretrain.config.schema import FinetuneConfig, Recipe, TrainerConfig
from hubert_pretrain.distributed import accumulation
from hubert_pretrain.errors import ConfigError
from hubert_pretrain.fields import names_of
from hubert_pretrain.pipeline import plan
from hubert_pretrain.stages.training import _hardware
from hubert_pretrain.training.dataloading import ResumableSampler
from hubert_pretrain.training.strategies import (
    DDP,
    FSDP,
    STRATEGIES,
    full_tensor,
    gather_module,
    make_strategy,
)

HOUR = timedelta(hours=1)
GPUS = [1, 4, 8, 16, 32]


def composed(tmp_path: Path, *words: str) -> Recipe:
    overrides = ["+recipe=base_ls960", f"data.root={tmp_path}", *words]
    return compose.recipe_of(overrides)


@pytest.mark.parametrize("count", GPUS)
def test_presets_share_the_papers_batch(tmp_path: Path, count: int) -> None:
    """The same steps of the same micro-batches, hence the same fingerprints, whatever the number of
    GPUs.
    """
    recipe = composed(tmp_path, f"trainer=gpus_{count}")
    plain_recipe = composed(tmp_path)
    world_size = recipe.trainer.devices * recipe.trainer.num_nodes
    assert world_size == count
    assert recipe.trainer.devices <= 8
    identities = [
        [stage.identity for stage in plan.stages(each)] for each in (recipe, plain_recipe)
    ]
    assert identities[0] == identities[1]
    trainings = [
        *[iteration.pretrain for iteration in recipe.iterations.values()],
        *recipe.finetune.values(),
    ]
    for training in trainings:
        micro_batches = round(training.batch_seconds / training.micro_batch_seconds)
        each = accumulation(micro_batches, world_size)
        shares = [
            list(
                ResumableSampler(
                    lambda: 7,
                    steps=9,
                    micro_batches=micro_batches,
                    rank=rank,
                    world_size=world_size,
                )
            )
            for rank in range(world_size)
        ]
        for step in (0, 1):
            first = (7 + step) * micro_batches
            of_step = [share[step * each : (step + 1) * each] for share in shares]
            assert sorted(number for share in of_step for number in share) == list(
                range(first, first + micro_batches)
            )


@pytest.mark.parametrize("name", ["fsdp", "hsdp"])
def test_presets_that_shard(tmp_path: Path, name: str) -> None:
    recipe = composed(tmp_path, f"trainer={name}", "trainer.devices=4")
    assert recipe.trainer.strategy == name
    pretrain = recipe.iterations["it1"].pretrain
    assert _hardware(recipe, pretrain).strategy == name
    assert _hardware(recipe, FinetuneConfig()).strategy == "ddp"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["trainer.strategy=fsp"],
            r"trainer\.strategy='fsp': expected one of auto, ddp, fsdp, hsdp.*fsdp",
        ),
        (
            ["trainer=hsdp", "trainer.shard_size=3"],
            r"trainer\.shard_size=3: 2 nodes of 8 processes cannot .*use 1, 2, 4, 8, 16",
        ),
        (["trainer=fsdp", "trainer.shard_size=4"], r"shard_size=4 is for hsdp; remove it"),
        (["trainer=hsdp", "trainer.shard_size=0"], r"shard_size='0': expected auto or a whole"),
        (
            ["trainer=ddp", "trainer.reduce_gradients=micro_batch"],
            r"reduce_gradients=micro_batch is for fsdp and hsdp; remove it",
        ),
        (
            ["trainer=fsdp", "trainer.reduce_gradients=never"],
            r"reduce_gradients='never': expected one of step, micro_batch",
        ),
        (
            ["trainer=ddp", "trainer.gradient_compression=bf61"],
            r"gradient_compression='bf61': expected one of none, bf16.*bf16",
        ),
        (
            ["trainer=hsdp", "trainer.precision=16-mixed"],
            r"no loss scaler.*use bf16-mixed or 32-true",
        ),
        (["trainer=fsdp", "trainer.gradient_compression=bf16"], r"is for ddp; remove it"),
        (["iterations.it2.pretrain.start_head=warn"], r"it2\.pretrain\.start_head='warn'.*warm"),
        (
            ["iterations.it2.pretrain.start_head=warm"],
            r"start_head=warm needs iterations\.it2\.pretrain\.start_from: a stage",
        ),
    ],
)
def test_what_cannot_be_is_refused_on_the_command_line(
    tmp_path: Path, words: list[str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        composed(tmp_path, *words)


def hardware(strategy: str, devices: int = 1, nodes: int = 1, **more: Any) -> TrainerConfig:
    return TrainerConfig(strategy=strategy, devices=devices, num_nodes=nodes, **more)


def test_strategies_by_name() -> None:
    assert names_of(TrainerConfig, "strategy") == STRATEGIES
    assert make_strategy(hardware("auto"), timeout=HOUR) == "auto"
    assert isinstance(make_strategy(hardware("fsdp"), timeout=HOUR), FSDP)
    for name, world_size in (("auto", 2), ("ddp", 1)):
        config = hardware(name, world_size, gradient_compression="bf16")
        ddp = make_strategy(config, timeout=HOUR)
        assert isinstance(ddp, DDP)
        assert ddp.compressed
        assert ddp._ddp_kwargs == {"gradient_as_bucket_view": True, "broadcast_buffers": False}
        assert ddp._timeout == HOUR
    with pytest.raises(ConfigError, match=r"ddq.*mean 'ddp'"):
        make_strategy(hardware("ddq"), timeout=HOUR)


@pytest.mark.parametrize(
    ("config", "groups"),
    [
        (hardware("fsdp", 8, 4), (1, 32)),
        (hardware("hsdp", 8, 4), (4, 8)),
        (hardware("hsdp", 8, 4, shard_size="4"), (8, 4)),
        (hardware("hsdp", 8, 4, shard_size="16"), (2, 16)),
        (hardware("hsdp", 8, 1), (1, 8)),
    ],
)
def test_groups_of_ranks_that_share_a_copy(config: TrainerConfig, groups: tuple[int, int]) -> None:
    strategy = make_strategy(config, timeout=HOUR)
    assert isinstance(strategy, FSDP)
    assert strategy.groups == groups


@pytest.mark.parametrize("size", ["3", "24", "64"])
def test_a_group_that_would_be_cut_is_refused(size: str) -> None:
    with pytest.raises(
        ConfigError, match=rf"shard_size={size}: 4 nodes of 8 .*; use 1, 2, 4, 8, 16, 32$"
    ):
        make_strategy(hardware("hsdp", 8, 4, shard_size=size), timeout=HOUR)


def test_what_is_whole_stays_what_it_is() -> None:
    module = nn.Linear(2, 2)
    assert gather_module(module, lambda: nn.Linear(2, 2)) is module
    assert full_tensor(module.weight) is module.weight
    assert torch.equal(full_tensor(torch.ones(2)), torch.ones(2))
