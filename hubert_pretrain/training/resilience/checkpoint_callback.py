"""When checkpoints are written, in which thread, which of them stay, and what else they say. How
one is written: checkpoint_io.py.
"""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch

from hubert_pretrain import distributed
from hubert_pretrain.errors import ArtefactError
from hubert_pretrain.files import read_json, remove_temporaries, write_json
from hubert_pretrain.training.limits import KEPT
from hubert_pretrain.training.resilience.checkpoint_io import (
    VerifiedCheckpointIO,
    checkpoints,
    step_of,
    verified,
)

logger = logging.getLogger(__name__)

BEST = "best.json"
_HIGHER_IS_BETTER = re.compile("accuracy|pnmi|score|perplexity")


@dataclass(frozen=True, kw_only=True)
class CheckpointPolicy:
    """Which checkpoints there are."""

    every_steps: int
    keep: int = KEPT  # the newest so many stay
    keep_every_steps: int = 0  # and those of steps that are a multiple of this; 0: none
    keep_best: str = (
        ""  # and the best by this value of the valid split, e.g. valid/loss/masked; "": none
    )
    asynchronous: bool = False  # copied to CPU memory, then written while training goes on
    max_failures: int = (
        3  # checkpoints in a row that may fail to be written (a full disk) while training goes on
    )


