"""Checkpoints that a kill, a full disk or a bad sector cannot take away.

Lightning's own writer goes through `$TMPDIR`, which is often another file system than the checkpoint's: its "atomic" rename is then a copy,
and a kill or a full disk in the middle of it destroys the previous good file. Here the new file is written beside its final place, synced,
renamed, and described by a sha256 sidecar; older files go only when the new one has been read back and verified.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.plugins.io import CheckpointIO

from hubert_pretrain.errors import ArtefactError
from hubert_pretrain.workspace import sync_folder, write_text

logger = logging.getLogger(__name__)

FOLDER = "checkpoints"
_NAME = re.compile(r"step=(\d+)\.ckpt")


class VerifiedCheckpointIO(CheckpointIO):
    """Lightning plugin: atomic and checksummed writing, `weights_only` reading (a checkpoint is data: opening one runs no code)."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Writes the file and its `.sha256` sidecar, both synced. On failure nothing but a temporary file is left, which is removed."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            with open(temporary, "wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            checksum = sha256(temporary)
            os.replace(temporary, path)
        except OSError as error:
            raise ArtefactError(f"{path}: the checkpoint could not be written ({error}); the previous one is intact") from error
        finally:
            temporary.unlink(missing_ok=True)
        sync_folder(path.parent)
        write_text(_sidecar(path), checksum + "\n")

    def load_checkpoint(self, path: str | Path, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Reads a checkpoint onto the CPU, always with `weights_only=True` whatever the caller asks for."""
        try:
            return dict(torch.load(path, map_location=map_location or "cpu", weights_only=True))
        except Exception as error:
            raise ArtefactError(f"{path}: not a readable checkpoint ({error}); delete it to resume from the one before") from error

    def remove_checkpoint(self, path: str | Path) -> None:
        """Removes a checkpoint: the sidecar first, so that a half-removed one no longer verifies."""
        _sidecar(Path(path)).unlink(missing_ok=True)
        Path(path).unlink(missing_ok=True)


class Checkpoints(L.Callback):
    """Saves every `every_steps` updates and after the last one, keeps the newest `keep` verified files, and resumes at the exact step.

    The position of a run is its step number and nothing else (design idea 4), so Lightning's loop counters are left out of the file and
    rebuilt on load. That also frees a resumed run to use another number of devices, hence another accumulation.
    """

    def __init__(self, folder: Path, *, every_steps: int, last_step: int, keep: int = 2) -> None:
        self.folder = folder
        self.every_steps = every_steps
        self.last_step = last_step
        self.keep = keep
        self._saved = -1

    def on_fit_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Fails now, not an hour later, when the folder cannot be written; sweeps up what killed writers left."""
        if trainer.is_global_zero:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                (self.folder / ".probe").write_bytes(b"")
                (self.folder / ".probe").unlink()
            except OSError as error:
                raise ArtefactError(f"{self.folder}: checkpoints cannot be written here ({error}); mend the permissions") from error
            for stale in self.folder.glob(".*.tmp"):
                stale.unlink(missing_ok=True)

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Runs after every micro-batch; acts after the update that reaches a multiple of `every_steps`."""
        step = trainer.global_step
        due = step % self.every_steps == 0 or step == self.last_step
        if due and step > 0 and step != self._saved and (batch_idx + 1) % trainer.accumulate_grad_batches == 0:
            self._saved = step
            trainer.save_checkpoint(self.folder / f"step={step:08d}.ckpt")
            if trainer.is_global_zero:
                self._prune()

    def on_save_checkpoint(self, trainer: L.Trainer, module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """The step number says it all."""
        checkpoint.pop("loops", None)

    def on_load_checkpoint(self, trainer: L.Trainer, module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Sets Lightning's counters to "`step` updates done, nothing begun"."""
        step = self._saved = int(checkpoint["global_step"])
        state = trainer.fit_loop.state_dict()
        batches = step * trainer.accumulate_grad_batches
        state["epoch_loop.batch_progress"]["total"] = dict.fromkeys(("ready", "started", "processed", "completed"), batches)
        updates = state["epoch_loop.automatic_optimization.optim_progress"]["optimizer"]["step"]["total"]
        updates["ready"] = updates["completed"] = step
        checkpoint["loops"] = {"fit_loop": state}

    def _prune(self) -> None:
        files = checkpoints(self.folder)
        if not verified(files[-1]):
            raise ArtefactError(f"{files[-1]}: reads back differently from what was written; the disk is failing. Older ones are kept")
        for old in files[: -self.keep]:
            VerifiedCheckpointIO().remove_checkpoint(old)


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a folder, oldest first, damaged ones included."""
    found = [path for path in folder.glob("step=*.ckpt") if _NAME.fullmatch(path.name)]
    return sorted(found, key=step_of)


def step_of(path: Path) -> int:
    """Updates that were done when a checkpoint was written: `step=00001000.ckpt` -> 1000."""
    match = _NAME.fullmatch(path.name)
    if match is None:
        raise ArtefactError(f"{path}: not the name of a checkpoint, which is step=<number>.ckpt")
    return int(match[1])


def newest(folder: Path) -> Path | None:
    """The newest checkpoint that verifies, None when there is none. Says which ones it passed over and why."""
    for path in reversed(checkpoints(folder)):
        if verified(path):
            return path
        logger.warning("%s: does not match its checksum, so it is damaged or was cut short; falling back to the one before", path)
    return None


def verified(path: Path) -> bool:
    """Whether a checkpoint is byte for byte what was written."""
    try:
        return _sidecar(path).read_text(encoding="utf-8").strip() == sha256(path)
    except OSError:
        return False


def sha256(path: Path) -> str:
    """The sha256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _sidecar(path: Path) -> Path:
    return path.with_name(path.name + ".sha256")
