"""`keep_best`: the result of a training is the checkpoint that scored best, and checkpoints of a
training are read like its result.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from hubert_pretrain.config.schema import Recipe
from hubert_pretrain.errors import ConfigError
from hubert_pretrain.interop.load import load_checkpoint
from hubert_pretrain.model.checkpoint import LoadedModel
from hubert_pretrain.pipeline.workspace import Workspace
from hubert_pretrain.pretrain.module import PretrainModule
from hubert_pretrain.stages.pretrain import run

Recipes = Callable[..., Recipe]


def weights(loaded: LoadedModel) -> dict[str, torch.Tensor]:
    return {**loaded.model.state_dict(), **loaded.head_state}


def same(one: LoadedModel, other: LoadedModel) -> bool:
    first = weights(one)
    second = weights(other)
    return first.keys() == second.keys() and all(
        torch.equal(tensor, second[name]) for name, tensor in first.items()
    )


def score(monkeypatch: pytest.MonkeyPatch, *losses: float) -> None:
    """The losses of the validations, in order."""
    original = PretrainModule.on_validation_epoch_end
    values = iter(losses)

    def scored(self: PretrainModule) -> None:
        original(self)
        self.validated = {**self.validated, "valid/loss/masked": next(values)}

    monkeypatch.setattr(PretrainModule, "on_validation_epoch_end", scored)


@pytest.mark.parametrize("ema_decay", [0.0, 0.4])
@pytest.mark.parametrize("best", [4, 8, 9])
def test_the_best_is_the_result(
    best: int,
    ema_decay: float,
    recipe: Recipes,
    prepared: Workspace,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also when the last step is the best, which is validated after the training (9)."""
    score(monkeypatch, *[1.0 if step == best else 2.0 for step in (4, 8, 9)])
    values = recipe(
        steps=9, valid_every_steps=4, ema_decay=ema_decay, keep_best="valid/loss/masked"
    )
    facts = run(values, prepared, "it1/pretrain", tmp_path)
    assert (facts["best_step"], facts["best_by"]) == (best, "valid/loss/masked")
    assert facts["masked_loss_nats"] == 1.0
    result = load_checkpoint(tmp_path)
    stored = load_checkpoint(tmp_path / "checkpoints" / f"step={best:08d}.ckpt")
    assert same(result, stored)
    assert stored.config["head"] == result.config["head"]
    assert stored.extra.items() <= result.extra.items()
    if best < 9:
        assert not same(result, load_checkpoint(tmp_path / "checkpoints" / "step=00000009.ckpt"))


def test_without_it_the_last_is(
    recipe: Recipes, prepared: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    score(monkeypatch, 1.0, 2.0)
    facts = run(recipe(steps=6, valid_every_steps=3), prepared, "it1/pretrain", tmp_path)
    assert "best_step" not in facts
    assert same(
        load_checkpoint(tmp_path), load_checkpoint(tmp_path / "checkpoints" / "step=00000006.ckpt")
    )


@pytest.mark.parametrize("name", ["valid/f1", "loss/masked", "valid/wer"])
def test_a_value_without_a_direction_is_refused_before_the_first_step(
    name: str,
    recipe: Recipes,
    prepared: Workspace,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def never(*args: Any) -> Any:
        raise AssertionError("a step was computed")

    monkeypatch.setattr(PretrainModule, "training_step", never)
    with pytest.raises(ConfigError, match=rf"keep_best={name}: .*valid/loss, valid/accuracy"):
        run(recipe(keep_best=name), prepared, "it1/pretrain", tmp_path)
