"""Pretraining in half precision: copies of the weights, and the form of the positional convolution
that a run keeps.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from hubert_pretrain.config.schema import Recipe
from hubert_pretrain.model.checkpoint import load_model
from hubert_pretrain.model.half_precision import HalfCopies
from hubert_pretrain.pipeline.workspace import Workspace
from hubert_pretrain.pretrain import module
from hubert_pretrain.stages.pretrain import run


def test_copies_change_no_bit_of_a_training_with_an_average(
    recipe: Callable[..., Recipe],
    prepared: Workspace,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Several micro-batches a step; validation and the result use the average."""
    made = recipe(micro_batch_seconds=4, ema_decay=0.5, trainer={"precision": "bf16-mixed"})
    taken = [0]
    take = HalfCopies.take

    def counted(self: HalfCopies) -> None:
        taken[0] += 1
        take(self)

    monkeypatch.setattr(HalfCopies, "take", counted)
    found = run(made, prepared, "it1/pretrain", tmp_path / "copies")
    assert taken[0] == found["steps"]
    monkeypatch.setattr(HalfCopies, "take", lambda self: None)
    expected = run(made, prepared, "it1/pretrain", tmp_path / "casts")
    for name in ("masked_loss_nats", "unmasked_loss_nats"):
        assert found[name] == expected[name]
    ours = load_model(tmp_path / "copies").model.state_dict()
    theirs = load_model(tmp_path / "casts").model.state_dict()
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())


def test_a_resumed_run_keeps_the_form_that_was_measured(
    recipe: Callable[..., Recipe],
    prepared: Workspace,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    measured: list[str] = []

    def fastest(form: str) -> Callable[..., str]:
        def measure(*_: Any) -> str:
            measured.append(form)
            return form

        return measure

    made = recipe(checkpoint_every_steps=2, trainer={"keep_checkpoints": 9})
    monkeypatch.setattr(module, "measures_forms", lambda device: True)
    monkeypatch.setattr(module, "fastest_form", fastest("products"))
    run(made, prepared, "it1/pretrain", tmp_path / "whole")
    assert measured == ["products"]  # once a run
    first = min((tmp_path / "whole" / "checkpoints").glob("step=*.ckpt"))
    assert torch.load(first, weights_only=True)["positions"] == "products"

    at = tmp_path / "resumed" / "checkpoints"
    at.mkdir(parents=True)
    for path in first.parent.glob(f"{first.name}*"):
        shutil.copy(path, at)
    monkeypatch.setattr(module, "fastest_form", fastest("fft"))
    run(made, prepared, "it1/pretrain", tmp_path / "resumed")
    assert measured == ["products"]
    ours = load_model(tmp_path / "resumed").model.state_dict()
    theirs = load_model(tmp_path / "whole").model.state_dict()
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())

    made.trainer.positions = "conv"  # the configuration has the last word
    run(made, prepared, "it1/pretrain", tmp_path / "chosen")
    assert measured == ["products"]
