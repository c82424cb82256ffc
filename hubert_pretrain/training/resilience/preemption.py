"""Preemption: on a signal or time limit all ranks agree at a step boundary, save, and exit with 75;
on Ctrl-C with 130.

The signal handler only sets a flag: a collective or a checkpoint inside it hangs when the signal
comes in the middle of a backward pass (Lightning#21406), which is why Lightning's own handlers are
off (training/trainer.py).
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from types import FrameType
from typing import Any

import lightning as L
import torch

from hubert_pretrain import distributed
from hubert_pretrain.errors import ConfigError, Interrupted, Preempted, did_you_mean

MARGIN_SECONDS = 120.0
"""Time before the end of a SLURM job at which training leaves: a checkpoint and two steps have to
fit into it.
"""


LEAVE = 1
INTERRUPT = 2
"""Flags by which ranks agree to leave."""


class Request:
    """The request to leave: by a signal, a time limit or Ctrl-C. A second request changes nothing,
    but a second Ctrl-C raises KeyboardInterrupt at once.
    """

    def __init__(self, signals: Sequence[str] = (), *, time_limit_minutes: float = 0.0) -> None:
        """
        Args:
            signals: names of the signals that request it.
            time_limit_minutes: from now; 0: none. The end of a SLURM job (SLURM_JOB_END_TIME)
                counts in any case.

        Raises ConfigError for a name that is no signal.
        """
        self._signals = [signal_number(name) for name in signals]
        self.reason: str | None = None
        self.interrupted = False
        """True after Ctrl-C."""
        ends = [(float("inf"), "")]  # (time, reason)
        if time_limit_minutes > 0:
            limit = f"the time limit of {time_limit_minutes:g} minutes"
            ends.append((time.time() + 60 * time_limit_minutes, limit))
        job_end = os.environ.get("SLURM_JOB_END_TIME")
        if job_end:
            ends.append((float(job_end) - MARGIN_SECONDS, "the end of the SLURM job"))
        self._end, self._end_reason = min(ends)

    @property
    def made(self) -> bool:
        """True if training should leave."""
        if self.reason is None and time.time() >= self._end:
            self.reason = self._end_reason
        return self.reason is not None

    @property
    def flag(self) -> int:
        """INTERRUPT, LEAVE or 0."""
        if self.interrupted:
            return INTERRUPT
        return LEAVE if self.made else 0

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Context in which the signals request to leave; afterwards their old handlers are back.

        An interrupt is left as it is where it is ignored, as in a job of a shell's background.
        """
        if threading.current_thread() is not threading.main_thread():
            # Only the main thread can have handlers; in a thread of a notebook there are none.
            yield
            return
        before = {number: signal.signal(number, self._note) for number in self._signals}
        if callable(signal.getsignal(signal.SIGINT)):
            before[signal.SIGINT] = signal.signal(signal.SIGINT, self._interrupt)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler if handler is not None else signal.SIG_DFL)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.reason = self.reason or signal.Signals(number).name

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        if self.interrupted:
            raise KeyboardInterrupt
        self.interrupted = True
        self.reason = self.reason or "Ctrl-C"
        if distributed.rank() == 0:
            # Not by print: its buffer may be in use where this handler runs.
            os.write(2, _INTERRUPTED.encode())


_INTERRUPTED = """
interrupted: saving after this step (a validation is finished first); Ctrl-C again ends at once
"""


def signal_number(name: str) -> signal.Signals:
    """`SIGUSR2` or `USR2` -> its number. Raises ConfigError."""
    full = name if name.startswith("SIG") else f"SIG{name}"
    if full not in signal.Signals.__members__:
        raise ConfigError(
            f"trainer.signals={name}: no such signal"
            f"{did_you_mean(full, list(signal.Signals.__members__))}"
        )
    return signal.Signals[full]


def ignore_in_worker(worker: int) -> None:
    """Make a loader's worker ignore the signals of a scheduler and of a terminal, which go to every
    process of a job: workers must run until the checkpoint is written.
    """
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


