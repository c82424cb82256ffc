"""The choice of a distributed strategy, and presets that share the paper's batch. Whole runs are
compared in tests/pretrain/test_world_sizes.py.
"""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest
import torch
from torch import nn

from hubert_pretrain.config import compose
from hubert_pretrain.config.schema import Recipe, TrainerConfig
from hubert_pretrain.distributed import accumulation
from hubert_pretrain.errors import ConfigError
from hubert_pretrain.fields import names_of
from hubert_pretrain.pipeline import plan
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


def test_fsdp_preset(tmp_path: Path) -> None:
    assert composed(tmp_path, "trainer=fsdp", "trainer.devices=4").trainer.strategy == "fsdp"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["trainer.strategy=fsp"],
            r"trainer\.strategy='fsp': expected one of auto, ddp, fsdp.*fsdp",
        ),
        (
            ["trainer=ddp", "trainer.gradient_compression=bf61"],
            r"gradient_compression='bf61': expected one of none, bf16.*bf16",
        ),
        (
            ["trainer=fsdp", "trainer.precision=16-mixed"],
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


def test_strategies_by_name() -> None:
    assert names_of(TrainerConfig, "strategy") == STRATEGIES
    assert make_strategy("auto", world_size=1, timeout=HOUR) == "auto"
    assert isinstance(make_strategy("fsdp", world_size=1, timeout=HOUR), FSDP)
    for name, world_size in (("auto", 2), ("ddp", 1)):
        ddp = make_strategy(name, world_size=world_size, timeout=HOUR, gradient_compression="bf16")
        assert isinstance(ddp, DDP)
        assert ddp.compressed
        assert ddp._ddp_kwargs == {"gradient_as_bucket_view": True}
        assert ddp._timeout == HOUR
    with pytest.raises(ConfigError, match=r"ddq.*mean 'ddp'"):
        make_strategy("ddq", world_size=1, timeout=HOUR)


def test_what_is_whole_stays_what_it_is() -> None:
    module = nn.Linear(2, 2)
    assert gather_module(module, lambda: nn.Linear(2, 2)) is module
    assert full_tensor(module.weight) is module.weight
    assert torch.equal(full_tensor(torch.ones(2)), torch.ones(2))
