"""Signals and exit codes between a scheduler and the process of a stage."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType

from hubert_pretrain.errors import EXIT_PREEMPTED, Preempted

REQUEUE_MARKER = "HUBERT_REQUEUE_MARKER"
"""Environment variable, set by job.sh: the file that a process makes when it saved and its job
shall be requeued."""


def hide_srun_from_lightning() -> None:
    """Rename the job for Lightning where srun did not start this process.

    Lightning takes every process of a SLURM job for one of srun's, unless the job is called
    "interactive": also those of torchrun, and a single one in a batch script or a shell of salloc.
    """
    by_srun = "SLURM_STEP_NUM_TASKS" in os.environ and "TORCHELASTIC_RUN_ID" not in os.environ
    if "SLURM_NTASKS" in os.environ and not by_srun:
        os.environ["SLURM_JOB_NAME"] = "interactive"


@contextlib.contextmanager
def exit_on_signals(signals: Sequence[str]) -> Iterator[None]:
    """End the process with exit code 75 on one of the signals, while this is open.

    Every stage can be resumed. Stages that train install handlers of their own, to save first
    (training/resilience/preemption.py). Worker processes get the signals too and ignore them: this
    process ends them.
    """
    own = os.getpid()

    def leave(number: int, frame: FrameType | None) -> None:
        if os.getpid() == own:
            raise Preempted(f"left on {signal.Signals(number).name}; the same command resumes it")

    before = {number: signal.signal(number, leave) for number in _numbers(signals)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)


def exit_code_for_scheduler(code: int) -> int:
    """The exit code of this process.

    Under job.sh a process that shall be requeued makes the marker file and ends with 0: after any
    other code srun would kill the other processes, which may still be saving.
    """
    mark = os.environ.get(REQUEUE_MARKER)
    if code != EXIT_PREEMPTED or not mark:
        return code
    Path(mark).touch()
    return 0


def _numbers(signals: Sequence[str]) -> list[signal.Signals]:
    """`SIGUSR2` or `USR2` -> its number. Training refuses unknown names; here they are left out."""
    names = [name if name.startswith("SIG") else f"SIG{name}" for name in signals]
    return [signal.Signals[name] for name in names if name in signal.Signals.__members__]
