"""Atomic, verified checkpoints: a kill, a full disk or a bad sector does not destroy the last good
one.

Lightning's own writer goes through `$TMPDIR`, which is often another file system than the
checkpoint's: its "atomic" rename is then a copy, and a kill or a full disk in the middle of it
destroys the previous good file. Here the new file is written beside its final place, synced,
renamed, and described by a sha256 sidecar; older files are removed only when the new one has been
read back and verified.
"""

from __future__ import annotations

import errno
import logging
import re
import shutil
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import CheckpointIO

from hubert_pretrain.errors import ArtefactError
from hubert_pretrain.files import HashedFile, human_bytes, replacing, sha256, write_text
from hubert_pretrain.training.resilience import sharded_checkpoint

logger = logging.getLogger(__name__)

FOLDER = "checkpoints"
_NAME = re.compile(r"step=(\d+)\.ckpt")
_FAILED_WRITE = re.compile("PytorchStreamWriter failed|unexpected pos")


class VerifiedCheckpointIO(CheckpointIO):
    """Lightning plugin: atomic and checksummed writing, `weights_only` reading (a checkpoint is
    data: opening one runs no code).
    """

    group: Any = None
    """Process group of the ranks that write a sharded checkpoint together
    (sharded_checkpoint.py).
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        """Write the file and its `.sha256` sidecar, both synced.

        On failure the temporary file is removed, and ArtefactError is raised.
        """
        path = Path(path)
        if sharded_checkpoint.is_sharded(checkpoint):
            sharded_checkpoint.save(checkpoint, path, self.group)
            return
        try:
            with replacing(path) as temporary:
                _check_space(checkpoint, path)
                with open(temporary, "wb") as file:
                    hashed = HashedFile(file)
                    torch.save(checkpoint, hashed)  # type: ignore[arg-type]
        except (OSError, RuntimeError) as error:
            # torch's zip writer turns a write that failed into "PytorchStreamWriter failed" or
            # "unexpected pos".
            if not isinstance(error, OSError) and not _FAILED_WRITE.search(str(error)):
                raise
            raise ArtefactError(
                f"{path}: the checkpoint could not be written ({error}); the previous one is intact"
            ) from error
        try:
            write_text(_sidecar(path), hashed.sha256 + "\n")
        except OSError as error:
            raise ArtefactError(
                f"{path}: its checksum could not be written ({error}); the previous checkpoint is "
                "intact"
            ) from error

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a checkpoint onto the CPU, always with `weights_only=True`.

        Raises ArtefactError when it is not readable.
        """
        if Path(path).is_dir():
            return sharded_checkpoint.load_whole(Path(path))
        try:
            return dict(torch.load(path, map_location=map_location or "cpu", weights_only=True))
        except Exception as error:
            raise ArtefactError(
                f"{path}: not a readable checkpoint ({error}); delete it to resume from the one "
                "before"
            ) from error

    def remove_checkpoint(self, path: str | Path) -> None:
        """Remove a checkpoint: the sidecar first, so that a half-removed one no longer verifies."""
        if Path(path).is_dir():
            return sharded_checkpoint.remove(Path(path))
        _sidecar(Path(path)).unlink(missing_ok=True)
        Path(path).unlink(missing_ok=True)


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a folder, oldest first, damaged ones included."""
    found = [path for path in folder.glob("step=*.ckpt") if _NAME.fullmatch(path.name)]
    return sorted(found, key=step_of)


def path_of(folder: Path, step: int) -> Path:
    """The checkpoint written after so many updates."""
    return folder / f"step={step:08d}.ckpt"


def step_of(path: Path) -> int:
    """Number of updates done before a checkpoint was written: `step=00001000.ckpt` -> 1000."""
    match = _NAME.fullmatch(path.name)
    if match is None:
        raise ArtefactError(f"{path}: not the name of a checkpoint, which is step=<number>.ckpt")
    return int(match[1])


def newest(folder: Path) -> Path | None:
    """The newest checkpoint that verifies; None when there is none. Warns of those that do not."""
    for path in reversed(checkpoints(folder)):
        if verified(path):
            return path
        logger.warning(
            "%s: does not match its checksum, so it is damaged or truncated; falling back to the "
            "one before",
            path,
        )
    return None


def verified(path: Path) -> bool:
    """True if a checkpoint is byte for byte as it was written."""
    try:
        if path.is_dir():
            listed = sharded_checkpoint.digests(path)
            return listed is not None and all(
                sha256(path / name) == digest for name, digest in listed.items()
            )
        return _sidecar(path).read_text(encoding="utf-8").strip() == sha256(path)
    except OSError:
        return False


def size_of(content: Any) -> int:
    """Bytes of the tensors in nested containers."""
    if isinstance(content, torch.Tensor):
        return content.numel() * content.element_size()
    if isinstance(content, dict):
        return sum(size_of(value) for value in content.values())
    return sum(map(size_of, content)) if isinstance(content, (list, tuple)) else 0


def _check_space(checkpoint: dict[str, Any], path: Path) -> None:
    """Raise OSError for a full disk before the file is written, not after half of it."""
    needed = size_of(checkpoint)
    free = shutil.disk_usage(path.parent).free
    if needed > free:
        raise OSError(
            errno.ENOSPC, f"{human_bytes(needed)} needed, {human_bytes(free)} free on its disk"
        )


def _sidecar(path: Path) -> Path:
    return path.with_name(path.name + ".sha256")
