"""Signals and exit codes between a scheduler and the process of a stage."""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from hubert_pretrain import distributed
from hubert_pretrain.errors import EXIT_INTERRUPTED, EXIT_PREEMPTED, Preempted

REQUEUE_MARKER = "HUBERT_REQUEUE_MARKER"
"""Environment variable, set by job.sh: the file that a process makes when it saved and its job
shall be requeued."""
FIRST_RANK = "HUBERT_FIRST_RANK"
"""Environment variable: the process of rank 0, for the ranks that it starts."""
GRACE_SECONDS = 5.0
"""From a signal to the end of a process that did not end itself. `docker stop` kills after ten."""


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

    Every stage can be resumed. Training installs handlers of its own at its first step, to save
    before it leaves (training/resilience/preemption.py). Worker processes get the signals too and
    ignore them: this process ends them. A second signal changes nothing. A process that is still
    there after `GRACE_SECONDS` (its main thread waits in a library, or an `except` took the
    exception) is ended by a thread.
    """
    own = os.getpid()
    begun: list[int] = []

    def leave(number: int, frame: FrameType | None) -> None:
        if os.getpid() != own or begun:
            return
        begun.append(number)
        raise Preempted(f"left on {signal.Signals(number).name}; the same command resumes it")

    before = {number: signal.signal(number, leave) for number in _numbers(signals)}
    try:
        with _ended_by_a_thread(leave):
            yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)


@contextlib.contextmanager
def _ended_by_a_thread(leave: Any) -> Iterator[None]:
    """End the process `GRACE_SECONDS` after a signal whose handler is `leave`, or after the second
    Ctrl-C, unless this is closed before.

    Python runs handlers between two operations of the main thread, which may wait in a library for
    ever. The wakeup file gets every signal at once.
    """
    readable, writable = os.pipe()
    os.set_blocking(writable, False)
    closed = threading.Event()

    def watch() -> None:
        interrupts = 0
        while number := os.read(readable, 1):
            interrupts += number[0] == signal.SIGINT
            asked = signal.getsignal(number[0]) is leave
            if asked:
                _tell_first_rank(number[0])
            if (asked or interrupts == 2) and not closed.wait(GRACE_SECONDS):
                _end(number[0])
        os.close(readable)

    before = signal.set_wakeup_fd(writable, warn_on_full_buffer=False)
    threading.Thread(target=watch, name="signals", daemon=True).start()
    try:
        yield
    finally:
        closed.set()
        signal.set_wakeup_fd(before)
        os.close(writable)


def _end(number: int) -> None:
    """End this process and its workers with exit code 75, or 130 after Ctrl-C."""
    name = signal.Signals(number).name
    os.write(2, f"error: left on {name}; the same command resumes it\n".encode())
    for child in multiprocessing.active_children():
        child.kill()
    code = EXIT_INTERRUPTED if number == signal.SIGINT else EXIT_PREEMPTED
    os._exit(exit_code_for_scheduler(code))


def _forget_wakeup_file() -> None:
    """In a forked child, whose signals are not its parent's."""
    if threading.current_thread() is threading.main_thread():
        signal.set_wakeup_fd(-1)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_wakeup_file)


