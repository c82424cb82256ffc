"""Several micro-batches in one forward pass: the same run, and as many as a GPU's memory holds."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
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
from hubert_pretrain.pretrain.memory import (
    bytes_for_passes,
    fitting_micro_batches,
    measured_fuse,
)
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


GIGABYTE = 10**9


class SmallGpu:
    """A training on a GPU of 10 GB, of which a row of audio takes some when the loss is computed;
    in place of the module and of its plan.
    """

    group = 4

    def __init__(self, row_bytes: int, *, weights: int = 0) -> None:
        self.row_bytes = row_bytes
        self.weights = weights
        self.peak = 0
        self.parameter = torch.nn.Parameter(torch.zeros(1))
        self.shapes = [BatchShape(100, 2, 50)]

    def fuse(self, most: int, devices: int) -> int:
        return min(most, self.group)

    def parameters(self) -> list[torch.nn.Parameter]:
        return [self.parameter]

    def blank_batch(self, shape: BatchShape, micro_batches: int, device: torch.device) -> int:
        return shape.batch_rows * micro_batches

    def loss_of(self, rows: int) -> torch.Tensor:
        self._take(self.weights + rows * self.row_bytes)
        return self.parameter.sum()

    def to(self, device: torch.device) -> None:
        self._take(self.weights)

    def train(self) -> None:
        pass

    def cpu(self) -> None:
        pass

    def zero_grad(self, set_to_none: bool) -> None:
        self.parameter.grad = None

    def _take(self, wanted: int) -> None:
        if wanted > 10 * GIGABYTE:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        self.peak = wanted

    def measured_fuse(self, monkeypatch: pytest.MonkeyPatch) -> int:
        size = SimpleNamespace(total_memory=10 * GIGABYTE)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: size)
        monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda _: None)
        monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda _: self.peak)
        these: Any = self
        return measured_fuse(
            these, these, torch.device("cuda"), devices=1, shard_size=1, autocast=nullcontext
        )


def test_memory_that_runs_out_while_it_is_measured_is_an_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of two micro-batches: one fits. Of one: the GPU is too small, whatever could be fused."""
    assert SmallGpu(1 * GIGABYTE).measured_fuse(monkeypatch) == 4
    assert SmallGpu(2 * GIGABYTE).measured_fuse(monkeypatch) == 2
    assert SmallGpu(4 * GIGABYTE).measured_fuse(monkeypatch) == 1
    message = (
        r"^a micro-batch of 2 x 100 frames needs more than {} GB, the GPU has {} GB for it; set "
        r"trainer\.gradient_checkpointing=true, or halve micro_batch_seconds$"
    )
    small = SmallGpu(6 * GIGABYTE)
    with pytest.raises(ConfigError, match=message.replace("{}", "9.0")):
        small.measured_fuse(monkeypatch)
    assert small.parameter.grad is None
    small.group = 1
    with pytest.raises(ConfigError, match=message.replace("{}", "10.0")):
        small.measured_fuse(monkeypatch)
    # Where nothing can be fused, what fits is not refused by the estimate of nine tenths.
    tight = SmallGpu(4_800_000_000)
    with pytest.raises(ConfigError, match=r"needs 9\.6 GB, the GPU has 9\.0 GB"):
        tight.measured_fuse(monkeypatch)
    tight.group = 1
    assert tight.measured_fuse(monkeypatch) == 1
    with pytest.raises(ConfigError, match=r"^the network \(0 M parameters\) does not fit into"):
        SmallGpu(0, weights=11 * GIGABYTE).measured_fuse(monkeypatch)


def test_processes_that_share_the_weights_have_more_room_for_micro_batches() -> None:
    room = {size: bytes_for_passes(100 * 10**9, 10**9, shard_size=size) for size in (1, 8)}
    # 90 GB without two moments of 4 bytes; an eighth of them, and an eighth of the weights.
    assert room == {1: 82 * 10**9, 8: 92_500_000_000}
