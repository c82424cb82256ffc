"""`launch=slurm` against a SLURM that only keeps what it is told: which jobs, in which order,
asking for what, and when none.
"""

from __future__ import annotations

import copy
import functools
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from hubert_pretrain.config import compose
from hubert_pretrain.config.schema import Recipe, ResourcesConfig
from hubert_pretrain.errors import ArtefactError, ConfigError, HubertPretrainError
from hubert_pretrain.files import write_json
from hubert_pretrain.launch import jobs, slurm
from hubert_pretrain.launch.sbatch import JOB_SCRIPT
from hubert_pretrain.pipeline import plan, summary
from hubert_pretrain.pipeline.workspace import FORMAT, Workspace
from tests.config.test_recipes import composed, overrides_of
from tests.launch.conftest import FakeSlurm

STAGES = [
    "prepare",
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
]
WORDS = ["+recipe=smoke", "launch=slurm", "launch.resources.cpus=3", "stage=all", "seed=7"]


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path / "run ü 1")


def recipe_of(workspace: Workspace, *words: str) -> Recipe:
    recipe = copy.deepcopy(cached(words))
    recipe.work_dir = str(workspace.root)
    return recipe


@functools.cache
def cached(words: tuple[str, ...]) -> Recipe:
    return composed("smoke", "launch=slurm", *words)


def submit(workspace: Workspace, *words: str, stage: str = "all", **launch: Any) -> None:
    recipe = recipe_of(workspace, *words)
    for name, value in launch.items():
        setattr(recipe.launch, name, value)
    stages = plan.stages(recipe) if stage == "all" else [plan.find(recipe, stage)]
    slurm.run_pending(recipe, workspace, stages, [*WORDS, *words])


def option(script: str, name: str) -> str | None:
    found = re.search(rf"^#SBATCH --{name}=(.*)$", script, re.MULTILINE)
    return shlex.split(found[1])[0] if found else None


def finish(workspace: Workspace, *names: str) -> None:
    for name in names:
        recipe = recipe_of(workspace)
        stage = plan.find(recipe, name)
        fingerprint = plan.fingerprint_of(stage, workspace)
        write_json(
            workspace.folder(name) / "meta.json",
            {
                "format": FORMAT,
                "fingerprint": fingerprint,
                "config": stage.config,
                "inputs": {name: workspace.resolve(name).fingerprint for name in stage.inputs},
                "facts": {},
            },
        )


def test_every_pending_stage_is_a_job_after_those_that_it_reads(
    slurm: FakeSlurm, workspace: Workspace
) -> None:
    submit(workspace)
    scripts = slurm.submitted()
    names = [str(option(script, "job-name")).removeprefix("smoke:") for script in scripts.values()]
    assert names == STAGES
    number = dict(zip(names, scripts, strict=True))
    for stage in plan.stages(recipe_of(workspace)):
        script = scripts[number[stage.name]]
        after = [number[name] for name in stage.inputs if name in number]
        assert option(script, "dependency") == (f"afterok:{':'.join(after)}" if after else None)
        assert option(script, "kill-on-invalid-dep") == "yes"
        assert "#SBATCH --requeue\n" in script
        assert option(script, "signal") == "USR2@300"
        assert option(script, "cpus-per-task") == ("16" if stage.verb == "prepare" else "8")
        assert option(script, "output") == str(workspace.jobs_folder(stage.name) / "%j.out")
        # Tasks that cannot use the corpus end the chain at its first job.
        assert ("check.labels=true" in script) == (stage.verb == "prepare")


def test_a_job_runs_the_command_of_a_user(slurm: FakeSlurm, workspace: Workspace) -> None:
    submit(workspace, stage="prepare")
    command = shlex.split(next(iter(slurm.submitted().values())).strip().splitlines()[-1])
    assert command[:2] == ["exec", "bash"]
    assert Path(command[2]).name == "job.sh"
    assert command[3:] == [
        sys.executable,
        "-m",
        "hubert_pretrain.run",
        "+recipe=smoke",
        "seed=7",
        "stage=prepare",
        "launch=local",
    ]


def test_the_job_script_is_well_formed() -> None:
    assert subprocess.run(["bash", "-n", str(JOB_SCRIPT)], check=False).returncode == 0
    if shutil.which("shellcheck"):
        assert subprocess.run(["shellcheck", str(JOB_SCRIPT)], check=False).returncode == 0


