"""The whole stage: what it leaves behind, that an interruption changes nothing, and that it never
ends well when it went wrong.
"""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from hubert_pretrain.config.schema import Recipe
from hubert_pretrain.errors import (
    ArtefactError,
    ConfigError,
    DataError,
    HubertPretrainError,
    Preempted,
)
from hubert_pretrain.model.checkpoint import load_model
from hubert_pretrain.model.config import SpanMask
from hubert_pretrain.pipeline.workspace import Workspace
from hubert_pretrain.pretrain.module import PretrainModule
from hubert_pretrain.stages.pretrain import run
from hubert_pretrain.training.loggers import read_metrics
from hubert_pretrain.training.resilience.checkpoint_io import checkpoints, newest
from tests.killed import killed_at_micro_batch

Recipes = Callable[..., Recipe]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    loaded = load_model(folder)
    return {**loaded.model.state_dict(), **loaded.head_state}


def equal(first: Path, second: Path) -> bool:
    one = weights(first)
    other = weights(second)
    return all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(scope="module")
def whole(
    prepared: Workspace, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[Recipe], tuple[Path, dict[str, Any]]]:
    """An uninterrupted run of a recipe, made once."""
    made: dict[str, tuple[Path, dict[str, Any]]] = {}

    def make(recipe: Recipe) -> tuple[Path, dict[str, Any]]:
        if str(recipe) not in made:
            folder = tmp_path_factory.mktemp("whole")
            made[str(recipe)] = folder, run(recipe, prepared, "it1/pretrain", folder)
        return made[str(recipe)]

    return make


