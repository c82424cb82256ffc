"""`launch=slurm`: a job for each pending stage, after the jobs of the stages that it reads.

submitit writes the batch scripts and submits them. What they run is not its pickled function but
the command that a user would type, by way of `recipes/job.sh`: the function's process would take
the signals that our stages save on, and would end with exit codes of its own.
"""

from __future__ import annotations

import re
import shlex
import sys
import time
from typing import Any

from hubert_pretrain.config import compose
from hubert_pretrain.config.schema import Recipe
from hubert_pretrain.errors import ArtefactError, ConfigError, HubertPretrainError
from hubert_pretrain.launch import jobs, resources
from hubert_pretrain.launch.jobs import Job, State
from hubert_pretrain.pipeline import plan, summary
from hubert_pretrain.pipeline.plan import Stage
from hubert_pretrain.pipeline.workspace import Workspace, differing_fields

_FOR_THE_DRIVER = re.compile(r"(\+\+|\+|~)?(launch[.=@]|launch$|stage=)")


def run_pending(
    recipe: Recipe, workspace: Workspace, stages: list[Stage], overrides: list[str]
) -> None:
    """Submits a job for every one of `stages` that is neither done nor queued. `overrides` are the
    words of the command line.

    Raises:
        ArtefactError: a finished stage was made by another configuration, or a stage reads one that
        is neither done nor queued. ConfigError: a stage cannot run in so many processes, or is
        queued with another configuration. HubertPretrainError: SLURM does not answer, or refuses a
        job.
    """
    resources.check(recipe, stages)
    check_path(str(workspace.root))
    for stage in stages:
        plan.check_unchanged(stage, workspace)
    words = [word for word in overrides if not _FOR_THE_DRIVER.match(word)]
    if recipe.launch.dry_run:
        _show(recipe, workspace, stages, words)
        return
    with workspace.lock_submission():
        submitted = _submit(recipe, workspace, stages, words)
    if recipe.launch.wait:
        wait(recipe, workspace, submitted)


def check_path(root: str) -> None:
    """Raises ConfigError for a folder that SLURM would take for a pattern."""
    if bad := [character for character in "%\\\"'\n" if character in root]:
        raise ConfigError(
            f"work_dir={root!r}: SLURM does not take {bad[0]!r} in the name of a log as it is; choose another work_dir"
        )


def _submit(
    recipe: Recipe, workspace: Workspace, stages: list[Stage], words: list[str]
) -> dict[str, Job]:
    """Submits what is pending. Returns the jobs of these stages that are queued, by stage."""
    queued = still_queued(workspace)
    jobs.record(workspace, queued)
    for number, stage in enumerate(stages, start=1):
        title = f"[{number}/{len(stages)}] {stage.name}"
        if workspace.is_done(stage.name):
            print(f"{title}: done before", flush=True)
        elif job := queued.get(stage.name):
            _check_same(stage, job)
            print(f"{title}: job {job.id} was submitted before", flush=True)
        else:
            after = _inputs(recipe, workspace, stage, queued)
            executor = _executor(recipe, workspace, stage, [queued[name].id for name in after])
            job_id = executor.submit_command(_command(recipe, stage, words))
            queued[stage.name] = Job(job_id, stage.identity, str(executor.log_of(job_id)))
            jobs.record(workspace, queued)
            print(
                f"{title}: job {job_id}" + (f" after {', '.join(after)}" if after else ""),
                flush=True,
            )
    print(f"stage=list shows how they are; logs: {workspace.jobs_path.parent}/*/*.out", flush=True)
    return {
        stage.name: queued[stage.name]
        for stage in stages
        if stage.name in queued and not workspace.is_done(stage.name)
    }


def still_queued(workspace: Workspace) -> dict[str, Job]:
    """The recorded jobs that run or will run; of the others nothing is to be expected."""
    recorded = jobs.recorded(workspace)
    states = jobs.states(job.id for job in recorded.values())
    return {stage: job for stage, job in recorded.items() if not states[job.id].is_over}


def _check_same(stage: Stage, job: Job) -> None:
    if differing := differing_fields(job.identity, stage.identity):
        raise ConfigError(
            f"{stage.name}: job {job.id} was submitted with another configuration ({'; '.join(differing)}); "
            f"restore those values, or cancel it first: scancel {job.id}"
        )


def _inputs(
    recipe: Recipe, workspace: Workspace, stage: Stage, queued: dict[str, Job]
) -> list[str]:
    """The stages that this one has to wait for."""
    own = {each.name for each in plan.stages(recipe)}
    waits = [name for name in stage.inputs if name in own and not workspace.is_done(name)]
    for name in waits:
        if name not in queued:
            raise ArtefactError(
                f"{stage.name} reads {name}, which is neither done nor queued; submit that first: stage={name}, or stage=all"
            )
    return waits


def _command(recipe: Recipe, stage: Stage, words: list[str]) -> str:
    """The shell command of a job."""
    python = recipe.launch.python or sys.executable
    stage_words = [*words, f"stage={stage.name}", "launch=local"]
    return shlex.join(
        [
            "exec",
            "bash",
            str(compose.job_script()),
            python,
            "-m",
            "hubert_pretrain.run",
            *stage_words,
        ]
    )


def _show(recipe: Recipe, workspace: Workspace, stages: list[Stage], words: list[str]) -> None:
    """Prints the scripts. Stages that are not submitted yet have no number: dependencies name them
    instead.
    """
    pending = [stage for stage in stages if not workspace.is_done(stage.name)]
    names = {stage.name for stage in pending}
    for stage in pending:
        executor = _executor(
            recipe, workspace, stage, [f"<job of {name}>" for name in stage.inputs if name in names]
        )
        print(f"# ---- {stage.name}\n{executor.script(_command(recipe, stage, words))}")
    print(
        f"# {len(pending)} jobs, {len(stages) - len(pending)} stages done before; nothing was submitted (launch.dry_run)"
    )


def _executor(recipe: Recipe, workspace: Workspace, stage: Stage, after: list[str]) -> Any:
    try:
        from hubert_pretrain.launch.executor import executor_of
    except ImportError:
        raise HubertPretrainError(
            "launch=slurm needs submitit: pip install 'hubert-pretrain[slurm]'"
        ) from None
    return executor_of(recipe, workspace, stage, after)


def wait(recipe: Recipe, workspace: Workspace, submitted: dict[str, Job]) -> None:
    """Reports every change until all jobs have ended. Raises HubertPretrainError when a stage is
    not done then.
    """
    shown: dict[str, State] = {}
    while True:
        states = jobs.states(job.id for job in submitted.values())
        for stage, job in submitted.items():
            state = states[job.id]
            if state.name != (shown[stage].name if stage in shown else None):
                print(f"{time.strftime('%H:%M:%S')} {stage}: job {job.id} {state}", flush=True)
            shown[stage] = state
        if all(state.is_over for state in shown.values()):
            break
        time.sleep(recipe.launch.poll_seconds)
    summary.write(recipe, workspace)
    missing = [stage for stage in submitted if not workspace.is_done(stage)]
    if missing:
        first = missing[0]
        raise HubertPretrainError(
            f"{first} is not done: job {submitted[first].id} ended as {shown[first]}; its log: {submitted[first].log}"
        )