@pytest.mark.parametrize("name", sorted(compose.recipe_files()))
def test_every_recipe_can_be_submitted(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each stage is a job after those that it reads, with processes that share its work."""
    recipe = composed(name, "launch=slurm", "launch.dry_run=true", *overrides_of(name, tmp_path))
    stages = plan.stages(recipe)
    slurm.run_pending(recipe, Workspace(tmp_path / "run"), stages, [f"+recipe={name}"])
    scripts = capsys.readouterr().out.split("# ---- ")[1:]
    assert [script.split("\n")[0] for script in scripts] == [stage.name for stage in stages]
    own = {stage.name for stage in stages}
    for stage, script in zip(stages, scripts, strict=True):
        after = [f"<job of {each}>" for each in stage.inputs if each in own]
        assert option(script, "dependency") == (f"afterok:{':'.join(after)}" if after else None)


def test_stages_that_are_done_are_not_submitted(
    slurm: FakeSlurm, workspace: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    finish(workspace, "prepare", "it1/cluster")
    submit(workspace)
    assert len(slurm.submitted()) == len(STAGES) - 2
    assert option(slurm.submitted()["1"], "job-name") == "smoke:it1/label"
    assert option(slurm.submitted()["1"], "dependency") is None
    assert "it1/cluster: done before" in capsys.readouterr().out


def test_what_is_queued_is_not_submitted_again(
    slurm: FakeSlurm, workspace: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    submit(workspace)
    submit(workspace)
    assert len(slurm.submitted()) == len(STAGES)
    assert capsys.readouterr().out.count("was submitted before") == len(STAGES)


def test_jobs_that_ended_without_finishing_their_stage_are_forgotten(
    slurm: FakeSlurm, workspace: Workspace
) -> None:
    submit(workspace)
    finish(workspace, "prepare")
    # it1/cluster failed, it1/label was cancelled, it2/cluster waits; the queue has no others.
    slurm.queue(
        "1|COMPLETED|None|0:09|n1",
        "2|FAILED|NonZeroExitCode|0:01|n1",
        "3|CANCELLED|Dependency|0:00|",
        "5|PENDING|Priority|0:00|",
    )
    submit(workspace)
    again = {
        str(option(script, "job-name")): script
        for number, script in slurm.submitted().items()
        if int(number) > len(STAGES)
    }
    assert [name.removeprefix("smoke:") for name in again] == [
        name for name in STAGES if name not in ("prepare", "it2/cluster")
    ]
    assert option(again["smoke:it2/label"], "dependency") == "afterok:5"


def test_a_queued_job_of_another_configuration_is_refused(
    slurm: FakeSlurm, workspace: Workspace
) -> None:
    submit(workspace)
    with pytest.raises(
        ConfigError,
        match=r"it1/cluster: job 2 was submitted with another .*n_clusters: 50 -> 20.*scancel 2",
    ):
        submit(workspace, "iterations.it1.clustering.n_clusters=20")


def test_one_stage_waits_for_those_that_are_queued(slurm: FakeSlurm, workspace: Workspace) -> None:
    with pytest.raises(
        ArtefactError, match=r"it1/cluster reads prepare, which is neither done nor queued"
    ):
        submit(workspace, stage="it1/cluster")
    submit(workspace, stage="prepare")
    submit(workspace, stage="it1/cluster")
    assert option(slurm.submitted()["2"], "dependency") == "afterok:1"


def test_what_a_stage_asks_for(slurm: FakeSlurm, workspace: Workspace) -> None:
    own = {
        "pretrain": ResourcesConfig(
            nodes=2, tasks=2, gpus=1, time_minutes=90, options={"reservation": "winter"}
        ),
        "it2/pretrain": ResourcesConfig(nodes=1, partition="long"),
        "label": ResourcesConfig(array=4, memory_gb=1.5),
    }
    words = [f"iterations.{it}.pretrain.micro_batch_seconds=4" for it in ("it1", "it2")]
    submit(workspace, *words, stages=own, srun=["--mpi=pmix"], setup=["module load cuda"])
    scripts = {
        str(option(script, "job-name")).removeprefix("smoke:"): script
        for script in slurm.submitted().values()
    }
    first = scripts["it1/pretrain"]
    second = scripts["it2/pretrain"]
    label = scripts["it1/label"]
    names = ("nodes", "ntasks-per-node", "gpus-per-node", "time", "reservation", "partition")
    assert [option(first, name) for name in names] == ["2", "2", "2", "90", "winter", None]
    assert [option(second, name) for name in names] == ["1", "2", "2", "90", "winter", "long"]
    assert [option(label, name) for name in ("array", "mem", "output")] == [
        "0-3", "1536M", str(workspace.jobs_folder("it1/label") / "%A_%a.out"),
    ]  # fmt: skip
    assert "module load cuda" in first
    assert "export HUBERT_SRUN=--mpi=pmix" in first


def test_devices_and_nodes_of_the_trainer_are_those_of_what_trains(
    slurm: FakeSlurm, workspace: Workspace
) -> None:
    words = ["trainer.devices=2", "trainer.num_nodes=2", "trainer.accelerator=gpu"]
    words += [f"iterations.{it}.pretrain.micro_batch_seconds=4" for it in ("it1", "it2")]
    words += [f"finetune.{task}.micro_batch_seconds=4" for task in ("asr", "speakers")]
    submit(workspace, *words)
    scripts = {
        str(option(script, "job-name")).removeprefix("smoke:"): script
        for script in slurm.submitted().values()
    }
    asked = {
        name: tuple(option(script, key) for key in ("nodes", "ntasks-per-node", "gpus-per-node"))
        for name, script in scripts.items()
    }
    assert asked["it1/pretrain"] == asked["finetune/speakers"] == ("2", "2", "2")
    assert asked["it1/cluster"] == ("1", "1", "1")
    assert asked["prepare"] == asked["export"] == ("1", "1", None)


@pytest.mark.parametrize(
    ("stages", "words"),
    [
        (
            {"pretrian": ResourcesConfig(nodes=2)},
            r"launch.stages.pretrian: no such stage \(did you mean 'pretrain'\?\)",
        ),
        ({"prepare": ResourcesConfig(nodes=2)}, "prepare is one process"),
        ({"pretrain": ResourcesConfig(array=2)}, "only label can be an array"),
        ({"label": ResourcesConfig(array=2, nodes=2)}, "only label can be an array, with nodes=1"),
        ({"pretrain": ResourcesConfig(nodes=0)}, "would have 0 nodes"),
        ({"pretrain": ResourcesConfig(nodes=3)}, "1 micro-batches, which 3 devices cannot share"),
        ({"cluster": ResourcesConfig(tasks=2)}, "engine=minibatch works in one"),
    ],
)
def test_what_no_job_can_be_made_of_is_refused_before_anything_is_queued(
    slurm: FakeSlurm, workspace: Workspace, stages: dict[str, ResourcesConfig], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        submit(workspace, "iterations.it1.clustering.engine=minibatch", stages=stages)
    assert not slurm.submitted()


def test_a_dry_run_prints_the_scripts_and_submits_nothing(
    slurm: FakeSlurm, workspace: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    finish(workspace, "prepare")
    before = sorted(workspace.root.rglob("*"))
    submit(workspace, dry_run=True)
    printed = capsys.readouterr().out
    assert re.findall(r"^# ---- (.*)$", printed, re.MULTILINE) == STAGES[1:]
    assert printed.count("#!/bin/bash") == len(STAGES) - 1
    assert "#SBATCH --dependency='afterok:<job of it1/cluster>'" in printed
    assert "nothing was submitted" in printed
    assert not slurm.submitted()
    assert sorted(workspace.root.rglob("*")) == before


def test_sbatch_has_its_say_when_it_refuses(slurm: FakeSlurm, workspace: Workspace) -> None:
    slurm.write("refuse", "invalid partition specified: nope")
    with pytest.raises(
        HubertPretrainError,
        match=r"smoke:prepare: sbatch refused the job: .*invalid partition specified: nope",
    ) as refused:
        submit(workspace)
    assert "\n" not in str(refused.value)


def test_without_slurm_one_line_says_so(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(HubertPretrainError, match="sbatch: not found"):
        submit(workspace)


def test_nothing_is_submitted_while_slurm_does_not_answer(
    slurm: FakeSlurm, workspace: Workspace
) -> None:
    submit(workspace, stage="prepare")
    slurm.write("down", "")
    with pytest.raises(
        HubertPretrainError, match=r"squeue failed: .*Unable to contact slurm controller"
    ):
        submit(workspace)
    assert len(slurm.submitted()) == 1


def test_two_drivers_do_not_submit_at_the_same_time(
    slurm: FakeSlurm, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hubert_pretrain.pipeline.locks.PATIENCE_SECONDS", 0.2)
    with (
        workspace.lock_submission(),
        pytest.raises(ArtefactError, match="launch=slurm is being run by another process"),
    ):
        submit(workspace)
    assert not slurm.submitted()


def test_a_name_that_slurm_would_fill_in_is_refused(slurm: FakeSlurm, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not take '%'"):
        submit(Workspace(tmp_path / "100%j"))


def test_the_list_shows_jobs_and_their_states(
    slurm: FakeSlurm, workspace: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = recipe_of(workspace)
    summary.print_stages(recipe, workspace, jobs.states_by_stage(workspace))
    assert "┃ job" not in capsys.readouterr().out
    submit(workspace)
    slurm.queue(
        "1|RUNNING|None|0:09|n1",
        "2|PENDING|Dependency|0:00|",
        "3|RUNNING|None|0:01|n1",
        "3|PENDING|Resources|0:00|",
    )
    capsys.readouterr()
    summary.print_stages(recipe, workspace, jobs.states_by_stage(workspace))
    printed = capsys.readouterr().out
    for text in (
        "1 RUNNING (0:09 on n1)",
        "2 PENDING (Dependency)",
        "3 RUNNING (1 RUNNING, 1 PENDING)",
        "4 GONE",
    ):
        assert text in printed
    slurm.write("down", "")
    summary.print_stages(recipe, workspace, jobs.states_by_stage(workspace))
    shown = capsys.readouterr()
    assert "1 ?" in shown.out
    assert "Unable to contact" in shown.err


def test_waiting_reports_changes_and_names_what_failed(
    slurm: FakeSlurm,
    workspace: Workspace,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pictures = iter(
        [
            ["1|RUNNING|None|0:01|n1", "2|PENDING|Dependency|0:00|"],
            ["1|FAILED|None|0:02|n1", "2|CANCELLED|Dependency|0:00|"],
        ]
    )
    recipe = recipe_of(workspace)
    polls = recipe.launch.poll_seconds  # subprocess sleeps too, for less
    monkeypatch.setattr(
        "time.sleep", lambda seconds: slurm.queue(*next(pictures)) if seconds == polls else None
    )
    recipe.iterations = {"it1": recipe.iterations["it1"]}
    recipe.finetune = {}
    recipe.export.checkpoints = []
    recipe.launch.wait = True
    with pytest.raises(
        HubertPretrainError,
        match=r"prepare is not done: job 1 ended as FAILED .*prepare/1.out",
    ):
        slurm_run(recipe, workspace)
    printed = capsys.readouterr().out
    assert re.findall(r"prepare: job 1 (\w+)", printed) == ["PENDING", "RUNNING", "FAILED"]


def slurm_run(recipe: Recipe, workspace: Workspace) -> None:
    slurm.run_pending(recipe, workspace, plan.stages(recipe)[:2], WORDS)


@pytest.mark.parametrize(
    ("rows", "expected", "is_over"),
    [
        (["7|RUNNING|None|0:01|n1"], "RUNNING (0:01 on n1)", False),
        (["7|PENDING|BeginTime|0:00|"], "PENDING (BeginTime)", False),
        (["7|COMPLETED|None|0:01|n1", "7|COMPLETED|None|0:01|n2"], "COMPLETED (2 COMPLETED)", True),
        (
            ["7|COMPLETED|None|0:01|n1", "7|FAILED|None|0:01|n2"],
            "FAILED (1 COMPLETED, 1 FAILED)",
            True,
        ),
        (
            ["7|FAILED|None|0:01|n1", "7|PENDING|Resources|0:01|"],
            "PENDING (1 FAILED, 1 PENDING)",
            False,
        ),
        ([], "GONE", True),
    ],
)
def test_states(slurm: FakeSlurm, rows: list[str], expected: str, is_over: bool) -> None:
    slurm.queue(*rows)
    state = jobs.states(["7"])["7"]
    assert (str(state), state.is_over) == (expected, is_over)


def test_the_accounting_is_asked_where_there_is_one(slurm: FakeSlurm) -> None:
    slurm.write("accounts", "7|CANCELLED by 0\n8_0|COMPLETED\n8_1|TIMEOUT\n")
    states = jobs.states(["7", "8", "9"])
    assert {job: state.name for job, state in states.items()} == {
        "7": "CANCELLED",
        "8": "TIMEOUT",
        "9": "GONE",
    }