class Agreement:
    """Tells all ranks, one step later, the largest value of each flag that any of them raised.

    The reduction runs on the CPU while the step is computed, and is read at the next boundary: no
    rank waits, no device is synchronised, and all read the same answer at the same step.
    """

    def __init__(self, patience: timedelta) -> None:
        """
        Args:
            patience: time after which a rank that waits for another gives up.
        """
        self._group: Any = None
        self._pending: tuple[Any, torch.Tensor] | None = None
        if distributed.world_size() > 1:
            import torch.distributed as dist

            self._group = dist.new_group(backend="gloo", timeout=patience)

    def next(self, *flags: int) -> list[int]:
        """Set this rank's flags for this step, in the same order on every rank. Returns the largest
        of all ranks at the step before (a single process: at this step).
        """
        if self._group is None:
            return list(flags)
        import torch.distributed as dist

        agreed = self._answer(len(flags))
        tensor = torch.tensor(flags)
        work = dist.all_reduce(tensor, op=dist.ReduceOp.MAX, group=self._group, async_op=True)
        self._pending = (work, tensor)
        return agreed

    def _answer(self, count: int) -> list[int]:
        if self._pending is None:
            return [0] * count
        work, tensor = self._pending
        work.wait()
        return [int(value) for value in tensor]


class Preemption(L.Callback):
    """Saves and raises `Preempted` or `Interrupted` on all ranks when any rank was requested to
    leave, at most two steps after the signal; and saves on all of them when the clock of one says
    so.

    A running validation is finished first. Before the first step there is nothing to save: until
    then signals find the handlers of the process (launch/signals.py), which end it at once, also
    where the first batch never comes.
    """

    def __init__(
        self,
        request: Request,
        save: Callable[[L.Trainer], None],
        *,
        patience: timedelta,
        asks_by_the_clock: Callable[[], bool] = lambda: False,
        save_and_go_on: Callable[[L.Trainer], None] = lambda trainer: None,
    ) -> None:
        """
        Args:
            save: called on every rank before it leaves; returns when the checkpoint is on disk.
            patience: of ranks that wait for each other.
            asks_by_the_clock: whether this rank's clock says that a checkpoint is due.
            save_and_go_on: called on every rank, at the same step, when any of them says so.
        """
        self.request = request
        self.save = save
        self.asks_by_the_clock = asks_by_the_clock
        self.save_and_go_on = save_and_go_on
        self.patience = patience
        self.listening = contextlib.ExitStack()
        """Holds the signals' handlers from the first step on, until `fit` closes it."""
        self._agreement: Agreement | None = None
        self._first_step: int | None = None  # of this process

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Create the process group of the agreement."""
        self._agreement = Agreement(self.patience)

    def on_train_batch_start(
        self, trainer: L.Trainer, module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Leave before the first micro-batch of a step: the step before is complete, logged, and
        validated where that was due.
        """
        if batch_idx % trainer.accumulate_grad_batches or self._agreement is None:
            return
        if self._first_step is None:
            self._first_step = trainer.global_step
            self.listening.enter_context(self.request.listening())
        leave, save = self._agreement.next(self.request.flag, self.asks_by_the_clock())
        if save and not leave:
            self.save_and_go_on(trainer)
        if leave:
            self.save(trainer)
            where = f"at step {trainer.global_step} of {trainer.max_steps}"
            again = "saved; the same command resumes it"
            if leave == INTERRUPT:
                raise Interrupted(f"interrupted {where}, {again}")
            reason = self.request.reason or "a signal to another rank"
            raise Preempted(f"left {where} ({reason}), {again}")

    def left_at_start(self, trainer: L.Trainer) -> bool:
        """True if this process was asked to leave in its first step, in which there is nothing to
        save: another rank, which had not begun it, has left at once.
        """
        return self.request.made and self._first_step in (None, trainer.global_step)
