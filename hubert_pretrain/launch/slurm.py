"""`launch=slurm`: a job for each pending stage, after the jobs of the stages that it reads."""

from __future__ import annotations

import re
import time

from hubert_pretrain.config.schema import Recipe
from hubert_pretrain.errors import ArtefactError, ConfigError, HubertPretrainError
from hubert_pretrain.launch import jobs, resources
from hubert_pretrain.launch.jobs import Job, State
from hubert_pretrain.launch.sbatch import batch_job
from hubert_pretrain.pipeline import plan, redo, summary
from hubert_pretrain.pipeline.plan import Stage
from hubert_pretrain.pipeline.workspace import Workspace, differing_fields

_FOR_THE_DRIVER = re.compile(r"(\+\+|\+|~)?(launch[.=@]|launch$|stage=|redo=)")
"""Words of the command line that are not for the jobs."""


def run_pending(
    recipe: Recipe, workspace: Workspace, stages: list[Stage], overrides: list[str]
) -> None:
    """Submit a job for each of `stages` that is neither done nor queued.

    Args:
        overrides: words of the command line.

    Raises:
        ArtefactError: a finished stage was made by another configuration, or a stage reads one that
            is neither done nor queued.
        ConfigError: a stage cannot run in this many processes, or is queued with another
            configuration.
        HubertPretrainError: SLURM does not answer, or refuses a job.
    """
    resources.check(recipe, stages)
    check_path(str(workspace.root))
    if not redo.is_asked(recipe):
        for stage in stages:
            plan.check_unchanged(stage, workspace)
    words = [word for word in overrides if not _FOR_THE_DRIVER.match(word)]
    if recipe.launch.dry_run:
        again = []
        if redo.is_asked(recipe):
            chosen = redo.choose(recipe, workspace)
            redo.say(chosen, workspace)
            again = chosen.left
        _show(recipe, workspace, stages, words, again)
        return
    with workspace.lock_submission():
        _redo(recipe, workspace)
        submitted = _submit(recipe, workspace, stages, words)
    if recipe.launch.wait:
        wait(recipe, workspace, submitted)


def check_path(root: str) -> None:
    """Raises ConfigError for a folder that SLURM would read as a pattern."""
    if bad := [character for character in "%\\\"'\n" if character in root]:
        raise ConfigError(
            f"work_dir={root!r}: SLURM does not take {bad[0]!r} in the name of a log as it is; "
            "choose another work_dir"
        )


def _submit(
    recipe: Recipe, workspace: Workspace, stages: list[Stage], words: list[str]
) -> dict[str, Job]:
    """Submit the pending stages. Returns the queued jobs of all these stages, by stage."""
    queued = still_queued(workspace)
    jobs.record(workspace, queued)
    for number, stage in enumerate(stages, start=1):
        title = f"[{number}/{len(stages)}] {stage.name}"
        if plan.is_complete(stage, workspace):
            print(f"{title}: done before", flush=True)
        elif stage.name in queued:
            _check_same(stage, queued[stage.name])
            print(f"{title}: job {queued[stage.name].id} was submitted before", flush=True)
        else:
            after = _inputs(recipe, workspace, stage, queued)
            ids = [queued[name].id for name in after]
            job = batch_job(recipe, workspace, stage, words=_words(stage, stages, words), after=ids)
            job_id = job.submit()
            queued[stage.name] = Job(job_id, stage.identity, str(job.log_of(job_id)))
            jobs.record(workspace, queued)
            follows = f" after {', '.join(after)}" if after else ""
            print(f"{title}: job {job_id}{follows}", flush=True)
    print(f"stage=list shows their states; logs: {workspace.jobs_path.parent}/*/*.out", flush=True)
    return {
        stage.name: queued[stage.name]
        for stage in stages
        if stage.name in queued and not plan.is_complete(stage, workspace)
    }


def _words(stage: Stage, stages: list[Stage], words: list[str]) -> list[str]:
    """The words of a stage's job. `prepare` before other stages also finds out whether the tasks
    can use the corpus.
    """
    first_of_run = stage.verb == "prepare" and len(stages) > 1
    return [*words, "check.labels=true"] if first_of_run else words


def still_queued(workspace: Workspace) -> dict[str, Job]:
    """The recorded jobs that run or will run."""
    recorded = jobs.recorded(workspace)
    states = jobs.states(job.id for job in recorded.values())
    return {stage: job for stage, job in recorded.items() if not states[job.id].is_over}


def _redo(recipe: Recipe, workspace: Workspace) -> None:
    """Remove what is to be made again, unless a job is making it."""
    if not redo.is_asked(recipe):
        return
    queued = still_queued(workspace)
    for name in redo.choose(recipe, workspace).left:
        if name in queued:
            raise ConfigError(
                f"redo={recipe.redo}: job {queued[name].id} of {name} is queued or running; cancel "
                f"it first: scancel {queued[name].id}"
            )
    redo.apply(recipe, workspace)


def _check_same(stage: Stage, job: Job) -> None:
    if differing := differing_fields(job.identity, stage.identity):
        raise ConfigError(
            f"{stage.name}: job {job.id} was submitted with another configuration "
            f"({'; '.join(differing)}); restore those values, or cancel it first: "
            f"scancel {job.id}"
        )


def _inputs(
    recipe: Recipe, workspace: Workspace, stage: Stage, queued: dict[str, Job]
) -> list[str]:
    """The stages that this one has to wait for."""
    waits = [each.name for each in stage.sources if not plan.is_complete(each, workspace)]
    for name in waits:
        if name not in queued:
            raise ArtefactError(
                f"{stage.name} reads {name}, which is neither done nor queued; submit that first: "
                f"stage={name}, or stage=all"
            )
    return waits


def _show(
    recipe: Recipe, workspace: Workspace, stages: list[Stage], words: list[str], again: list[str]
) -> None:
    """Print the scripts, also of stages that would be made `again`. A job that is not submitted has
    no number: dependencies name its stage."""
    pending = [
        stage for stage in stages if stage.name in again or not plan.is_complete(stage, workspace)
    ]
    names = {stage.name for stage in pending}
    for stage in pending:
        after = [f"<job of {name}>" for name in stage.inputs if name in names]
        job = batch_job(recipe, workspace, stage, words=_words(stage, stages, words), after=after)
        print(f"# ---- {stage.name}\n{job.script}")
    done = len(stages) - len(pending)
    print(
        f"# {len(pending)} jobs, {done} stages done before; nothing was submitted (launch.dry_run)"
    )


def wait(recipe: Recipe, workspace: Workspace, submitted: dict[str, Job]) -> None:
    """Report every change until all jobs have ended. Raises HubertPretrainError when a stage is
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
            f"{first} is not done: job {submitted[first].id} ended as {shown[first]}; "
            f"its log: {submitted[first].log}"
        )