def test_what_a_finished_stage_leaves(
    recipe: Recipes, prepared: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "out"
    facts = run(recipe(), prepared, "it1/pretrain", folder)
    assert facts["steps"] == 8
    names = {
        "masked_loss_nats",
        "masked_accuracy",
        "unmasked_accuracy",
        "unmasked_loss_nats",
        "audio_seconds_per_second",
    }
    assert all(isinstance(facts[name], float) for name in names)
    assert facts["audio_seconds_per_second"] > 0
    loaded = load_model(folder)
    assert loaded.kind == "pretrain"
    assert loaded.extra["steps"] == 8
    masks = recipe().iterations["it1"].pretrain.mask
    assert loaded.extra["transformers"]["mask_time_prob"] == masks.probability
    assert loaded.extra["transformers"]["mask_time_min_masks"] == masks.min_spans
    rows = read_metrics(folder / "logs" / "metrics.csv")
    assert [row["step"] for row in rows] == [2, 4, 6, 8]
    expected = {
        "loss/masked",
        "loss/masked_bits",
        "loss/unmasked",
        "accuracy/masked",
        "accuracy/unmasked",
        "feature_penalty",
    }
    assert expected | {"lr", "gradient_norm", "audio_seconds_per_second"} <= set(rows[0])
    assert rows[-1]["valid/loss/masked"] == pytest.approx(facts["masked_loss_nats"], rel=1e-5)
    assert (folder / "curves.png").read_bytes()[:4] == b"\x89PNG"
    assert [path.name for path in checkpoints(folder / "checkpoints")] == [
        "step=00000006.ckpt",
        "step=00000008.ckpt",
    ]
    assert [path.name for path in tmp_path.iterdir()] == [
        "out"
    ]  # no lightning_logs, nothing in the working directory


@pytest.mark.parametrize("at", [0, 5, 6, 7, 11, 15])
def test_interrupted_and_resumed_is_uninterrupted(
    at: int,
    recipe: Recipes,
    prepared: Workspace,
    tmp_path: Path,
    whole: Any,
) -> None:
    """In the first step, before, on and after a checkpoint's boundary (step 3 = micro-batch 6),
    within a step, in the last one.
    """
    undisturbed, facts = whole(recipe())
    with killed_at_micro_batch(at):
        run(recipe(), prepared, "it1/pretrain", tmp_path)
    again = run(recipe(), prepared, "it1/pretrain", tmp_path)
    assert equal(undisturbed, tmp_path)
    assert {name: value for name, value in again.items() if name != "audio_seconds_per_second"} == {
        name: value for name, value in facts.items() if name != "audio_seconds_per_second"
    }


def test_a_run_killed_after_its_last_step_only_validates(
    recipe: Recipes, prepared: Workspace, tmp_path: Path, whole: Any
) -> None:
    undisturbed, facts = whole(recipe())
    run(recipe(), prepared, "it1/pretrain", tmp_path)
    (tmp_path / "model.safetensors").unlink()
    again = run(recipe(), prepared, "it1/pretrain", tmp_path)
    assert equal(undisturbed, tmp_path)
    assert again["masked_loss_nats"] == facts["masked_loss_nats"]


def test_a_damaged_checkpoint_falls_back_to_the_one_before(
    recipe: Recipes,
    prepared: Workspace,
    tmp_path: Path,
    whole: Any,
) -> None:
    undisturbed, _ = whole(recipe())
    with killed_at_micro_batch(14):
        run(recipe(), prepared, "it1/pretrain", tmp_path)
    last = checkpoints(tmp_path / "checkpoints")[-1]
    last.write_bytes(last.read_bytes()[:1000])
    run(recipe(), prepared, "it1/pretrain", tmp_path)
    assert equal(undisturbed, tmp_path)


def test_resumed_with_another_accumulation_goes_on_at_the_right_micro_batch(
    recipe: Recipes, prepared: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The checkpoint holds the step, not Lightning's batch counters."""
    seen: list[int] = []
    original = PretrainModule.training_step

    def recording(self: PretrainModule, batch: dict[str, Any], batch_idx: int) -> torch.Tensor:
        seen.append(batch["index"])
        return original(self, batch, batch_idx)

    with killed_at_micro_batch(9):
        run(recipe(), prepared, "it1/pretrain", tmp_path)
    monkeypatch.setattr(PretrainModule, "training_step", recording)
    run(recipe(batch_seconds=16, micro_batch_seconds=4), prepared, "it1/pretrain", tmp_path)
    assert seen == list(range(3 * 4, 8 * 4))


def test_workers_change_nothing(
    recipe: Recipes, prepared: Workspace, tmp_path: Path, whole: Any
) -> None:
    undisturbed, _ = whole(recipe())
    run(recipe(trainer={"loader_workers": 1}), prepared, "it1/pretrain", tmp_path)
    assert equal(undisturbed, tmp_path)


def test_kill_minus_nine(recipe: Recipes, prepared: Workspace, tmp_path: Path, whole: Any) -> None:
    """A real process, killed at an arbitrary moment after its second checkpoint, while it trains or
    saves.
    """
    values = recipe(steps=60)
    folder = tmp_path / "out"
    (tmp_path / "recipe.pickle").write_bytes(pickle.dumps((values, prepared.root, folder)))
    code = (
        "import pickle, sys; from pathlib import Path; "
        "from hubert_pretrain.pipeline.workspace import Workspace; "
        "from hubert_pretrain.stages.pretrain import run; "
        "recipe, root, folder = pickle.loads(Path(sys.argv[1]).read_bytes()); "
        "run(recipe, Workspace(root), 'it1/pretrain', folder)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "recipe.pickle")], stdout=subprocess.DEVNULL
    )
    limit = time.time() + 120
    while newest(folder / "checkpoints") is None or len(checkpoints(folder / "checkpoints")) < 2:
        assert process.poll() is None
        assert time.time() < limit
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (folder / "model.safetensors").exists()
    run(values, prepared, "it1/pretrain", folder)
    undisturbed, _ = whole(values)
    assert equal(undisturbed, folder)


def test_a_loss_that_is_no_number_stops_and_names_the_utterances(
    recipe: Recipes, prepared: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = PretrainModule.training_step

    def poisoned(self: PretrainModule, batch: dict[str, Any], batch_idx: int) -> torch.Tensor:
        if batch["index"] == 9:
            batch["waveform"][:] = float("nan")
        return original(self, batch, batch_idx)

    monkeypatch.setattr(PretrainModule, "training_step", poisoned)
    with pytest.raises(
        HubertPretrainError, match=r"not a number in step 5, utterances u\d\d, u\d\d"
    ):
        run(recipe(trainer={"max_skipped_steps": 0}), prepared, "it1/pretrain", tmp_path)
    assert [path.name for path in checkpoints(tmp_path / "checkpoints")] == ["step=00000003.ckpt"]
    assert not (tmp_path / "model.safetensors").exists()


@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed"])
def test_interruptions_in_other_precisions(
    precision: str,
    recipe: Recipes,
    prepared: Workspace,
    tmp_path: Path,
    whole: Any,
) -> None:
    """The scale of fp16's losses is in the checkpoint too."""
    values = recipe(trainer={"precision": precision})
    undisturbed, _ = whole(values)
    with killed_at_micro_batch(9):
        run(values, prepared, "it1/pretrain", tmp_path)
    run(values, prepared, "it1/pretrain", tmp_path)
    assert equal(undisturbed, tmp_path)


def test_bf16_stays_close(recipe: Recipes, prepared: Workspace, tmp_path: Path, whole: Any) -> None:
    _, exact = whole(recipe())
    facts = run(recipe(trainer={"precision": "bf16-mixed"}), prepared, "it1/pretrain", tmp_path)
    assert facts["masked_loss_nats"] == pytest.approx(exact["masked_loss_nats"], rel=0.02)


def test_a_termination_signal_is_no_success(
    recipe: Recipes, prepared: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = PretrainModule.training_step

    def signalled(self: PretrainModule, batch: dict[str, Any], batch_idx: int) -> torch.Tensor:
        if batch["index"] == 9:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, batch, batch_idx)

    monkeypatch.setattr(PretrainModule, "training_step", signalled)
    with pytest.raises(
        Preempted, match=r"left at step 5 of 8 \(SIGTERM\).*same command resumes"
    ) as left:
        run(recipe(), prepared, "it1/pretrain", tmp_path)
    assert left.value.exit_code == 75
    assert newest(tmp_path / "checkpoints") == tmp_path / "checkpoints" / "step=00000005.ckpt"
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_tensorboard_and_offline_wandb(
    recipe: Recipes, prepared: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    loggers = {
        "csv": {"_target_": "hubert_pretrain.training.loggers.CsvLogger"},
        "tensorboard": {"_target_": "lightning.pytorch.loggers.TensorBoardLogger"},
        "wandb": {
            "_target_": "lightning.pytorch.loggers.WandbLogger",
            "project": "hubert_pretrain",
            "log_model": False,
        },
    }
    artefacts: list[tuple[str, str]] = []
    monkeypatch.setattr(
        "hubert_pretrain.training.loggers._wandb_artefact",
        lambda inner, name, kind, paths: artefacts.append((name, kind)),
    )
    run(
        recipe(logger=loggers, steps=2, trainer={"log_artefacts": True}),
        prepared,
        "it1/pretrain",
        tmp_path,
    )
    assert artefacts == [
        ("it1-pretrain-targets", "targets"),
        ("it1-pretrain-model", "model"),
    ]  # there is no folder of a codebook here
    assert list((tmp_path / "logs").rglob("events.out.tfevents*"))
    assert list((tmp_path / "logs" / "wandb").glob("offline-run-*-test-it1-pretrain-*"))
    assert read_metrics(tmp_path / "logs" / "metrics.csv")


def test_training_learns(recipe: Recipes, prepared: Workspace, tmp_path: Path) -> None:
    """Random targets of twenty-odd utterances can be learnt by heart, up to a point: the loss
    falls.
    """
    run(recipe(steps=40), prepared, "it1/pretrain", tmp_path)
    rows = read_metrics(tmp_path / "logs" / "metrics.csv")
    assert rows[-1]["loss/masked"] < rows[0]["loss/masked"]


def test_no_valid_split_is_one_clear_error_before_training(
    recipe: Recipes, prepared: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hubert_pretrain.data.manifest import Manifest

    length_sorted = Manifest.length_sorted
    monkeypatch.setattr(
        Manifest,
        "length_sorted",
        lambda self, split: [] if split == "valid" else length_sorted(self, split),
    )
    with pytest.raises(DataError, match=r"split 'valid'.*valid_fraction"):
        run(recipe(), prepared, "it1/pretrain", tmp_path)
    assert not list(tmp_path.iterdir())


def test_devices_that_cannot_share_a_step(
    recipe: Recipes, prepared: Workspace, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"2 micro-batches, which 3 devices"):
        run(recipe(trainer={"devices": 3}), prepared, "it1/pretrain", tmp_path)


def test_targets_on_another_grid_are_refused(
    recipe: Recipes, prepared: Workspace, tmp_path: Path
) -> None:
    values = recipe(mask=SpanMask(span_frames=4))
    values.model.conv_stride = [5, 2, 2, 2, 2, 2, 4]
    with pytest.raises(ArtefactError, match="label on its grid"):
        run(values, prepared, "it1/pretrain", tmp_path)


def test_every_checkpoint_damaged_is_an_error(
    recipe: Recipes, prepared: Workspace, tmp_path: Path
) -> None:
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "step=00000003.ckpt").write_bytes(b"")
    with pytest.raises(HubertPretrainError, match="every checkpoint is damaged"):
        run(recipe(), prepared, "it1/pretrain", tmp_path)
