"""Failures in one line: out of memory, a dead worker of the loader, a lost rank."""

from __future__ import annotations

import multiprocessing.process
import os
import re
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import lightning as L
import torch

from hubert_pretrain import distributed
from hubert_pretrain.errors import HubertPretrainError, Preempted
from hubert_pretrain.files import human_bytes
from hubert_pretrain.frames import seconds
from hubert_pretrain.training.limits import SHM
from hubert_pretrain.training.resilience.preemption import Preemption

_Callback = TypeVar("_Callback", bound=L.Callback)

ROLL_CALL_SECONDS = 10.0
"""Duration of the roll call after which a rank that did not answer is reported as gone."""
WATCH_SECONDS = 0.5
"""Between two looks at the processes of the other ranks."""
_LOST = re.compile(r"gloo|nccl|connection|peer|socket|store|timed? ?out|broken pipe", re.IGNORECASE)
_FULL = re.compile(r"unable to allocate shared memory|unable to (mmap|resize|write)|Bus error")
_WORKER = re.compile(r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\)")


class BatchShape(L.Callback):
    """Records the shape of the last forward pass."""

    def __init__(self) -> None:
        self.shape: tuple[int, ...] = ()
        self.micro_batches = 1
        """Micro-batches in it."""

    def on_train_batch_start(
        self, trainer: L.Trainer, module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Record the micro-batch that is about to be computed."""
        self.record(batch)

    def on_validation_batch_start(
        self,
        trainer: L.Trainer,
        module: L.LightningModule,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Record the micro-batch that is about to be computed."""
        self.record(batch)

    def record(self, batch: Any) -> None:
        """Record (B, S) of a batch with a "waveform"."""
        if isinstance(batch, dict) and "waveform" in batch:
            self.shape = tuple(batch["waveform"].shape)
            self.micro_batches = batch.get("micro_batches", 1)


@contextmanager
def explain_failures(trainer: L.Trainer) -> Iterator[None]:
    """Turn failures that a user can fix into a HubertPretrainError of one line."""
    try:
        yield
    except SystemExit as error:
        # Lightning makes exit code 1 of an interrupt.
        if isinstance(error.__context__, KeyboardInterrupt):
            raise error.__context__ from None
        raise
    except torch.OutOfMemoryError as error:
        raise HubertPretrainError(out_of_memory(trainer, error)) from error
    except (RuntimeError, ConnectionError, EOFError) as error:
        known = _full_shared_memory(error) or _taken_port(error)
        if known is not None:
            raise HubertPretrainError(known) from error
        worker = _dead_worker(error)
        if worker is not None:
            raise HubertPretrainError(worker) from error
        missing = missing_ranks() if _LOST.search(str(error)) else []
        if missing:
            preemption = _callback(trainer, Preemption)
            if preemption is not None and preemption.left_at_start(trainer):
                raise Preempted(
                    f"left before step {trainer.global_step + 1} ({preemption.request.reason}); "
                    "the same command resumes it"
                ) from error
            raise HubertPretrainError(
                f"rank {', '.join(map(str, missing))} is gone (killed, or its machine is), noticed "
                f"at step {trainer.global_step}; the same command resumes from the last checkpoint"
            ) from error
        raise


def out_of_memory(trainer: L.Trainer, error: BaseException) -> str:
    """The shape that did not fit into memory, and how to halve it as advice."""
    last = _callback(trainer, BatchShape)
    where = f"out of memory at step {trainer.global_step + 1}"
    # "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of ..."
    first_line = ". ".join(str(error).split(". ")[:3]).strip().rstrip(".")
    if last is None or len(last.shape) != 2:
        return f"{where} ({first_line}); halve micro_batch_seconds"
    rows, samples = last.shape
    audio = rows * seconds(samples)
    same_run = "trainer.gradient_checkpointing=true"
    other_run = ""
    if last.micro_batches > 1:
        same_run = f"trainer.fuse={last.micro_batches // 2}, or {same_run}"
    else:
        other_run = (
            f". micro_batch_seconds={audio / 2:.4g} (any that divides batch_seconds) needs half as "
            "much, but is another run (redo=true)"
        )
    return (
        f"{where} in a forward pass of {rows} x {samples} samples ({audio:.1f} s of audio): "
        f"{first_line}. Try {same_run}: the same command with it resumes{other_run}"
    )


def watch_ranks(launcher: Any) -> None:
    """End this process, rank 0, when a rank that Lightning started ends before all ranks are a
    group: rank 0 would wait for it as long as for a slow one. Afterwards a lost rank is noticed by
    the next exchange (`explain_failures`).

    In place of Lightning's own observer, which kills rank 0 without a word.
    """
    children = list(getattr(launcher, "procs", ()))
    if children:
        launcher.procs.clear()
        threading.Thread(target=_watch, args=(children,), name="ranks", daemon=True).start()


def _watch(children: Sequence[subprocess.Popen[bytes]]) -> None:
    import torch.distributed as dist

    while not dist.is_initialized():
        for rank, child in enumerate(children, start=1):
            if code := child.poll():
                how = f"exit code {code}, its message is above"
                if code < 0:
                    how = f"killed by {signal.Signals(-code).name}"
                message = (
                    f"error: rank {rank} ended before the first step ({how}); the same command "
                    "begins again\n"
                )
                os.write(2, message.encode())
                os._exit(1)
        time.sleep(WATCH_SECONDS)


def dead_children() -> list[int]:
    """Ids of child processes of multiprocessing that failed or were killed."""
    children: Any = getattr(multiprocessing.process, "_children", ())
    return sorted(child.pid for child in children if child.exitcode)


def missing_ranks() -> list[int]:
    """Ranks that do not answer a roll call; none in a single process, or when all are there."""
    if distributed.world_size() == 1:
        return []
    import torch.distributed as dist

    rank = dist.get_rank()
    missing = set(range(dist.get_world_size()))
    try:
        store = dist.distributed_c10d._get_default_store()
        store.set(f"here/{rank}", "yes")
        end = time.monotonic() + ROLL_CALL_SECONDS
        while missing and time.monotonic() < end:
            missing = {other for other in missing if not store.check([f"here/{other}"])}
            time.sleep(0.1)
    except RuntimeError:
        return [0]  # the first rank runs the store
    return sorted(missing)


def _callback(trainer: L.Trainer, kind: type[_Callback]) -> _Callback | None:
    callbacks: list[L.Callback] = trainer.callbacks  # type: ignore[attr-defined]
    return next((each for each in callbacks if isinstance(each, kind)), None)


def _full_shared_memory(error: Exception) -> str | None:
    """A message about /dev/shm, which holds the batches of the loader's workers; None when the
    error has another cause.
    """
    if not _FULL.search(str(error)):
        return None
    size = f" ({human_bytes(shutil.disk_usage(SHM).total)})" if SHM.is_dir() else ""
    return (
        f"{SHM}{size} is full: the workers of the loader hand over their batches in it; start the "
        "container with --shm-size=8g or --ipc=host, or set trainer.loader_workers=0; the same "
        "command resumes"
    )


def _taken_port(error: Exception) -> str | None:
    """A message about the port at which ranks meet; None when the error has another cause."""
    if "EADDRINUSE" not in str(error):
        return None
    return (
        f"MASTER_PORT={os.environ.get('MASTER_PORT')} is in use on this machine; unset it, or "
        "choose another port"
    )


def _dead_worker(error: Exception) -> str | None:
    """A message about a worker of the loader that died; None when the error has another cause.

    It appears as torch's own RuntimeError, or as a broken pipe while its results were read.
    """
    reported = error if isinstance(error, RuntimeError) else _wait_for_torch(error)
    named = _WORKER.search(str(reported))
    if named is None and isinstance(error, RuntimeError):
        return None
    processes = named[1] if named else ", ".join(map(str, dead_children())) or "?"
    text = " ".join((str(reported) or repr(reported)).split()).rstrip(". ")
    return (
        f"a loader's worker (process {processes}) died: {text}. When nobody killed it, memory ran "
        "out: use fewer trainer.loader_workers. The same command resumes from the last checkpoint"
    )


def _wait_for_torch(error: Exception) -> Exception:
    """torch's report of a dead worker, if it arrives within a second; else `error`.

    Its signal handler raises wherever the process is: here it is caught.
    """
    try:
        time.sleep(1.0)
    except RuntimeError as reported:
        return reported
    return error
