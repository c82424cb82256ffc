"""`trainer.profile`: a trace of some steps, and what lay in a GPU's memory when it was full."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch.autograd.profiler_util import FunctionEventAvg
from torch.profiler import ProfilerActivity, profile

from hubert_pretrain import distributed
from hubert_pretrain.files import write_json, write_text

ROWS = 40
"""Operations in the table."""
TABLE = "profile.txt"
FIGURES = "profile.json"
MEMORY = "memory.pickle"


class Profile(L.Callback):
    """Profiles the steps `first` to `last` of a training, each with all its micro-batches.

    `folder` gets `trace.steps-20-23.rank-0.json.gz`, which Perfetto and chrome://tracing open, and
    `profile.txt`, the operations that took longest; `profile.json` has the same for programs. On a
    GPU each allocation is recorded too, and
    when memory is full `memory.pickle` is written for pytorch.org/memory_viz. The first steps of a
    run compile and allocate: begin some steps later.
    """

    def __init__(self, steps: Sequence[int], folder: Path) -> None:
        self.first, self.last = steps
        self.folder = folder
        self._name = f"{self.first}-{self.last}"
        self._profiler: profile | None = None
        self._began = 0.0

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Record allocations, where they can be recorded."""
        if torch.cuda.is_available():
            torch.cuda.memory._record_memory_history(max_entries=100_000)

    def on_train_batch_start(
        self, trainer: L.Trainer, module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Begin before the first micro-batch of step `first`."""
        step = trainer.global_step + 1
        if self._profiler is None and self.first <= step <= self.last:
            activities = [ProfilerActivity.CPU]
            if torch.cuda.is_available():
                activities.append(ProfilerActivity.CUDA)
            self._profiler = profile(activities=activities, record_shapes=True)
            _wait()
            self._profiler.start()
            self._began = time.perf_counter()

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """End after the update of step `last`."""
        if trainer.global_step >= self.last:
            self._write()

    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Write what there is of a training that ended before."""
        self._write()

    def on_exception(
        self, trainer: L.Trainer, module: L.LightningModule, exception: BaseException
    ) -> None:
        """Write the memory of a GPU that is full, and the steps so far."""
        if isinstance(exception, torch.OutOfMemoryError) and torch.cuda.is_available():
            self.folder.mkdir(parents=True, exist_ok=True)
            torch.cuda.memory._dump_snapshot(str(self.folder / MEMORY))
        self._write()

    def _write(self) -> None:
        if self._profiler is None:
            return
        profiler = self._profiler
        self._profiler = None
        self.first = self.last + 1
        _wait()
        seconds = time.perf_counter() - self._began
        profiler.stop()
        self.folder.mkdir(parents=True, exist_ok=True)
        name = f"trace.steps-{self._name}.rank-{distributed.rank()}.json.gz"
        profiler.export_chrome_trace(str(self.folder / name))
        if distributed.rank() == 0:
            order = "self_cuda_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
            table = profiler.key_averages().table(sort_by=order, row_limit=ROWS)
            write_text(self.folder / TABLE, str(table))
            write_json(self.folder / FIGURES, figures(profiler, seconds))


def figures(profiler: profile, seconds: float) -> dict[str, Any]:
    """The kernels of a GPU, or the operations of a CPU, that ran in so many seconds: their number,
    the share of the time in which they ran, and the longest.
    """
    found = [(each, _microseconds(each)) for each in profiler.key_averages()]
    found = sorted((pair for pair in found if pair[1] > 0), key=lambda pair: -pair[1])
    total = sum(spent for _, spent in found)
    return {
        "seconds": seconds,
        "busy": total / 1e6 / seconds,
        "calls": sum(each.count for each, _ in found),
        "kernels": [
            {
                "name": each.key,
                "calls": each.count,
                "milliseconds": spent / 1e3,
                "share": spent / total,
            }
            for each, spent in found[:ROWS]
        ],
    }


def _microseconds(operation: FunctionEventAvg) -> float:
    """Its time, without those of the operations that it calls."""
    if torch.cuda.is_available():
        # An operation of the host has the time of its kernels too, which are rows of their own.
        on_device = operation.device_type == torch.autograd.DeviceType.CUDA
        return float(operation.self_device_time_total) if on_device else 0.0
    return float(operation.self_cpu_time_total)


def _wait() -> None:
    """Wait until the GPU has done its work."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
