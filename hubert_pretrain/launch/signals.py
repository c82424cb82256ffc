"""What a scheduler and the process of a stage say to each other: signals that mean "leave", and the
code that it ends with.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType

from hubert_pretrain.errors import EXIT_PREEMPTED, Preempted

REQUEUE_MARKER = "HUBERT_AGAIN"
"""Set by recipes/job.sh: the file that a process makes when it saved and wants to go on."""


def hide_srun_from_lightning() -> None:
    """Lightning takes every process of a SLURM job for one that srun started, unless the job has
    this name: also torchrun's, and a single one in a batch script or a shell of salloc."""
    by_srun = "SLURM_STEP_NUM_TASKS" in os.environ and "TORCHELASTIC_RUN_ID" not in os.environ
    if "SLURM_NTASKS" in os.environ and not by_srun:
        os.environ["SLURM_JOB_NAME"] = "interactive"


@contextlib.contextmanager
def exit_on_signals(signals: Sequence[str]) -> Iterator[None]:
    """While this is open, the signals end the process with code 75: every stage goes on after any
    interruption.

    The stages that train listen for themselves while they do, to save first
    (training/resilience/preemption.py). Worker processes, which a scheduler signals too, are ended
    by this one.
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
    """The exit code of this process. Under recipes/job.sh one that wants to go on says so by a file
    and ends with 0: srun ends the other processes after any other code, and they may still be on
    their way out."""
    mark = os.environ.get(REQUEUE_MARKER)
    if code != EXIT_PREEMPTED or not mark:
        return code
    Path(mark).touch()
    return 0


def _numbers(signals: Sequence[str]) -> list[signal.Signals]:
    """`SIGUSR2` or `USR2` -> its number; names that are none are refused where training begins."""
    names = [name if name.startswith("SIG") else f"SIG{name}" for name in signals]
    return [signal.Signals[name] for name in names if name in signal.Signals.__members__]
