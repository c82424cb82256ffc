"""When checkpoints are written, in which thread, and which of them stay. How one is written:
checkpoint_io.py.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning as L
import torch

from hubert_pretrain import distributed
from hubert_pretrain.errors import ArtefactError
from hubert_pretrain.files import read_json, remove_temporaries, write_json
from hubert_pretrain.training.resilience.checkpoint_io import (
    VerifiedCheckpointIO,
    checkpoints,
    path_of,
    step_of,
    verified,
)

if TYPE_CHECKING:
    from hubert_pretrain.config.schema import TrainerConfig

logger = logging.getLogger(__name__)

BEST = "best.json"


@dataclass(frozen=True, kw_only=True)
class CheckpointPolicy:
    """When checkpoints are written, and which of them stay."""

    every_steps: int
    every_minutes: float = 0.0  # by the first rank's clock; 0: never
    keep: int  # the newest so many stay
    keep_every_steps: int  # and those of multiples of this step; 0: none
    keep_step: int = 0  # and that of this step; 0: none
    keep_best: str  # and the best by this value of the valid split; "": none
    asynchronous: bool  # copied to CPU memory, then written while training goes on
    max_failures: int  # failed writes in a row (a full disk) that do not end the training

    @staticmethod
    def of(
        config: TrainerConfig,
        *,
        every_steps: int,
        every_minutes: float = 0.0,
        keep_step: int = 0,
        keep_best: str = "",
    ) -> CheckpointPolicy:
        """The policy of a recipe."""
        return CheckpointPolicy(
            every_steps=every_steps,
            every_minutes=every_minutes,
            keep=config.keep_checkpoints,
            keep_every_steps=config.keep_every_steps,
            keep_step=keep_step,
            keep_best=keep_best,
            asynchronous=config.async_checkpoints,
            max_failures=config.max_failed_checkpoints,
        )

    def is_due(self, step: int) -> bool:
        """True if a checkpoint is written after so many updates, whatever the time."""
        return step % self.every_steps == 0 or self.stays(step)

    def stays(self, step: int) -> bool:
        """True if the checkpoint of a step stays, however old it is."""
        is_regular = self.keep_every_steps > 0 and step % self.keep_every_steps == 0
        return is_regular or step == self.keep_step


class CheckpointWriter(VerifiedCheckpointIO):
    """Writes a checkpoint and reads it back, in this thread or another. At most one file is being
    written.

    A failure is stored instead of raised, because other ranks wait meanwhile.
    """

    def __init__(self, *, asynchronous: bool = False) -> None:
        self.asynchronous = asynchronous
        self.failure: str | None = None
        """Reason why the last checkpoint could not be written; None: it was written."""
        self._thread: threading.Thread | None = None

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        """Write now; or copy the tensors to CPU memory now, and write in a thread."""
        self.finish()
        if not self.asynchronous:
            self._write(checkpoint, Path(path))
            return
        # Not a daemon: Python waits for it before it exits.
        self._thread = threading.Thread(
            target=self._write, args=(snapshot(checkpoint), Path(path)), name="checkpoint"
        )
        self._thread.start()

    @property
    def busy(self) -> bool:
        """True while a file is being written."""
        return self._thread is not None and self._thread.is_alive()

    def finish(self) -> None:
        """Wait until nothing is being written."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _write(self, checkpoint: dict[str, Any], path: Path) -> None:
        self.failure = "its writer did not finish"
        try:
            super().save_checkpoint(checkpoint, path)
            # The first rank reads all of a checkpoint of many ranks.
            if distributed.rank() > 0 or verified(path):
                self.failure = None
            else:
                self.failure = (
                    f"{path}: reads back differently from what was written; the disk is failing"
                )
        except Exception as error:
            # Without a thread, anything but a failed write is a bug, and raised.
            if not self.asynchronous and not isinstance(error, ArtefactError):
                raise
            self.failure = str(error)


