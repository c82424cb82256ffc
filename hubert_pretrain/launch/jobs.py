"""SLURM jobs of the stages and their states: `slurm/jobs.json` in the workspace, squeue, and sacct
where the cluster has it.
"""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from hubert_pretrain.errors import HubertPretrainError
from hubert_pretrain.files import read_json, write_json
from hubert_pretrain.pipeline.workspace import Workspace

OVER = {
    "BOOT_FAIL",
    "CANCELLED",
    "COMPLETED",
    "DEADLINE",
    "FAILED",
    "NODE_FAIL",
    "OUT_OF_MEMORY",
    "PREEMPTED",
    "REVOKED",
    "TIMEOUT",
    "GONE",
    "UNKNOWN",
}
"""States of jobs that run no more; any other is waiting, running or about to run again."""
_FIELDS = "%F|%T|%r|%M|%N"
"""Of squeue: job, state, reason, elapsed time, nodes."""


@dataclass(frozen=True)
class Job:
    """A submitted job."""

    id: str
    identity: dict[str, Any]  # of the stage, as the configuration was
    log: str


@dataclass(frozen=True)
class State:
    """State of a job, all of its array elements together."""

    name: str  # RUNNING, PENDING, ...; GONE: SLURM no longer knows it
    detail: str = ""

    @property
    def is_over(self) -> bool:
        """True when it neither runs nor will run."""
        return self.name in OVER

    def __str__(self) -> str:
        return f"{self.name} ({self.detail})" if self.detail else self.name


def recorded(workspace: Workspace) -> dict[str, Job]:
    """The jobs that were submitted for this workspace, by stage."""
    return {
        stage: Job(**values) for stage, values in (read_json(workspace.jobs_path) or {}).items()
    }


def record(workspace: Workspace, jobs: dict[str, Job]) -> None:
    """Replaces what is recorded."""
    write_json(workspace.jobs_path, {stage: dataclasses.asdict(job) for stage, job in jobs.items()})


def states(ids: Iterable[str]) -> dict[str, State]:
    """The state of each job. Raises HubertPretrainError when SLURM does not answer."""
    jobs = list(dict.fromkeys(ids))
    if not jobs:
        return {}
    found = _queued(jobs)
    missing = [job for job in jobs if job not in found]
    return found | (_accounted(missing) if missing else {})


def ask(*command: str) -> str:
    """The output of one of SLURM's commands. Raises HubertPretrainError with its own words when it
    fails.
    """
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=120
        )
    except FileNotFoundError:
        raise HubertPretrainError(
            f"{command[0]}: not found; launch=slurm works where SLURM's own commands do"
        ) from None
    except subprocess.TimeoutExpired:
        raise HubertPretrainError(
            f"{command[0]}: no answer from SLURM in 120 seconds; try again later"
        ) from None
    if done.returncode != 0:
        raise HubertPretrainError(
            f"{command[0]} failed: {words_of(done.stderr) or f'exit code {done.returncode}'}"
        )
    return done.stdout


def words_of(stderr: str) -> str:
    """The error message of one of SLURM's commands, on one line."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    return "; ".join(line.removeprefix("sbatch: ").removeprefix("error: ") for line in lines)


def _queued(ids: list[str]) -> dict[str, State]:
    """Jobs that squeue knows: all that are not over, and those that ended in the last minutes."""
    try:
        answer = ask(
            "squeue", "--noheader", "--states=all", f"--jobs={','.join(ids)}", f"--format={_FIELDS}"
        )
    except HubertPretrainError as error:
        if "Invalid job id" in str(error):  # SLURM has forgotten the only job of the question
            return {}
        raise
    rows: dict[str, list[tuple[str, str]]] = {}
    for line in answer.splitlines():
        job, state, reason, elapsed, nodes = line.strip().split("|")
        detail = "" if reason == "None" else reason
        if nodes:
            detail = f"{elapsed} on {nodes}"
        rows.setdefault(job, []).append((state, detail))
    return {job: _together(of_job) for job, of_job in rows.items()}


def _together(rows: list[tuple[str, str]]) -> State:
    """One state for a job or for all elements of an array: over when all are over, failed when one
    has failed.
    """
    if len(rows) == 1:
        return State(*rows[0])
    counts = Counter(state for state, _ in rows)
    first = min(counts, key=lambda state: (state in OVER, state == "COMPLETED", state != "RUNNING"))
    return State(first, ", ".join(f"{count} {state}" for state, count in counts.items()))


def _accounted(ids: list[str]) -> dict[str, State]:
    """States from the accounting, for jobs that squeue has forgotten."""
    try:
        answer = ask(
            "sacct",
            "--noheader",
            "--parsable2",
            "--allocations",
            f"--jobs={','.join(ids)}",
            "--format=JobID,State",
        )
    except HubertPretrainError:
        answer = ""
    rows: dict[str, list[tuple[str, str]]] = {}
    for line in answer.splitlines():
        job, _, state = line.partition("|")
        rows.setdefault(job.split("_")[0], []).append((state.split(" ")[0], ""))
    return {job: _together(rows[job]) if job in rows else State("GONE") for job in ids}


def states_by_stage(workspace: Workspace) -> dict[str, str]:
    """`123 RUNNING (3:20 on n[1-2])` for each stage that was submitted to SLURM."""
    submitted = recorded(workspace)
    try:
        found = states(job.id for job in submitted.values())
    except HubertPretrainError as error:
        print(f"warning: {error}", file=sys.stderr)
        return {stage: f"{job.id} ?" for stage, job in submitted.items()}
    return {stage: f"{job.id} {found[job.id]}" for stage, job in submitted.items()}