class Forwarder:
    """Runs one process after another, each in the foreground of this one, and passes signals on to
    it.

    After Ctrl-C the process may save and end; after another one it is ended. A terminal sends the
    interrupt to all processes of a command, `kill -INT` to this one alone. So a process that has
    not ended soon is asked to save by another signal: for one that is saving it changes nothing,
    and a second interrupt would end it.
    """

    def __init__(self, numbers: Sequence[signal.Signals]) -> None:
        """
        Args:
            numbers: signals on which a process saves and leaves.
        """
        self.received: signal.Signals | None = None
        """The first signal."""
        self._save = next(iter(numbers), signal.SIGINT)
        self._running = False
        self._process: subprocess.Popen[bytes] | None = None
        self._interrupts = 0
        self._timers: list[threading.Timer] = []

    def run(self, start: Callable[[], subprocess.Popen[bytes]]) -> int:
        """The exit code of a process, which gets the signals until it ends, and those that came
        before.

        Raises KeyboardInterrupt once it has ended, after Ctrl-C.
        """
        self._running = True
        try:
            self._process = start()
            if self.received is not None:
                self._process.send_signal(self.received)
            if self._interrupts:
                self._let_end(self._process)
            code = self._process.wait()
        finally:
            self._running = False
            self._process = None
            for timer in self._timers:
                timer.cancel()
        if self._interrupts:
            raise KeyboardInterrupt
        return code

    def pass_on(self, number: int, frame: FrameType | None) -> None:
        """The handler of the signals."""
        self.received = self.received or signal.Signals(number)
        if self._process is not None:
            self._process.send_signal(number)

    def interrupt(self, number: int, frame: FrameType | None) -> None:
        """The handler of Ctrl-C."""
        if not self._running:
            raise KeyboardInterrupt
        self._interrupts += 1
        if self._process is not None:
            self._let_end(self._process)

    def _let_end(self, process: subprocess.Popen[bytes]) -> None:
        if self._interrupts == 1:
            timer = threading.Timer(GRACE_SECONDS, process.send_signal, [self._save])
        else:
            timer = threading.Timer(2 * GRACE_SECONDS, process.kill)
        timer.daemon = True
        self._timers.append(timer)
        timer.start()


@contextlib.contextmanager
def forwarded(signals: Sequence[str]) -> Iterator[Forwarder]:
    """While this is open, signals to this process go to the one that it runs."""
    forwarder = Forwarder(_numbers(signals))
    before = {number: signal.signal(number, forwarder.pass_on) for number in _numbers(signals)}
    if callable(signal.getsignal(signal.SIGINT)):  # not ignored
        before[signal.SIGINT] = signal.signal(signal.SIGINT, forwarder.interrupt)
    try:
        yield forwarder
    finally:
        for number, handler in before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)


def die_with_parent() -> None:
    """Let this process be killed when its parent ends, even by kill -9, so that none is left that
    writes beside its successor (Linux).
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def tie_to_first_rank() -> None:
    """Let ranks that this process starts end with it (rank 0), or this one with rank 0 (others).

    For Lightning's launcher, which starts ranks of one machine and leaves them alone when rank 0
    fails; torchrun and srun end all ranks when one fails.
    """
    if distributed.rank() == 0:
        os.environ[FIRST_RANK] = str(os.getpid())
    elif (first := _first_rank()) is not None:
        die_with_parent()
        if os.getppid() != first:  # it ended before
            raise Preempted("rank 0 has ended")


def _first_rank() -> int | None:
    """The process of rank 0 where it started this one."""
    first = os.environ.get(FIRST_RANK)
    return int(first) if first and distributed.rank() > 0 else None


def _tell_first_rank(number: int) -> None:
    """A signal to one rank moves all: before the first step there is no other way to tell them."""
    if first := _first_rank():
        with contextlib.suppress(ProcessLookupError):
            os.kill(first, number)


def exit_code_for_scheduler(code: int) -> int:
    """The exit code of this process.

    Under job.sh a process that shall be requeued makes the marker file and ends with 0: after any
    other code srun would kill the other processes, which may still be saving. So would Lightning
    after a rank that it started.
    """
    if code == EXIT_PREEMPTED and _first_rank() is not None:
        return 0
    mark = os.environ.get(REQUEUE_MARKER)
    if code != EXIT_PREEMPTED or not mark:
        return code
    Path(mark).touch()
    return 0


def _numbers(signals: Sequence[str]) -> list[signal.Signals]:
    """`SIGUSR2` or `USR2` -> its number. Training refuses unknown names; here they are left out."""
    names = [name if name.startswith("SIG") else f"SIG{name}" for name in signals]
    return [signal.Signals[name] for name in names if name in signal.Signals.__members__]
