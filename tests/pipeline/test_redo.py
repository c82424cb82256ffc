"""`redo=`: a stage and what follows are made again, once; nothing is removed without a word. The
stages are stubs that write what each other reads.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from hubert_pretrain.config.schema import Recipe
from hubert_pretrain.data.manifest import Utterance, write_manifest
from hubert_pretrain.errors import ArtefactError, ConfigError
from hubert_pretrain.files import read_json, write_json
from hubert_pretrain.launch import local, slurm
from hubert_pretrain.pipeline import plan, redo
from hubert_pretrain.pipeline import workspace as workspace_module
from hubert_pretrain.pipeline.workspace import Workspace
from hubert_pretrain.stages import runner
from hubert_pretrain.training.resilience import checkpoint_io
from tests.config.test_recipes import composed
from tests.launch.conftest import FakeSlurm
from tests.launch.conftest import slurm as fake_slurm

__all__ = ["fake_slurm"]

FOLLOWERS = {
    "it1/cluster": [
        "it1/cluster",
        "it1/label",
        "it1/pretrain",
        "it2/cluster",
        "it2/label",
        "it2/pretrain",
        "finetune/asr",
        "finetune/speakers",
        "evaluate/asr/test",
        "evaluate/speakers/test",
        "export",
    ],
    "it2/pretrain": [
        "it2/pretrain",
        "finetune/asr",
        "finetune/speakers",
        "evaluate/asr/test",
        "evaluate/speakers/test",
        "export",
    ],
}
Run = Callable[..., list[str]]


class Stubs:
    """Stages that write one file each, and fail or come out otherwise when they are told to."""

    def __init__(self) -> None:
        self.ran: list[str] = []
        self.failing = ""
        self.saved = 0  # step of the checkpoint that the failing stage leaves; 0: a damaged one
        self.content: dict[str, str] = {}
        self.began: dict[str, int] = {}  # step at which a pretraining began

    def stage(self, verb: str) -> Any:
        def run(recipe: Recipe, workspace: Workspace, stage: str, folder: Path) -> dict[str, Any]:
            self.ran.append(stage)
            if stage == self.failing:
                (folder / "checkpoints").mkdir()
                (folder / "checkpoints/step=00000100.ckpt").write_bytes(b"half")
                if self.saved:
                    checkpoint = checkpoint_io.path_of(folder / "checkpoints", self.saved)
                    checkpoint_io.VerifiedCheckpointIO().save_checkpoint({}, checkpoint)
                raise KeyboardInterrupt
            if verb == "prepare":
                facts = {"num_samples": 16_000 + len(self.content.get(stage, ""))}
                write_manifest(folder / "manifest.arrow", [Utterance(id="a", path="/a", **facts)])
            if verb == "pretrain":
                steps = recipe.iterations[stage.split("/")[0]].pretrain.steps
                newest = checkpoint_io.newest(folder / "checkpoints")
                self.began[stage] = checkpoint_io.step_of(newest) if newest else 0
                checkpoint = checkpoint_io.path_of(folder / "checkpoints", steps)
                checkpoint_io.VerifiedCheckpointIO().save_checkpoint({}, checkpoint)
            (folder / "model.safetensors").write_text(self.content.get(stage, "as always"))
            return {}

        return SimpleNamespace(run=run)


@pytest.fixture
def stubs(monkeypatch: pytest.MonkeyPatch) -> Stubs:
    made = Stubs()
    monkeypatch.setattr(runner, "import_stage", made.stage)
    monkeypatch.setattr(runner.changes, "difference", lambda *_: "")
    monkeypatch.setattr(runner, "check_machine", lambda *_: None)
    monkeypatch.setattr(runner, "check_place", lambda *_: None)
    return made


@pytest.fixture(scope="module")
def smoke() -> Recipe:
    return composed("smoke")


@pytest.fixture
def run(smoke: Recipe, stubs: Stubs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """`run(stage=..., redo=..., change=...)`: the command; gives the stages that worked."""

    def command(
        stage: str = "all", redo_: str = "false", change: Callable[[Recipe], None] | None = None
    ) -> list[str]:
        recipe = copy.deepcopy(smoke)
        recipe.stage = stage
        recipe.redo = redo_
        recipe.work_dir = str(tmp_path)
        if change:
            change(recipe)
        workspace = Workspace(tmp_path)
        stubs.ran = []

        def process(name: str, words: list[str], *_: Any) -> None:
            assert words[-2:] == [f"stage={name}", "redo=false"] or redo_ == "false"
            assert f"redo={redo_}" not in words[:-1]
            again = dataclasses.replace(recipe, redo="false")
            runner.run_stage(again, workspace, plan.find(recipe, name))

        monkeypatch.setattr(local, "_run_process", process)
        redo.apply(recipe, workspace)
        if stage == "all":
            words = [f"redo={redo_}", "stage=all"] if redo_ != "false" else []
            local.run_pending(recipe, workspace, plan.stages(recipe), words)
        else:
            runner.run_stage(recipe, workspace, plan.find(recipe, stage))
        return stubs.ran

    return command


def states(recipe: Recipe, root: Path) -> dict[str, str]:
    return {stage.name: plan.state(stage, Workspace(root)) for stage in plan.stages(recipe)}


def fewer_clusters(recipe: Recipe) -> None:
    recipe.iterations["it1"].clustering.n_clusters -= 1


@pytest.mark.parametrize("name", sorted(FOLLOWERS))
def test_a_stage_and_what_follows_are_made_again_and_named(
    run: Run, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run()
    assert run() == []
    capsys.readouterr()
    assert run(redo_=name) == FOLLOWERS[name]
    printed = capsys.readouterr().out
    assert f"redo: {', '.join(FOLLOWERS[name])}\n" in printed
    for each in FOLLOWERS[name]:
        assert f"redo: removes {tmp_path / each} (" in printed
    assert "weights model.safetensors" in printed
    assert run() == []
    assert run(redo_=name) == FOLLOWERS[name], "another command begins again"


def test_an_interrupted_redo_goes_on(
    run: Run, stubs: Stubs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run()
    stubs.failing = "it1/pretrain"
    with pytest.raises(KeyboardInterrupt):
        run(redo_="it1/cluster")
    stubs.failing = ""
    capsys.readouterr()
    assert run(redo_="it1/cluster") == FOLLOWERS["it1/cluster"][2:]
    assert "removes" not in capsys.readouterr().out, "its checkpoints are what it goes on from"
    assert (tmp_path / "it1/pretrain/checkpoints/step=00000100.ckpt").exists()


def test_a_redo_that_was_killed_while_it_removed_goes_on(
    run: Run, smoke: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run()
    really = Workspace.discard

    def killed(workspace: Workspace, stage: str, keep: Any = ()) -> None:
        if stage == "it1/pretrain":
            (workspace.folder(stage) / "meta.json").unlink()
            raise KeyboardInterrupt
        really(workspace, stage, keep)

    monkeypatch.setattr(Workspace, "discard", killed)
    with pytest.raises(KeyboardInterrupt):
        run(redo_="it1/cluster")
    assert states(smoke, tmp_path)["it2/label"] == plan.DONE
    monkeypatch.setattr(Workspace, "discard", really)
    assert run(redo_="it1/cluster") == FOLLOWERS["it1/cluster"]


def test_one_stage_alone(run: Run, stubs: Stubs, smoke: Recipe, tmp_path: Path) -> None:
    """The stages after it stay done when it comes out the same, and are stale when not."""
    run()
    assert run("it1/label") == []
    assert run("it1/label", "true") == ["it1/label"]
    assert set(states(smoke, tmp_path).values()) == {plan.DONE}
    stubs.content["it1/label"] = "other targets"
    assert run("it1/label", "it1/label") == ["it1/label"]
    found = states(smoke, tmp_path)
    assert [name for name, state in found.items() if state == plan.STALE] == FOLLOWERS[
        "it1/cluster"
    ][2:]
    with pytest.raises(
        ArtefactError,
        match=r"it1/pretrain: made from another it1/label than there is now \(stale\); .*"
        r"stage=all redo=it1/pretrain",
    ):
        run()
    with pytest.raises(ArtefactError, match=r"it1/pretrain: made from another it1/label"):
        run("it2/cluster")
    assert run(redo_="true") == FOLLOWERS["it1/cluster"][2:]


def test_a_finished_stage_that_is_asked_for_is_not_skipped_without_a_word(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    run()
    capsys.readouterr()
    run("it1/cluster")
    assert "it1/cluster: done before (20" in (printed := capsys.readouterr().out)
    assert "redo=true makes it again" in printed


def test_one_stage_goes_on_too(run: Run, stubs: Stubs, tmp_path: Path) -> None:
    run()
    stubs.failing = "it1/pretrain"
    with pytest.raises(KeyboardInterrupt):
        run("it1/pretrain", "true")
    stubs.failing = ""
    assert run("it1/pretrain", "true") == ["it1/pretrain"]
    half = tmp_path / "it1/pretrain/checkpoints/step=00000100.ckpt"
    assert half.exists()
    assert run("it1/pretrain", "true") == ["it1/pretrain"]
    assert not half.exists()


def test_a_changed_stage_leaves_stale_ones_behind_it(
    run: Run, smoke: Recipe, tmp_path: Path
) -> None:
    run()
    recipe = copy.deepcopy(smoke)
    fewer_clusters(recipe)
    found = states(recipe, tmp_path)
    assert found["prepare"] == plan.DONE
    assert found["it1/cluster"] == plan.CHANGED
    assert {found[name] for name in FOLLOWERS["it1/cluster"][1:]} == {plan.STALE}
    for stage in ("all", "it1/cluster", "it1/label", "it2/cluster"):
        with pytest.raises(
            ArtefactError, match=r"n_clusters: \d+ -> \d+\).*stage=all redo=it1/cluster"
        ):
            run(stage, change=fewer_clusters)
    assert run(redo_="true", change=fewer_clusters) == FOLLOWERS["it1/cluster"]
    assert set(states(recipe, tmp_path).values()) == {plan.DONE}
    assert run(redo_="true", change=fewer_clusters) == []


def test_interrupted_work_of_another_configuration_is_made_again_and_named(
    run: Run, stubs: Stubs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def fewer_steps(recipe: Recipe) -> None:
        recipe.iterations["it1"].pretrain.steps -= 1

    stubs.failing = "it1/pretrain"
    with pytest.raises(KeyboardInterrupt):
        run()
    stubs.failing = ""
    with pytest.raises(ArtefactError, match=r"steps: \d+ -> \d+\).*redo=it1/pretrain starts"):
        run(change=fewer_steps)
    capsys.readouterr()
    assert run(redo_="true", change=fewer_steps) == FOLLOWERS["it1/cluster"][2:]
    printed = capsys.readouterr().out
    assert f"redo: removes {tmp_path}/it1/pretrain.partial (" in printed
    assert "checkpoints step=00000100.ckpt" in printed


def test_nothing_is_removed_when_the_run_would_stop_after_it(
    run: Run, smoke: Recipe, tmp_path: Path
) -> None:
    run()
    with pytest.raises(ArtefactError, match="redo=it1/cluster"):
        run(redo_="it2/label", change=fewer_clusters)
    with pytest.raises(ArtefactError, match="redo=it1/cluster"):
        run("it1/label", "true", change=fewer_clusters)

    def corpus_elsewhere(recipe: Recipe) -> None:
        recipe.data.root = str(tmp_path / "nowhere")

    with pytest.raises(ConfigError, match=r"nowhere: no such file or folder; nothing was removed"):
        run(redo_="prepare", change=corpus_elsewhere)
    assert set(states(smoke, tmp_path).values()) == {plan.DONE}


@pytest.mark.parametrize(
    ("stage", "value", "message"),
    [
        ("all", "it1/clutser", r"redo=it1/clutser: no such stage \(did you mean 'it1/cluster'\?\)"),
        ("it1/label", "it1/cluster", r"use stage=all, or redo=it1/label"),
        ("list", "true", r"stage=list makes nothing"),
    ],
)
def test_what_cannot_be_made_again(run: Run, stage: str, value: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        run(stage, value)


def test_a_removed_input_does_not_make_what_was_made_from_it_stale(
    run: Run, smoke: Recipe, tmp_path: Path
) -> None:
    """Targets may be removed to make room; made again, they are the same."""
    run()
    Workspace(tmp_path).discard("it1/label")
    found = states(smoke, tmp_path)
    assert (found["it1/label"], found["it1/pretrain"]) == (plan.PENDING, plan.DONE)
    assert run() == ["it1/label"]


def test_a_stage_of_an_older_version_is_made_again(run: Run, smoke: Recipe, tmp_path: Path) -> None:
    run()
    meta = read_json(tmp_path / "it2/label/meta.json")
    write_json(tmp_path / "it2/label/meta.json", meta | {"format": "hubert_pretrain.stage.1"})
    with pytest.raises(ArtefactError, match=r"cannot use; redo=it2/label makes it again"):
        run()
    assert states(smoke, tmp_path)["it2/pretrain"] == plan.STALE
    assert run(redo_="true") == ["it2/label", *FOLLOWERS["it2/pretrain"]]


def test_a_run_of_an_earlier_version_goes_on(run: Run, smoke: Recipe, tmp_path: Path) -> None:
    """Its folders do not say what came out, and know fewer fields; a changed value still counts."""
    run()
    stages = plan.stages(smoke)
    for stage in stages:
        path = tmp_path / stage.name / "meta.json"
        meta = {
            name: value
            for name, value in read_json(path).items()
            if name not in ("identity", "output", "places")
        }
        meta["config"].get("data", {}).pop("hold_out_by", None)
        meta["inputs"] = {
            name: Workspace(tmp_path).resolve(name).fingerprint for name in stage.inputs
        }
        write_json(path, meta)
    assert set(states(smoke, tmp_path).values()) == {plan.DONE}
    recipe = copy.deepcopy(smoke)
    fewer_clusters(recipe)
    assert states(recipe, tmp_path)["it1/cluster"] == plan.CHANGED


# -- SLURM


def submit(recipe: Recipe, root: Path, **launch: Any) -> None:
    recipe.launch.kind = "slurm"
    recipe.work_dir = str(root)
    for name, value in launch.items():
        setattr(recipe.launch, name, value)
    words = ["+recipe=smoke", "launch=slurm", "stage=all", f"redo={recipe.redo}"]
    slurm.run_pending(recipe, Workspace(root), plan.stages(recipe), words)


def test_slurm_removes_first_and_its_jobs_never_do(
    run: Run,
    smoke: Recipe,
    fake_slurm: FakeSlurm,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run()
    recipe = copy.deepcopy(smoke)
    recipe.redo = "it2/pretrain"
    capsys.readouterr()
    submit(recipe, tmp_path, dry_run=True)
    printed = capsys.readouterr().out
    assert f"redo: removes {tmp_path}/it2/pretrain (" in printed
    assert "# 6 jobs, 6 stages done before" in printed
    assert set(states(smoke, tmp_path).values()) == {plan.DONE}
    assert not fake_slurm.submitted()

    submit(recipe, tmp_path, dry_run=False)
    scripts = fake_slurm.submitted()
    assert FOLLOWERS["it2/pretrain"] == [
        next(name for name in states(smoke, tmp_path) if f"stage={name} " in script)
        for script in scripts.values()
    ]
    for script in scripts.values():
        assert " redo=false " in script
        assert "redo=it2" not in script
    assert states(smoke, tmp_path)["it2/pretrain"] == plan.PENDING
    # The same command again: the jobs are queued, nothing is removed.
    submit(recipe, tmp_path)
    assert len(fake_slurm.submitted()) == len(FOLLOWERS["it2/pretrain"])
    # Another redo of a queued stage.
    recipe.redo = "it2/cluster"
    with pytest.raises(ConfigError, match=r"job \d+ of it2/pretrain is queued or running.*scancel"):
        submit(recipe, tmp_path)
    assert states(smoke, tmp_path)["it2/cluster"] == plan.DONE


def more_steps(recipe: Recipe) -> None:
    for iteration in recipe.iterations.values():
        iteration.pretrain.steps += 10


def longer_first(recipe: Recipe) -> None:
    recipe.iterations["it1"].pretrain.steps += 10


def test_a_finished_training_whose_steps_were_raised_goes_on(
    run: Run, stubs: Stubs, smoke: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing that was made from it is made again without being asked for."""
    run()
    longer = copy.deepcopy(smoke)
    longer_first(longer)
    found = states(longer, tmp_path)
    assert found["it1/pretrain"] == plan.LONGER
    assert found["it1/label"] == plan.DONE
    assert {found[name] for name in FOLLOWERS["it1/cluster"][3:]} == {plan.STALE}
    with pytest.raises(
        ArtefactError,
        match=r"from it1/pretrain, which is to be trained further "
        r"\(steps: 20 -> 30\).*stage=all redo=true",
    ):
        run(change=longer_first)
    with pytest.raises(ArtefactError, match="it1/pretrain is to be trained further"):
        run("it2/cluster", "it2/cluster", change=longer_first)
    capsys.readouterr()
    assert run("it1/pretrain", change=longer_first) == ["it1/pretrain"]
    assert "it1/pretrain: trained further, 20 -> 30 steps, from the checkpoint of step 20" in (
        capsys.readouterr().out
    )
    assert stubs.began["it1/pretrain"] == 20
    made = Workspace(tmp_path).artefact("it1/pretrain").meta
    assert made["config"]["pretrain"]["steps"] == 30
    assert [was["config"]["pretrain"]["steps"] for was in made["continued"]] == [20]
    assert run("it1/pretrain", change=longer_first) == []
    # Fewer again is another configuration.
    with pytest.raises(ArtefactError, match="steps: 30 -> 20"):
        run("it1/pretrain")


