"""Progress display of a training: a live bar on a terminal, one plain line per logging step
anywhere else, nothing on other ranks.
"""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any

import lightning as L

from hubert_pretrain.progress import clock

if TYPE_CHECKING:
    from rich.progress import Progress as Bar


BRIEF = {
    "loss/masked": "loss",
    "accuracy/masked": "acc",
    "accuracy/unmasked": "unmasked acc",
    "audio_seconds_per_second": "audio s/s",
}
"""Names beside a bar."""


class Progress(L.Callback):
    """Shows the values that `loggers.report` passes on. The bar moves with every step, without
    reading anything from the device.
    """

    def __init__(self, steps: int, *, enabled: bool = True) -> None:
        self.steps = steps
        self.enabled = enabled
        self._bar: Bar | None = None
        self._task: Any = None
        self._started: float | None = None
        self._first_step = 0

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Open the bar, at the step that was reached before."""
        self._started = time.monotonic()
        self._first_step = trainer.global_step
        if trainer.is_global_zero and self.enabled and sys.stdout.isatty():
            self._bar = _bar()
            self._task = self._bar.add_task(
                "training", total=self.steps, completed=trainer.global_step, values=""
            )
            self._bar.start()

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Move the bar."""
        if self._bar is not None:
            self._bar.update(self._task, completed=trainer.global_step)

    def show(self, step: int, values: dict[str, float], *, kind: str = "train") -> None:
        """Show the values of a logging step or of a validation."""
        if not self.enabled:
            return
        text = describe(values)
        if self._bar is None:
            left = self._left(step) if kind == "train" else ""
            print(f"{kind} step {step}/{self.steps}  {text}{left}", flush=True)
        elif kind == "train":
            self._bar.update(self._task, values=describe_briefly(values))
        else:
            self._bar.console.print(f"{kind} step {step}/{self.steps}  {text}")

    def _left(self, step: int) -> str:
        """The time that the rest of the steps takes at the mean speed so far, validations
        included.
        """
        done = step - self._first_step
        if self._started is None or done < 1:
            return ""
        seconds = (time.monotonic() - self._started) * (self.steps - step) / done
        return f"  {clock(seconds)} left"

    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Close the bar."""
        self._close()

    def on_exception(
        self, trainer: L.Trainer, module: L.LightningModule, exception: BaseException
    ) -> None:
        """Close the bar, so that the error is readable."""
        self._close()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


class Stopwatch:
    """Seconds of work, without the pauses (validation, saving) that are not training."""

    def __init__(self, seconds: float = 0.0) -> None:
        self._total = seconds
        self._since: float | None = None

    def start(self) -> None:
        """Start or continue."""
        if self._since is None:
            self._since = time.perf_counter()

    def stop(self) -> None:
        """Pause."""
        self._total = self.seconds
        self._since = None

    @property
    def seconds(self) -> float:
        """Seconds so far."""
        if self._since is None:
            return self._total
        return self._total + time.perf_counter() - self._since


def describe(values: dict[str, float]) -> str:
    """`{"loss/masked": 3.21, "lr": 0.0005}` -> `loss/masked 3.21  lr 0.0005`."""
    return "  ".join(f"{name} {value:.4g}" for name, value in values.items())


def describe_briefly(values: dict[str, float]) -> str:
    """For the narrow space beside a bar: short names, three digits."""
    return "  ".join(f"{BRIEF.get(name, name)} {value:.3g}" for name, value in values.items())


def _bar() -> Bar:
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    return Progress(
        BarColumn(12),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[values]}"),
    )