class CheckpointCallback(L.Callback):
    """Saves every so many updates or minutes and after the last update, prunes, and resumes at the
    exact step.

    The position of a run is its step number and nothing else, so Lightning's loop counters are left
    out of the file and rebuilt on load. That also allows a resumed run to use another number of
    devices, hence another accumulation.
    """

    def __init__(
        self,
        folder: Path,
        writer: CheckpointWriter,
        policy: CheckpointPolicy,
        *,
        last_step: int,
        about: Mapping[str, Any] | None = None,
    ) -> None:
        """
        Args:
            last_step: of the training; it is saved too.
            about: recipe, versions and fingerprints as plain containers; they go into each file.
        """
        self.folder = folder
        self.writer = writer
        self.policy = policy
        self.last_step = last_step
        self.about = dict(about or {})
        self._saved_step = -1
        self._clock_since = time.monotonic()  # when the last save was asked for
        self._is_finished = True  # whether the outcome of the last save was handled
        self._failures = 0  # in a row
        self._best: dict[str, Any] = read_json(folder / BEST) or {}

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Start the clock."""
        self._clock_since = time.monotonic()

    def on_fit_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Check that the folder can be written, before an hour is spent; remove the temporary files
        of killed writers.
        """
        if self.policy.keep_best:  # a name without a direction is refused now, not after hours
            module.higher_is_better(self.policy.keep_best)  # type: ignore[operator]
        if not trainer.is_global_zero:
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / ".probe").write_bytes(b"")
            (self.folder / ".probe").unlink()
        except OSError as error:
            raise ArtefactError(
                f"{self.folder}: checkpoints cannot be written here ({error}); fix the permissions"
            ) from error
        remove_temporaries(self.folder)

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Save after the updates at which the policy has a checkpoint, and after the last."""
        if not self._is_finished and not self.writer.busy:
            self._finish_save()
        step = trainer.global_step
        is_update = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        is_due = self.policy.is_due(step) or step == self.last_step
        if is_update and is_due and step > 0:
            self.save(trainer)

    def asks_by_the_clock(self) -> bool:
        """True once, on the first rank, when the last save is `every_minutes` ago and its file is
        written. Preemption tells the other ranks, and all save at the same step.
        """
        minutes = self.policy.every_minutes
        now = time.monotonic()
        is_over = minutes > 0 and now - self._clock_since >= 60 * minutes
        if distributed.rank() > 0 or not is_over or self.writer.busy:
            return False
        self._clock_since = now
        return True

    def on_validation_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Save when the valid split scores as well as ever before, or better."""
        if self.policy.keep_best and trainer.state.fn == "fit" and self._scores_best(module):
            self.save(trainer)
            self._note_best(trainer, module)

    def best(self, trainer: L.Trainer, module: L.LightningModule) -> dict[str, Any]:
        """{"metric", "value", "step", "validated"} of the best validation, that of the last step
        included; empty without `keep_best`. The same on every rank.
        """
        is_last = getattr(module, "validated_step", -1) == trainer.global_step
        if self.policy.keep_best and is_last and self._scores_best(module):
            self._note_best(trainer, module)
        return dict(distributed.from_first(self._best)) if self.policy.keep_best else {}

    def _scores_best(self, module: L.LightningModule) -> bool:
        """True if no validation before was better than the last."""
        name = self.policy.keep_best
        values: dict[str, float] = getattr(module, "validated", {})
        if name not in values:
            known = ", ".join(sorted(values)) or "none"
            raise ArtefactError(
                f"keep_best={name}: no value of the valid split has this name; there are {known}"
            )
        higher_is_better: bool = module.higher_is_better(name)  # type: ignore[operator]
        return self._is_better(name, values[name], higher_is_better)

    def _note_best(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        values: dict[str, float] = dict(module.validated)  # type: ignore[arg-type]
        name = self.policy.keep_best
        self._best = {
            "metric": name,
            "value": values[name],
            "step": trainer.global_step,
            "validated": values,
        }
        if trainer.is_global_zero:
            write_json(self.folder / BEST, self._best)

    def save(self, trainer: L.Trainer) -> None:
        """Save the step that was reached, once. Every rank must call it.

        Raises ArtefactError after too many failures in a row.
        """
        if trainer.global_step == self._saved_step:
            return
        self._check_failures()  # of the save before, which may have been asynchronous
        self._saved_step = trainer.global_step
        self._clock_since = time.monotonic()
        self._is_finished = False
        trainer.save_checkpoint(path_of(self.folder, trainer.global_step))
        if not self.policy.asynchronous:
            self._check_failures()

    def save_and_wait(self, trainer: L.Trainer) -> None:
        """Save, and wait until the checkpoint is on disk.

        Raises ArtefactError when it is not: then the run must not report that it saved.
        """
        self.save(trainer)
        self.writer.finish()
        self._finish_save()
        if reason := distributed.from_first(self.writer.failure):
            raise ArtefactError(str(reason))

    def on_fit_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Finish the file that is being written."""
        self.writer.finish()
        self._finish_save()

    def on_exception(
        self, trainer: L.Trainer, module: L.LightningModule, exception: BaseException
    ) -> None:
        """Finish the file that is being written, whatever happened."""
        self.writer.finish()
        self._finish_save()

    def on_save_checkpoint(
        self, trainer: L.Trainer, module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Replace Lightning's loop counters, which the step number makes superfluous, by the
        description of the run.
        """
        checkpoint.pop("loops", None)
        checkpoint["about"] = self.about

    def on_load_checkpoint(
        self, trainer: L.Trainer, module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Rebuild Lightning's loop counters: `step` updates done, nothing begun."""
        step = int(checkpoint["global_step"])
        self._saved_step = step
        state = trainer.fit_loop.state_dict()
        batches = step * trainer.accumulate_grad_batches
        progress = ("ready", "started", "processed", "completed")
        state["epoch_loop.batch_progress"]["total"] = dict.fromkeys(progress, batches)
        optimization = state["epoch_loop.automatic_optimization.optim_progress"]
        updates = optimization["optimizer"]["step"]["total"]
        updates["ready"] = step
        updates["completed"] = step
        checkpoint["loops"] = {"fit_loop": state}

    def _is_better(self, name: str, value: float, higher_is_better: bool) -> bool:
        if self._best.get("metric") != name:
            return True
        # Of equal scores the later: a word error rate of 1 says nothing about the first steps.
        if higher_is_better:
            return value >= float(self._best["value"])
        return value <= float(self._best["value"])

    def _finish_save(self) -> None:
        """Once, after a file was written or failed: prune, or warn."""
        if self._is_finished:
            return
        self._is_finished = True
        if distributed.rank() > 0:
            return
        if self.writer.failure is None:
            self._failures = 0
            self._prune()
            return
        self._failures += 1
        logger.warning(
            "%s; training goes on (%d of at most %d in a row)",
            self.writer.failure,
            self._failures,
            self.policy.max_failures,
        )

    def _check_failures(self) -> None:
        """End all ranks when the first one failed to write too often. A collective."""
        self.writer.finish()
        self._finish_save()
        if distributed.from_first(self._failures) > self.policy.max_failures:
            raise ArtefactError(
                f"{self.folder}: more than {self.policy.max_failures} checkpoints in a row could "
                f"not be written ({self.writer.failure}); the last one that could is intact. Free "
                "some space; the same command resumes"
            )

    def _prune(self) -> None:
        """Remove all checkpoints but the newest, the regular and the best ones."""
        files = checkpoints(self.folder)
        newest = set(files[-self.policy.keep :])
        for path in files:
            step = step_of(path)
            if (
                path not in newest
                and not self.policy.stays(step)
                and step != self._best.get("step")
            ):
                self.writer.remove_checkpoint(path)


def remove_later(folder: Path, step: int) -> None:
    """Remove the checkpoints of later steps, and the note of the best one if it is one of them."""
    if (read_json(folder / BEST) or {}).get("step", 0) > step:
        (folder / BEST).unlink()
    for path in checkpoints(folder):
        if step_of(path) > step:
            VerifiedCheckpointIO().remove_checkpoint(path)


def snapshot(content: Any) -> Any:
    """A deep copy of nested containers, with the tensors in CPU memory."""
    if isinstance(content, torch.Tensor):
        return content.detach().to("cpu", copy=True)
    if isinstance(content, dict):
        return {key: snapshot(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return type(content)(snapshot(value) for value in content)
    return content
