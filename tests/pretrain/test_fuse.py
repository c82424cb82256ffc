"""Several micro-batches in one forward pass: the same run, and as many as a GPU's memory holds."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from hubert_pretrain.config.schema import Recipe
from hubert_pretrain.data import batching
from hubert_pretrain.data.batching import BatchShape
from hubert_pretrain.errors import ConfigError
from hubert_pretrain.model.checkpoint import load_model
from hubert_pretrain.pipeline.workspace import Workspace
from hubert_pretrain.pretrain.dataset import MicroBatches
from hubert_pretrain.pretrain.memory import bytes_for_passes, fitting_micro_batches
from hubert_pretrain.pretrain.module import PretrainModule
from hubert_pretrain.stages.pretrain import run
from hubert_pretrain.training.loggers import read_metrics

Recipes = Callable[..., Recipe]
NO_DROPOUT = {
    "hidden_dropout": 0.0,
    "attention_dropout": 0.0,
    "activation_dropout": 0.0,
    "feat_proj_dropout": 0.0,
}


def train(recipes: Recipes, prepared: Workspace, folder: Path, fuse: str) -> list[int]:
    """Train four micro-batches a step; returns the rows of each forward pass."""
    trainer = {"fuse": fuse, "keep_checkpoints": 9}
    recipe = recipes(micro_batch_seconds=2, log_every_steps=1, trainer=trainer)
    for name, value in NO_DROPOUT.items():
        setattr(recipe.model, name, value)
    rows = []
    step = PretrainModule.training_step

    def recorded(self: PretrainModule, batch: dict[str, Any], batch_idx: int) -> torch.Tensor:
        rows.append(len(batch["waveform"]))
        return step(self, batch, batch_idx)

    with pytest.MonkeyPatch.context() as patch:
        # Else a corpus of a dozen micro-batches has no groups.
        patch.setattr(batching, "MAX_GROUP_LOSS", 0.5)
        patch.setattr(PretrainModule, "training_step", recorded)
        run(recipe, prepared, "it1/pretrain", folder)
    return rows


def losses(folder: Path) -> dict[int, float]:
    rows = read_metrics(folder / "logs" / "metrics.csv")
    return {int(row["step"]): row["loss"] for row in rows if "loss" in row}


def test_any_number_of_micro_batches_in_a_pass_is_the_same_run(
    recipe: Recipes, prepared: Workspace, tmp_path: Path
) -> None:
    rows = {fuse: train(recipe, prepared, tmp_path / fuse, fuse) for fuse in ("auto", "2", "4")}
    assert len(rows["auto"]) == 2 * len(rows["2"]) == 4 * len(rows["4"])
    assert sum(rows["auto"]) == sum(rows["2"]) == sum(rows["4"])
    for fuse in ("2", "4"):
        assert losses(tmp_path / fuse) == pytest.approx(losses(tmp_path / "auto"), rel=1e-5)
        one = load_model(tmp_path / "auto").model.state_dict()
        other = load_model(tmp_path / fuse).model.state_dict()
        for name, tensor in one.items():
            torch.testing.assert_close(other[name], tensor, rtol=1e-4, atol=1e-5)

    # A run that is resumed with another number is still the same.
    at = tmp_path / "resumed" / "checkpoints"
    at.mkdir(parents=True)
    for path in (tmp_path / "auto" / "checkpoints").glob("step=00000003.ckpt*"):
        shutil.copy(path, at)
    train(recipe, prepared, tmp_path / "resumed", "4")
    expected = {step: loss for step, loss in losses(tmp_path / "auto").items() if step > 3}
    assert losses(tmp_path / "resumed") == pytest.approx(expected, rel=1e-5)


def test_a_fused_item_is_its_micro_batches_one_after_the_other() -> None:
    class Plan:
        micro_batches = 4

        def micro_batch(self, index: int) -> int:
            return index

        def step_frames(self, step: int) -> tuple[int, int]:
            return step, 100

    class Source:
        def tensors(self, index: int, purpose: str) -> dict[str, Any]:
            waveform = torch.full((2, 3), float(index))
            return {"waveform": waveform, "masked_frames": 5, "index": index}

    item = MicroBatches(Plan(), Source(), fuse=2)[6]  # type: ignore[arg-type]
    assert item["waveform"][:, 0].tolist() == [6, 6, 7, 7]
    assert (item["masked_frames"], item["index"], item["micro_batches"]) == (10, 6, 2)
    assert item["step_frames"] == (1, 100)


def test_as_many_fit_as_the_memory_of_every_shape_holds() -> None:
    shapes = [BatchShape(100, 8, 50), BatchShape(700, 1, 350)]

    def peak_bytes(shape: BatchShape, micro_batches: int) -> int:
        return 1000 + micro_batches * shape.num_frames

    def fitting(available: int, most: int = 8) -> int:
        return fitting_micro_batches(peak_bytes, shapes, most=most, available_bytes=available)

    assert fitting(1000 + 3 * 700) == 3
    assert fitting(1000 + 3 * 700 - 1) == 2
    assert fitting(10**6) == 8
    assert fitting(10**6, most=1) == 1
    with pytest.raises(ConfigError, match=r"1 x 700 frames needs .*gradient_checkpointing.*halve"):
        fitting(1699)


def test_processes_that_share_the_weights_have_more_room_for_micro_batches() -> None:
    room = {size: bytes_for_passes(100 * 10**9, 10**9, shard_size=size) for size in (1, 8)}
    # 90 GB without two moments of 4 bytes; an eighth of them, and an eighth of the weights.
    assert room == {1: 82 * 10**9, 8: 92_500_000_000}
