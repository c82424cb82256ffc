"""`stage=plan`: counts against the counter of the training step, arithmetic, and what it says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hubert_pretrain.config import compose
from hubert_pretrain.errors import ConfigError
from hubert_pretrain.files import human_bytes, read_json
from hubert_pretrain.frames import samples
from hubert_pretrain.model.config import HubertConfig
from hubert_pretrain.pipeline.workspace import Workspace
from hubert_pretrain.preflight import costs, training_cost
from hubert_pretrain.preflight.costs import StageCost
from hubert_pretrain.preflight.training_cost import Training
from hubert_pretrain.pretrain.health import training_flops
from hubert_pretrain.tools import plan_table

BASE = ["+recipe=base_ls960", "data.root=/corpora/LibriSpeech", "plan.hours=960"]


def planned(folder: Path, *words: str) -> dict[str, Any]:
    """plan.json of a recipe in an empty folder."""
    recipe = compose.recipe_of([*words, f"work_dir={folder}", "stage=plan"])
    workspace = Workspace(recipe.work_dir)
    costs.run(recipe, workspace)
    found = read_json(workspace.plan_path)
    assert found is not None
    return found


def by_stage(found: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {each["stage"]: each for each in found["stages"]}


def test_operations_are_those_that_a_training_logs(tmp_path: Path) -> None:
    """tests/pretrain/test_step_cost.py holds that formula to torch's counter within 2 %."""
    stage = by_stage(planned(tmp_path, *BASE, "plan.gpu=H100"))["it1/pretrain"]
    config = HubertConfig()
    row = training_flops(config, 1, samples(costs.UTTERANCE_SECONDS), 100, 0.53)
    rows = 250_000 * 2800 / costs.UTTERANCE_SECONDS
    assert stage["operations"] == pytest.approx(rows * row, rel=1e-6)
    assert stage["audio_seconds"] == 250_000 * 2800


def test_time_on_a_gpu_is_operations_by_peak_and_mfu(tmp_path: Path) -> None:
    found = planned(
        tmp_path,
        *BASE,
        "plan.gpu=H100",
        "plan.mfu=0.4",
        "plan.devices=[1,8,32,3]",
        "plan.price=2",
    )
    stage = by_stage(found)["it2/pretrain"]
    work = stage["operations"] / (0.4 * 989e12)
    assert stage["seconds_on"]["1"] == pytest.approx(work + costs.STARTUP_SECONDS)
    assert stage["seconds_on"]["8"] == pytest.approx(work / 8 + costs.STARTUP_SECONDS)
    assert stage["seconds_on"]["32"] == pytest.approx(work / 32 + costs.STARTUP_SECONDS)
    assert stage["seconds_on"]["3"] is None  # 32 micro-batches
    assert stage["loader_rate"] == pytest.approx(400_000 * 2800 / work)
    computing = [each for each in found["stages"] if each["operations"]]
    assert found["total"]["price"] == pytest.approx(
        2 * sum(each["seconds"] for each in computing) / 3600
    )


def test_head_and_frozen_encoder_count(tmp_path: Path) -> None:
    plain = by_stage(planned(tmp_path / "a", *BASE, "plan.gpu=H100"))
    changed = by_stage(
        planned(
            tmp_path / "b",
            *BASE,
            "plan.gpu=H100",
            "iterations.it1.clustering.n_clusters=50000",
            "finetune.asr.freeze_encoder_steps=320000",
        )
    )
    assert changed["it1/pretrain"]["operations"] > 1.03 * plain["it1/pretrain"]["operations"]
    before = compose.recipe_of(BASE).finetune["asr"].freeze_encoder_steps
    shares = [320_000 - frozen * 2 / 3 for frozen in (before, 320_000)]
    assert changed["finetune/asr"]["operations"] / plain["finetune/asr"][
        "operations"
    ] == pytest.approx(shares[1] / shares[0])


def test_an_unknown_gpu_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"plan.gpu=H1OO.*did you mean 'H100'"):
        planned(tmp_path, *BASE, "plan.gpu=H1OO")


def test_the_speed_of_this_machine_is_operations_by_time(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = iter(range(100))
    monkeypatch.setattr(costs.time, "perf_counter", lambda: float(next(seconds)))
    training = Training(
        stage="it1/pretrain",
        model=compose.recipe_of(["+recipe=smoke"]).model,
        steps=10,
        batch_seconds=4.0,
        micro_batch_seconds=4.0,
        crop_seconds=2.0,
    )
    # The clock is read at the start (0), before each step (1, 2, 3: the third ends it) and at the
    # end (4): two steps in four seconds.
    speed = costs.measured_training_speed(training, seconds=3.0)
    assert speed == pytest.approx(4.0 * training_cost.operations_per_second(training) * 2 / 4)


def test_the_table_of_a_small_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = planned(tmp_path, "+recipe=smoke")
    shown = capsys.readouterr().out
    assert "it1/pretrain" in shown
    assert "…" not in shown
    assert "set plan.hours" in shown  # the corpus is not prepared
    assert all(each["seconds"] > 0 for each in found["stages"])
    assert found["total"]["seconds_on"]["1"] == pytest.approx(
        sum(each["seconds"] for each in found["stages"])
    )
    assert json.loads((tmp_path / "plan.json").read_text()) == found


def test_the_work_of_other_voices_is_said(tmp_path: Path) -> None:
    words = [*BASE, "plan.gpu=H100", "iterations.it2.pretrain.augment.voice_probability=0.5"]
    said = [line for line in planned(tmp_path, *words)["assumptions"] if "voice" in line]
    # 400,000 steps of 2,800 s, of which half at 3.6 ms: 560 hours
    assert len(said) == 1
    assert said[0].startswith("it2/pretrain: 50 % of the crops are heard in another voice")
    assert "3.6 ms of a core for each second of audio, 23 d of one core" in said[0]


def test_a_stage_of_one_process_does_not_become_faster() -> None:
    cost = StageCost(stage="prepare", operations=0.0, audio_seconds=60.0, seconds=30.0)
    assert cost.seconds_on(8) == 30.0
    assert cost.loader_rate == 0.0


def test_the_table_of_the_readme_is_that_of_the_code(repository: Path) -> None:
    found = plan_table.table()
    assert plan_table.with_table(f"a {plan_table.BEGIN}old{plan_table.END} b", "T") == (
        f"a {plan_table.BEGIN}\nT\n{plan_table.END} b"
    )
    assert (
        f"{plan_table.BEGIN}\n{found}\n{plan_table.END}" in (repository / "README.md").read_text()
    ), "run python tools/plan_table.py --write"


def test_the_table_has_the_numbers_of_the_plan(tmp_path: Path) -> None:
    words = [*plan_table.WORDS, "plan.mfu=0.2"]
    stage = by_stage(planned(tmp_path, *words))["it1/pretrain"]
    row = next(line for line in plan_table.table().splitlines() if "it1/pretrain" in line)
    hours = stage["seconds_on"]["1"] / 3600
    assert f"| {hours:.3g} | {hours:.0f} h |" in row
    assert f"| {stage['loader_rate']:,.0f} |" in row
    assert f"| {2.5 * hours:,.0f} |" in row
    assert f"| {human_bytes(stage['disk'])} |" in row
    disk = sum(each["disk"] for each in planned(tmp_path, *words)["stages"])
    assert f"| {human_bytes(disk)} |" in plan_table.table().splitlines()[-1]
