"""Checkpoints that stay, full disks, and writing in a thread."""

from __future__ import annotations

import dataclasses
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from hubert_pretrain import distributed
from hubert_pretrain.config.schema import PretrainConfig, TrainerConfig
from hubert_pretrain.errors import ArtefactError
from hubert_pretrain.training.resilience import checkpoint_callback, checkpoint_io
from hubert_pretrain.training.resilience.checkpoint_callback import (
    CheckpointCallback,
    CheckpointPolicy,
    CheckpointWriter,
    snapshot,
)
from hubert_pretrain.training.resilience.checkpoint_io import (
    VerifiedCheckpointIO,
    checkpoints,
    newest,
    step_of,
)


class Run:
    """A trainer that does nothing but take steps and save."""

    def __init__(self, folder: Path, *, steps: int = 1000, **policy: Any) -> None:
        self.folder = folder
        config = TrainerConfig(async_checkpoints=False)
        values = dataclasses.replace(CheckpointPolicy.of(config, every_steps=1), **policy)
        self.writer = CheckpointWriter(asynchronous=values.asynchronous)
        self.saver = CheckpointCallback(
            folder, self.writer, values, last_step=steps, about={"stage": "test"}
        )
        self.weights = torch.zeros(1000)
        self.trainer: Any = SimpleNamespace(
            is_global_zero=True,
            global_step=0,
            accumulate_grad_batches=1,
            state=SimpleNamespace(fn="fit"),
            save_checkpoint=self._save,
        )
        self.saver.on_fit_start(self.trainer, self.module())

    def module(self, **validated: float) -> Any:
        return SimpleNamespace(
            validated={f"valid/{name}": value for name, value in validated.items()},
            higher_is_better=lambda name: name == "valid/accuracy",
        )

    def _save(self, path: Path) -> None:
        content: dict[str, Any] = {"global_step": self.trainer.global_step, "weights": self.weights}
        self.saver.on_save_checkpoint(self.trainer, self.module(), content)
        self.writer.save_checkpoint(content, path)

    def step(self, count: int = 1) -> None:
        for _ in range(count):
            self.trainer.global_step += 1
            self.weights += 1
            self.saver.on_train_batch_end(self.trainer, self.module(), None, None, 0)

    def validate(self, **values: float) -> None:
        self.saver.on_validation_end(self.trainer, self.module(**values))

    @property
    def steps(self) -> list[int]:
        return [step_of(path) for path in checkpoints(self.folder)]


def fail_to_write(
    monkeypatch: pytest.MonkeyPatch, message: str = "No space left on device"
) -> None:
    def full(*args: object) -> None:
        raise OSError(28, message)

    monkeypatch.setattr(torch, "save", full)


@pytest.mark.parametrize("asynchronous", [False, True])
def test_the_newest_the_regular_and_the_best_stay(tmp_path: Path, asynchronous: bool) -> None:
    run = Run(
        tmp_path, keep=2, keep_every_steps=4, keep_best="valid/loss", asynchronous=asynchronous
    )
    for step, loss in enumerate([5.0, 4.0, 3.0, 3.5, 6.0, 3.2, 3.1, 9.0, 8.0, 7.0], start=1):
        run.step()
        run.validate(loss=loss)
        assert run.trainer.global_step == step
    run.saver.on_fit_end(run.trainer, run.module())
    assert run.steps == [3, 4, 8, 9, 10]


def test_regular_checkpoints_and_that_of_a_chosen_step_need_no_other_reason(tmp_path: Path) -> None:
    run = Run(tmp_path, keep=1, every_steps=1000, keep_every_steps=4, keep_step=6, steps=9)
    run.step(9)
    assert run.steps == [4, 6, 8, 9]


def test_the_clock_asks_once_and_only_when_nothing_is_being_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(checkpoint_callback, "time", SimpleNamespace(monotonic=lambda: now[0]))
    run = Run(tmp_path, every_steps=1000, every_minutes=2.0)
    run.saver.on_train_start(run.trainer, run.module())
    asked = []
    for _ in range(10):
        now[0] += 30.0
        asked.append(run.saver.asks_by_the_clock())
    assert [number for number, asks in enumerate(asked, start=1) if asks] == [4, 8]
    now[0] += 1000.0
    with monkeypatch.context() as busy:
        busy.setattr(CheckpointWriter, "busy", True)
        assert not run.saver.asks_by_the_clock()
    with monkeypatch.context() as other:
        other.setattr(distributed, "rank", lambda: 1)
        assert not run.saver.asks_by_the_clock()
    run.step()
    run.saver.save(run.trainer)
    assert not run.saver.asks_by_the_clock(), "it counts from the last save"


def test_the_default_is_a_quarter_of_an_hour_beside_the_training() -> None:
    config = PretrainConfig()
    policy = CheckpointPolicy.of(
        TrainerConfig(),
        every_steps=config.checkpoint_every_steps,
        every_minutes=config.checkpoint_every_minutes,
    )
    assert policy.asynchronous
    assert policy.every_minutes == 15
    # Also on 32 GPUs, where a step takes about a tenth of a second, the clock decides first.
    assert policy.every_steps * 0.1 >= 60 * policy.every_minutes


