"""Batch script of a stage's SLURM job, and its submission by sbatch."""

from __future__ import annotations

import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hubert_pretrain.config.schema import Recipe
from hubert_pretrain.errors import HubertPretrainError
from hubert_pretrain.files import publish, write_text
from hubert_pretrain.launch import jobs, resources
from hubert_pretrain.pipeline import redo
from hubert_pretrain.pipeline.plan import Stage
from hubert_pretrain.pipeline.workspace import Workspace

JOB_SCRIPT = Path(__file__).with_name("job.sh")
"""Starts the processes of a stage inside its job, and requeues it."""
TEMPLATE = """\
#!/bin/bash
{options}

{setup}

exec bash {job_script} {command}
"""


@dataclass(frozen=True)
class BatchJob:
    """A job that can be shown and submitted."""

    name: str
    folder: Path
    """Of its script and logs."""
    script: str
    is_array: bool

    def log_of(self, job_id: str) -> Path:
        """The output of a submitted job (of an array: of its first element)."""
        return self.folder / (f"{job_id}_0.out" if self.is_array else f"{job_id}.out")

    def submit(self) -> str:
        """Submit the script and keep it as `<job>.sh`; returns the job's number.

        Raises HubertPretrainError with sbatch's own words.
        """
        path = self.folder / "job.sh"
        write_text(path, self.script)
        try:
            done = subprocess.run(
                ["sbatch", "--parsable", str(path)], capture_output=True, text=True, check=False
            )
        except FileNotFoundError:
            raise HubertPretrainError(
                "sbatch: not found; launch=slurm works where SLURM's own commands do"
            ) from None
        if done.returncode != 0:
            raise HubertPretrainError(
                f"{self.name}: sbatch refused the job: {jobs.words_of(done.stderr)}"
            )
        job_id = done.stdout.strip().split(";")[0]
        publish(path, self.folder / f"{job_id}.sh", sync=False)
        return job_id


def batch_job(
    recipe: Recipe, workspace: Workspace, stage: Stage, *, words: list[str], after: list[str]
) -> BatchJob:
    """The job of one stage.

    Args:
        words: of the command line that the job runs, without `stage=` and `launch=`.
        after: numbers of the jobs that must have ended well before.
    """
    folder = workspace.jobs_folder(stage.name)
    options = resources.sbatch_options(recipe, stage)
    is_array = "array" in options
    options["output"] = str(folder / ("%A_%a.out" if is_array else "%j.out"))
    if after:
        options["dependency"] = f"afterok:{':'.join(after)}"
    script = TEMPLATE.format(
        options="\n".join(_directives(options)),
        setup="\n".join([*_exports(recipe, folder), *recipe.launch.setup]),
        job_script=shlex.quote(str(JOB_SCRIPT)),
        command=_command(recipe, stage, words),
    )
    return BatchJob(options["job-name"], folder, script, is_array)


def _directives(options: dict[str, Any]) -> list[str]:
    """`#SBATCH` lines; an option without a value is True, one that is not given None."""
    return [
        f"#SBATCH --{name}" if value is True else f"#SBATCH --{name}={shlex.quote(str(value))}"
        for name, value in sorted(options.items())
        if value is not None
    ]


def _exports(recipe: Recipe, folder: Path) -> list[str]:
    """Settings of job.sh."""
    settings = {
        "HUBERT_MAX_REQUEUES": str(recipe.launch.max_requeues),
        "HUBERT_REQUEUE_FOLDER": str(folder),
    }
    if recipe.launch.srun:
        settings["HUBERT_SRUN"] = " ".join(recipe.launch.srun)
    return [f"export {name}={shlex.quote(value)}" for name, value in settings.items()]


def _command(recipe: Recipe, stage: Stage, words: list[str]) -> str:
    """The shell command of a user for this stage."""
    python = recipe.launch.python or sys.executable
    own = [*redo.words_for_stage(recipe, words, stage.name), "launch=local"]
    return shlex.join([python, "-m", "hubert_pretrain.run", *own])
