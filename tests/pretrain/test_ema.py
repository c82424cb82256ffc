"""Averaged weights are what is validated and exported, and are as exact after an interruption as
without one.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

from hubert_pretrain.config.schema import Recipe
from hubert_pretrain.errors import Preempted
from hubert_pretrain.model.checkpoint import load_model
from hubert_pretrain.pipeline.workspace import Workspace
from hubert_pretrain.pretrain.module import PretrainModule
from hubert_pretrain.stages.pretrain import run
from hubert_pretrain.training.resilience.checkpoint_io import VerifiedCheckpointIO, newest
from hubert_pretrain.training.resilience.preemption import Preemption

pytestmark = pytest.mark.slow

Recipes = Callable[..., Recipe]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_model(folder).model.state_dict()


def content(folder: Path) -> dict[str, Any]:
    path = newest(folder / "checkpoints")
    assert path is not None
    return VerifiedCheckpointIO().load_checkpoint(path)


def leave_after(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    original = Preemption.on_train_batch_start

    def leaving(self: Preemption, trainer: L.Trainer, *args: Any) -> None:
        if trainer.global_step == step:
            self.request.reason = "test"
        original(self, trainer, *args)

    monkeypatch.setattr(Preemption, "on_train_batch_start", leaving)


def test_the_average_is_exported_and_the_weights_go_on(
    recipe: Recipes, prepared: Workspace, tmp_path: Path
) -> None:
    """Training is the same with and without it; what is left behind is the average that the
    definition gives.
    """
    plain = tmp_path / "plain"
    averaged = tmp_path / "averaged"
    seen: list[dict[str, torch.Tensor]] = []

    run(recipe(valid_every_steps=3), prepared, "it1/pretrain", plain)
    original = PretrainModule.on_train_batch_end

    def recording(self: PretrainModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        if (batch_idx + 1) % 2 == 0:
            seen.append({name: value.clone() for name, value in self.model.state_dict().items()})
        original(self, outputs, batch, batch_idx)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PretrainModule, "on_train_batch_end", recording)
        run(recipe(valid_every_steps=3, ema_decay=0.4), prepared, "it1/pretrain", averaged)

    own = content(averaged)
    average = weights(averaged)
    assert all(
        torch.equal(content(plain)["state_dict"][name], value)
        for name, value in own["state_dict"].items()
    )
    assert all(torch.equal(seen[-1][name], value) for name, value in weights(plain).items())
    decays = [min(0.4, (1 + n) / (10 + n)) for n in range(1, 9)]
    for name in ("context_encoder.layers.0.feed_forward.inner.weight", next(iter(average))):
        if name not in average:
            continue
        expected = (
            average[name] * 0 + seen[0][name]
        )  # the start is unknown here: after eight updates it weighs next to nothing
        for decay, state in zip(decays[1:], seen[1:], strict=True):
            expected = decay * expected + (1 - decay) * state[name]
        torch.testing.assert_close(average[name], expected, rtol=0.05, atol=1e-3)
        assert not torch.equal(average[name], seen[-1][name])


@pytest.mark.parametrize("leave", [4, 7])
def test_an_interruption_changes_no_bit_of_the_average(
    recipe: Recipes,
    prepared: Workspace,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    leave: int,
) -> None:
    values = recipe(ema_decay=0.9, valid_every_steps=5)
    run(values, prepared, "it1/pretrain", tmp_path / "whole")
    with monkeypatch.context() as patch:
        leave_after(patch, leave)
        with pytest.raises(Preempted):
            run(values, prepared, "it1/pretrain", tmp_path / "cut")
    run(values, prepared, "it1/pretrain", tmp_path / "cut")
    whole = weights(tmp_path / "whole")
    cut = weights(tmp_path / "cut")
    assert all(torch.equal(cut[name], value) for name, value in whole.items())


def test_a_run_that_only_had_to_be_finished_still_exports_the_average(
    recipe: Recipes, prepared: Workspace, tmp_path: Path
) -> None:
    values = recipe(ema_decay=0.9)
    run(values, prepared, "it1/pretrain", tmp_path)
    first = weights(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    run(values, prepared, "it1/pretrain", tmp_path)
    assert all(torch.equal(first[name], value) for name, value in weights(tmp_path).items())