def test_an_accuracy_is_best_when_high(tmp_path: Path) -> None:
    run = Run(tmp_path, keep=1, keep_best="valid/accuracy")
    for accuracy in (0.3, 0.5, 0.4, 0.45):
        run.step()
        run.validate(accuracy=accuracy)
    run.step()
    assert run.steps == [2, 5]


def test_of_equal_scores_the_later_is_best(tmp_path: Path) -> None:
    for folder, name in (("high", "accuracy"), ("low", "loss")):
        run = Run(tmp_path / folder, keep=1, keep_best=f"valid/{name}")
        for value in (1.0, 1.0, 1.5 if name == "loss" else 0.5):
            run.step()
            run.validate(**{name: value})
        run.step()
        assert run.steps == [2, 4]


def test_the_best_survives_a_restart(tmp_path: Path) -> None:
    run = Run(tmp_path, keep=1, keep_best="valid/loss")
    run.step()
    run.validate(loss=1.0)
    again = Run(tmp_path, keep=1, keep_best="valid/loss")
    again.trainer.global_step = 1
    again.step()
    again.validate(loss=2.0)
    again.step()
    assert again.steps == [1, 3]


def test_a_value_that_nobody_measures_is_named(tmp_path: Path) -> None:
    run = Run(tmp_path, keep_best="valid/wer")
    with pytest.raises(
        ArtefactError, match=r"keep_best=valid/wer.*there are valid/cer, valid/loss"
    ):
        run.validate(loss=1.0, cer=0.5)


def test_a_full_disk_is_survived_and_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run = Run(tmp_path, max_failures=2)
    run.step(2)
    with monkeypatch.context() as full:
        fail_to_write(full)
        run.step(2)
        assert run.steps == [1, 2]
        assert "step=00000004.ckpt: the checkpoint could not be written" in caplog.text
        assert "2 of at most 2 in a row" in caplog.text
        with pytest.raises(
            ArtefactError, match=r"more than 2 checkpoints in a row.*No space left.*Free some space"
        ):
            run.step()
    assert newest(tmp_path) == tmp_path / "step=00000002.ckpt"
    assert not list(tmp_path.glob(".*"))


def test_after_a_success_failures_are_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(tmp_path, max_failures=1)
    for _ in range(3):
        with monkeypatch.context() as full:
            fail_to_write(full)
            run.step()
        run.step()
    assert run.steps == [4, 6]


def test_space_is_asked_for_before_it_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint_io.shutil, "disk_usage", lambda path: SimpleNamespace(free=3000))
    with pytest.raises(ArtefactError, match=r"4\.0 kB needed, 3\.0 kB free"):
        VerifiedCheckpointIO().save_checkpoint(
            {"weights": torch.zeros(1000)}, tmp_path / "step=00000001.ckpt"
        )
    assert not list(tmp_path.iterdir())


def test_leaving_without_a_checkpoint_is_no_leaving(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(tmp_path, every_steps=100)
    run.step(3)
    with monkeypatch.context() as full:
        fail_to_write(full)
        with pytest.raises(ArtefactError, match="No space left"):
            run.saver.save_and_wait(run.trainer)


def test_an_unwritable_folder_is_found_at_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(self: Path, data: bytes) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "write_bytes", refused)
    with pytest.raises(
        ArtefactError, match=r"cannot be written here.*Permission denied.*fix the permissions"
    ):
        Run(tmp_path)


def test_what_killed_writers_left_is_swept_up(tmp_path: Path) -> None:
    (tmp_path / ".step=00000001.ckpt.123.tmp").write_bytes(b"half")
    Run(tmp_path)
    assert not list(tmp_path.iterdir())


def test_writing_beside_the_training_writes_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The weights move on while the file is being written."""
    going = threading.Event()
    written = torch.save

    def slow(content: Any, file: Any) -> None:
        assert going.wait(30)
        written(content, file)

    monkeypatch.setattr(torch, "save", slow)
    run = Run(tmp_path, every_steps=2, asynchronous=True)
    run.step(3)
    assert run.steps == []
    assert run.writer.busy
    going.set()
    run.saver.save_and_wait(run.trainer)
    assert run.steps == [2, 3]
    content = VerifiedCheckpointIO().load_checkpoint(tmp_path / "step=00000002.ckpt")
    assert (content["weights"] == 2).all()
    assert content["about"] == {"stage": "test"}


def test_a_thread_that_fails_is_reported_at_the_next_boundary(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run = Run(tmp_path, every_steps=2, asynchronous=True)
    with monkeypatch.context() as broken:
        broken.setattr(checkpoint_io, "write_text", lambda path, text: 1 / 0)
        run.step(2)
        run.writer.finish()
    assert "division" not in caplog.text
    run.step()
    assert "division by zero; training goes on" in caplog.text


def test_a_snapshot_shares_nothing() -> None:
    tensor = torch.ones(3)
    content = {"a": [tensor, (tensor, 5)], "b": "text"}
    copy = snapshot(content)
    tensor += 1
    assert torch.equal(copy["a"][0], torch.ones(3))
    assert torch.equal(copy["a"][1][0], torch.ones(3))
    assert copy["b"] == "text"
    assert copy["a"][1][1] == 5