class CheckpointWriter(VerifiedCheckpointIO):
    """Writes and reads back; a failure is kept for who asks, because other ranks wait meanwhile. At
    most one file is being written.
    """

    def __init__(self, *, asynchronous: bool = False) -> None:
        self.asynchronous = asynchronous
        self.failure: str | None = None
        """Why the last checkpoint that was written is none; None where it is one."""
        self._thread: threading.Thread | None = None

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        """Writes now, or copies the tensors to CPU memory now and writes in a thread."""
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
        """Whether a file is being written."""
        return self._thread is not None and self._thread.is_alive()

    def finish(self) -> None:
        """Waits until nothing is being written."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _write(self, checkpoint: dict[str, Any], path: Path) -> None:
        self.failure = "its writer did not finish"
        try:
            super().save_checkpoint(checkpoint, path)
            intact = distributed.rank() > 0 or verified(
                path
            )  # of a checkpoint of many ranks, the first reads all
            self.failure = (
                None
                if intact
                else f"{path}: reads back differently from what was written; the disk is failing"
            )
        except Exception as error:
            if not self.asynchronous and not isinstance(error, ArtefactError):
                raise
            self.failure = str(error)


class CheckpointCallback(L.Callback):
    """Saves every so many updates and after the last one, prunes, and resumes at the exact step.

    The position of a run is its step number and nothing else (design idea 4), so Lightning's loop
    counters are left out of the file and rebuilt on load. That also frees a resumed run to use
    another number of devices, hence another accumulation.
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
            about: plain containers that say what this run is (recipe, versions, fingerprints); they
            go into each file.
        """
        self.folder = folder
        self.writer = writer
        self.policy = policy
        self.last_step = last_step
        self.about = dict(about or {})
        self._saved = -1
        self._settled = True  # whether the outcome of the last save is known
        self._failures = 0
        self._best: dict[str, Any] = read_json(folder / BEST) or {}

    def on_fit_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Fails now, not an hour later, when the folder cannot be written; sweeps up what killed
        writers left.
        """
        if trainer.is_global_zero:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                (self.folder / ".probe").write_bytes(b"")
                (self.folder / ".probe").unlink()
            except OSError as error:
                raise ArtefactError(
                    f"{self.folder}: checkpoints cannot be written here ({error}); mend the permissions"
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
        """Runs after every micro-batch; acts after the update that reaches a multiple of
        `every_steps`.
        """
        if not self._settled and not self.writer.busy:
            self._settle()
        step = trainer.global_step
        due = step % self.policy.every_steps == 0 or step == self.last_step
        if due and step > 0 and (batch_idx + 1) % trainer.accumulate_grad_batches == 0:
            self.save(trainer)

    def on_validation_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Keeps the weights that the valid split likes best."""
        name = self.policy.keep_best
        if not name or trainer.state.fn != "fit":
            return
        values: dict[str, float] = getattr(module, "validated", {})
        if name not in values:
            known = ", ".join(sorted(values)) or "none"
            raise ArtefactError(
                f"trainer.keep_best={name}: no value of the valid split is called so; there are {known}"
            )
        sign = -1 if _HIGHER_IS_BETTER.search(name) else 1
        if self._best.get("metric") != name or sign * values[name] < sign * self._best["value"]:
            self.save(trainer)
            self._best = {"metric": name, "value": values[name], "step": trainer.global_step}
            if trainer.is_global_zero:
                write_json(self.folder / BEST, self._best)

    def save(self, trainer: L.Trainer) -> None:
        """Saves the step that was reached, once. Every rank must call it. Raises ArtefactError
        after too many failures in a row.
        """
        if trainer.global_step == self._saved:
            return
        self._agree(trainer)
        self._saved = trainer.global_step
        self._settled = False
        trainer.save_checkpoint(self.folder / f"step={trainer.global_step:08d}.ckpt")
        if not self.policy.asynchronous:
            self._settle()
            self._agree(trainer)

    def save_and_wait(self, trainer: L.Trainer) -> None:
        """The same, and on return it is on disk. Raises ArtefactError when it is not: then the run
        must not say that it saved.
        """
        self.save(trainer)
        self.writer.finish()
        self._settle()
        if reason := distributed.from_first(self.writer.failure):
            raise ArtefactError(str(reason))

    def on_fit_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """What is being written is finished."""
        self.writer.finish()
        self._settle()

    def on_exception(
        self, trainer: L.Trainer, module: L.LightningModule, exception: BaseException
    ) -> None:
        """What is being written is finished, whatever happened."""
        self.writer.finish()
        self._settle()

    def on_save_checkpoint(
        self, trainer: L.Trainer, module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """The step number says it all; beside it stands what the run is."""
        checkpoint.pop("loops", None)
        checkpoint["about"] = self.about

    def on_load_checkpoint(
        self, trainer: L.Trainer, module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Sets Lightning's counters to "`step` updates done, nothing begun"."""
        step = self._saved = int(checkpoint["global_step"])
        state = trainer.fit_loop.state_dict()
        batches = step * trainer.accumulate_grad_batches
        state["epoch_loop.batch_progress"]["total"] = dict.fromkeys(
            ("ready", "started", "processed", "completed"), batches
        )
        updates = state["epoch_loop.automatic_optimization.optim_progress"]["optimizer"]["step"][
            "total"
        ]
        updates["ready"] = updates["completed"] = step
        checkpoint["loops"] = {"fit_loop": state}

    def _settle(self) -> None:
        """After a file was written, or was not: warns, or prunes."""
        if self._settled:
            return
        self._settled = True
        if distributed.rank() > 0:
            return
        if self.writer.failure is None:
            self._failures = 0
            self._prune()
        else:
            self._failures += 1
            allowed = self.policy.max_failures
            logger.warning(
                "%s; training goes on (%d of at most %d in a row)",
                self.writer.failure,
                self._failures,
                allowed,
            )

    def _agree(self, trainer: L.Trainer) -> None:
        """All ranks stop when the first one could not write too often."""
        self.writer.finish()
        self._settle()
        if distributed.from_first(self._failures) > self.policy.max_failures:
            raise ArtefactError(
                f"{self.folder}: more than {self.policy.max_failures} checkpoints in a row could not be written ({self.writer.failure}); "
                "the last one that could is intact. Free some space; the same command resumes"
            )

    def _prune(self) -> None:
        files = checkpoints(self.folder)
        kept = set(files[-self.policy.keep :])
        every = self.policy.keep_every_steps
        for old in files:
            step = step_of(old)
            if (
                old not in kept
                and step != self._best.get("step")
                and not (every and step % every == 0)
            ):
                self.writer.remove_checkpoint(old)


def snapshot(content: Any) -> Any:
    """A copy of nested containers whose tensors lie in CPU memory and belong to nobody else."""
    if isinstance(content, torch.Tensor):
        return content.detach().to("cpu", copy=True)
    if isinstance(content, dict):
        return {key: snapshot(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return type(content)(snapshot(value) for value in content)
    return content
