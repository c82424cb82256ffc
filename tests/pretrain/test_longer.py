"""A training goes on with more steps, finished or not: optimiser and position are kept, the rate is
that of the longer schedule.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from hubert_pretrain.config.schema import PretrainConfig, Recipe
from hubert_pretrain.pipeline.workspace import Workspace
from hubert_pretrain.stages.longer import begin_again
from hubert_pretrain.stages.pretrain import run
from hubert_pretrain.training.loggers import read_metrics
from hubert_pretrain.training.optim import linear_schedule
from hubert_pretrain.training.resilience.checkpoint_io import (
    VerifiedCheckpointIO,
    checkpoints,
    newest,
    step_of,
)
from tests.killed import killed_before_update

pytestmark = pytest.mark.slow

Recipes = Callable[..., Recipe]


def config(recipe: Recipe) -> PretrainConfig:
    return recipe.iterations["it1"].pretrain


def state(folder: Path) -> dict[str, Any]:
    path = newest(folder / "checkpoints")
    assert path is not None
    return VerifiedCheckpointIO().load_checkpoint(path)


def equal(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[name], other[name]) for name in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(equal, one, other))
    return bool(one == other)


def test_with_wsd_it_is_the_run_that_was_longer_from_the_start(
    recipe: Recipes, prepared: Workspace, tmp_path: Path
) -> None:
    """To the bit, with the moments of the optimiser, also when it is killed on its way and its
    steps are raised again.
    """
    schedule: dict[str, Any] = {
        "schedule": "wsd",
        "warmup_fraction": 0.0,
        "decay_fraction": 0.25,
        "checkpoint_every_steps": 7,
        "log_every_steps": 1,
    }
    whole = recipe(steps=16, **schedule)
    run(whole, prepared, "it1/pretrain", tmp_path / "whole")
    run(recipe(steps=8, **schedule), prepared, "it1/pretrain", tmp_path / "on")
    found = [step_of(path) for path in checkpoints(tmp_path / "on/checkpoints")]
    assert found == [6, 7, 8], "the one where the fall begins stays"
    longer = recipe(steps=12, **schedule)
    where = begin_again(tmp_path / "on", config(longer), 8)
    assert where == (
        "from the checkpoint of step 6, where the learning rate goes from 100% to 100% of its peak"
    )
    with killed_before_update(10):
        run(longer, prepared, "it1/pretrain", tmp_path / "on")
    where = begin_again(tmp_path / "on", config(whole), 12)
    assert where.startswith("from the checkpoint of step 9,"), "its fall is undone"
    run(whole, prepared, "it1/pretrain", tmp_path / "on")
    one = state(tmp_path / "whole")
    other = state(tmp_path / "on")
    for name in ("global_step", "state_dict", "optimizer_states", "lr_schedulers"):
        assert equal(one[name], other[name]), name


def test_with_a_linear_schedule_it_goes_on_from_its_end_at_the_rate_of_the_longer_one(
    recipe: Recipes, prepared: Workspace, tmp_path: Path
) -> None:
    values: dict[str, Any] = {"warmup_fraction": 0.0, "log_every_steps": 1}
    run(recipe(steps=8, **values), prepared, "it1/pretrain", tmp_path / "on")
    shutil.copytree(tmp_path / "on", tmp_path / "before")
    longer = recipe(steps=16, **values)
    assert begin_again(tmp_path / "on", config(longer), 8) == (
        "from the checkpoint of step 8, where the learning rate goes from 0% to 50% of its peak"
    )
    run(longer, prepared, "it1/pretrain", tmp_path / "on")
    rows = [row for row in read_metrics(tmp_path / "on/logs/metrics.csv") if "lr" in row]
    rates = {int(row["step"]): row["lr"] for row in rows}
    schedule = linear_schedule(16, 0.0)
    peak = config(longer).learning_rate
    # A row has the rate of the next update.
    assert [rates[step] for step in range(9, 16)] == pytest.approx(
        [peak * schedule(step) for step in range(9, 16)]
    )
    updates = [row["health/update_norm"] for row in rows if row["step"] == 9]
    assert updates[0] > 1e-3, "the first update has the rate of the longer schedule, not 0"
    for saved in state(tmp_path / "on")["optimizer_states"][0]["state"].values():
        assert saved["step"] > state(tmp_path / "before")["global_step"] / 2


def test_the_best_of_a_fall_that_is_undone_is_forgotten(
    recipe: Recipes, prepared: Workspace, tmp_path: Path
) -> None:
    values = recipe(
        steps=8,
        schedule="wsd",
        decay_fraction=0.25,
        valid_every_steps=4,
        keep_best="valid/loss/masked",
    )
    run(values, prepared, "it1/pretrain", tmp_path)
    longer = dataclasses.replace(config(values), steps=12)
    begin_again(tmp_path, longer, 8)
    found = [step_of(path) for path in checkpoints(tmp_path / "checkpoints")]
    assert found[-1] == 6
    again = dataclasses.replace(
        values, iterations={"it1": dataclasses.replace(values.iterations["it1"], pretrain=longer)}
    )
    run(again, prepared, "it1/pretrain", tmp_path)
    assert [step_of(path) for path in checkpoints(tmp_path / "checkpoints")][-1] == 12
