"""What ended a training, in one line: out of memory, a loader's worker that was killed, a rank that
is gone.
"""

from __future__ import annotations

import multiprocessing.process
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import lightning as L
import torch

from hubert_pretrain import distributed
from hubert_pretrain.errors import HubertPretrainError, Preempted
from hubert_pretrain.frames import seconds

ROLL_CALL_SECONDS = 10.0
"""How long survivors wait for each other before they name who is gone."""
_LOST = re.compile(r"gloo|nccl|connection|peer|socket|store|timed? ?out|broken pipe", re.IGNORECASE)
_WORKER = re.compile(r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\)")


class BatchShape(L.Callback):
    """Remembers the shape of what was computed last."""

    def __init__(self) -> None:
        self.shape: tuple[int, ...] = ()

    def on_train_batch_start(
        self, trainer: L.Trainer, module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """The micro-batch that comes now."""
        self.record(batch)

    def on_validation_batch_start(
        self,
        trainer: L.Trainer,
        module: L.LightningModule,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """The micro-batch that comes now."""
        self.record(batch)

    def record(self, batch: Any) -> None:
        """(B, S) of a dict with a "waveform"."""
        if isinstance(batch, dict) and "waveform" in batch:
            self.shape = tuple(batch["waveform"].shape)


@contextmanager
def explain_failures(trainer: L.Trainer) -> Iterator[None]:
    """Turns the errors that a user can do something about into a HubertPretrainError."""
    try:
        yield
    except Preempted as preempted:
        if (
            distributed.rank() > 0
            and type(trainer.strategy.cluster_environment).__name__ == "LightningEnvironment"
        ):  # type: ignore[attr-defined]
            # Lightning kills the first rank when a process that it started ends with anything but 0
            # before it.
            preempted.exit_code = 0
        raise
    except torch.OutOfMemoryError as error:
        raise HubertPretrainError(out_of_memory(trainer, error)) from error
    except (RuntimeError, ConnectionError, EOFError) as error:
        # A killed worker shows as torch's own message, or as a pipe that broke while something was
        # read from it.
        reported = error if isinstance(error, RuntimeError) else _as_torch_says(error)
        named = _WORKER.search(str(reported))
        if named or not isinstance(error, RuntimeError):
            processes = named[1] if named else ", ".join(map(str, dead_children())) or "?"
            what = " ".join((str(reported) or repr(reported)).split()).rstrip(". ")
            raise HubertPretrainError(
                f"a loader's worker (process {processes}) died: {what}. When nobody "
                "killed it, memory ran out: use fewer trainer.loader_workers. The same command resumes from the last checkpoint"
            ) from error
        if _LOST.search(str(error)) and (gone := missing_ranks()):
            raise HubertPretrainError(
                f"rank {', '.join(map(str, gone))} is gone (killed, or its machine is), noticed at step {trainer.global_step}; "
                "the same command resumes from the last checkpoint"
            ) from error
        raise


def out_of_memory(trainer: L.Trainer, error: BaseException) -> str:
    """Which shape was too much for which memory, and half of it as advice."""
    last = next((each for each in trainer.callbacks if isinstance(each, BatchShape)), None)  # type: ignore[attr-defined]
    where = f"out of memory at step {trainer.global_step + 1}"
    first_line = str(error).split(". ")[0].strip()
    if last is None or len(last.shape) != 2:
        return f"{where} ({first_line}); halve micro_batch_seconds"
    rows, samples = last.shape
    audio = rows * seconds(samples)
    return (
        f"{where} in a micro-batch of {rows} x {samples} samples ({audio:.1f} s of audio): {first_line}. "
        f"Try micro_batch_seconds={audio / 2:.4g} (any that divides batch_seconds: the run stays the same), or "
        "trainer.gradient_checkpointing=true; the same command resumes"
    )


def _as_torch_says(error: Exception) -> Exception:
    """torch learns of a dead worker from the kernel, and raises wherever the process then is:
    better here than in a message.
    """
    try:
        time.sleep(1.0)
    except RuntimeError as reported:
        return reported
    return error


def dead_children() -> list[int]:
    """Processes that this one started through multiprocessing and that did not end well."""
    return sorted(
        child.pid for child in getattr(multiprocessing.process, "_children", ()) if child.exitcode
    )


def missing_ranks() -> list[int]:
    """Which ranks do not answer a roll call; none when there is but one, or all are here."""
    if distributed.world_size() == 1:
        return []
    import torch.distributed as dist

    rank = dist.get_rank()
    world_size = dist.get_world_size()
    try:
        store = dist.distributed_c10d._get_default_store()
        store.set(f"here/{rank}", "yes")
        missing = set(range(world_size))
        end = time.monotonic() + ROLL_CALL_SECONDS
        while missing and time.monotonic() < end:
            missing = {other for other in missing if not store.check([f"here/{other}"])}
            time.sleep(0.1)
    except RuntimeError:
        return [0]  # the first rank keeps the store
    return sorted(missing)