def test_an_interrupted_training_whose_steps_were_raised_goes_on(
    run: Run, stubs: Stubs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """From its checkpoint, under the longer schedule, whether redo=true or not; fewer steps are
    another configuration.
    """
    stubs.failing = "it1/pretrain"
    stubs.saved = 10
    with pytest.raises(KeyboardInterrupt):
        run()
    stubs.failing = ""

    def shorter(recipe: Recipe) -> None:
        recipe.iterations["it1"].pretrain.steps -= 5

    def and_faster(recipe: Recipe) -> None:
        longer_first(recipe)
        recipe.iterations["it1"].pretrain.learning_rate *= 2

    with pytest.raises(ArtefactError, match=r"pretrain\.steps: 20 -> 15\)\. Restore"):
        run("it1/pretrain", change=shorter)
    with pytest.raises(ArtefactError, match=r"learning_rate: .* Restore"):
        run("it1/pretrain", change=and_faster)
    capsys.readouterr()
    assert run(redo_="true", change=longer_first) == FOLLOWERS["it1/cluster"][2:]
    assert (
        "it1/pretrain: goes on with 20 -> 30 steps, from the checkpoint of step 10, where the "
        "learning rate goes from 56% to 71% of its peak"
    ) in capsys.readouterr().out
    assert stubs.began["it1/pretrain"] == 10
    made = Workspace(tmp_path).artefact("it1/pretrain").meta
    assert made["config"]["pretrain"]["steps"] == 30
    assert [was["config"]["pretrain"]["steps"] for was in made["continued"]] == [20]


@pytest.mark.parametrize(
    ("saved", "where"),
    [
        (5, "from the checkpoint of step 5, where the learning rate goes from 100% to 100% of"),
        (0, "from its beginning: it has no checkpoint yet"),
    ],
)
def test_so_does_a_task(
    saved: int,
    where: str,
    run: Run,
    stubs: Stubs,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """With or without a checkpoint."""
    stubs.failing = "finetune/asr"
    stubs.saved = saved
    with pytest.raises(KeyboardInterrupt):
        run()
    stubs.failing = ""
    checkpoints = tmp_path / "finetune/asr.partial/checkpoints"
    if not saved:
        (checkpoints / "step=00000100.ckpt").rename(checkpoints.with_name("metrics.csv"))

    def more(recipe: Recipe) -> None:
        recipe.finetune["asr"].steps += 10

    assert run("finetune/asr", change=more) == ["finetune/asr"]
    assert f"finetune/asr: goes on with 10 -> 20 steps, {where}" in capsys.readouterr().out


def test_what_follows_is_made_again_when_that_is_asked_for(run: Run, stubs: Stubs) -> None:
    run()
    assert run(redo_="true", change=more_steps) == FOLLOWERS["it1/cluster"][2:]
    assert stubs.began == {"it1/pretrain": 20, "it2/pretrain": 0}


def test_a_training_that_goes_on_survives_a_kill(
    run: Run, stubs: Stubs, smoke: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever it comes: between the steps of reopening it, and in the training."""
    run()
    longer = copy.deepcopy(smoke)
    longer_first(longer)
    for killed in ("write_json", "publish"):
        with monkeypatch.context() as dying:
            dying.setattr(workspace_module, killed, lambda *_: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                run("it1/pretrain", change=longer_first)
        assert (tmp_path / "it1/pretrain/checkpoints/step=00000020.ckpt").exists()
    assert run("it1/pretrain", change=longer_first) == ["it1/pretrain"]
    assert stubs.began["it1/pretrain"] == 20
    assert states(longer, tmp_path)["it1/pretrain"] == plan.DONE
    made = Workspace(tmp_path).artefact("it1/pretrain").meta
    assert len(made["continued"]) == 1


@pytest.mark.parametrize("change", ["rate", "input", "no checkpoint"])
def test_only_more_steps_go_on(
    change: str, run: Run, stubs: Stubs, smoke: Recipe, tmp_path: Path
) -> None:
    run()
    longer = copy.deepcopy(smoke)
    longer_first(longer)
    if change == "rate":
        longer.iterations["it1"].pretrain.learning_rate *= 2
    elif change == "input":
        stubs.content["it1/label"] = "other targets"
        run("it1/label", "it1/label")
    else:
        (tmp_path / "it1/pretrain/checkpoints/step=00000020.ckpt").unlink()
    expected = plan.STALE if change == "input" else plan.CHANGED
    assert states(longer, tmp_path)["it1/pretrain"] == expected
