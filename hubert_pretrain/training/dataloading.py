"""Stateless data loading: the sampler maps a step to micro-batch indices, so resuming only needs
the step.
"""

from __future__ import annotations

import multiprocessing
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.util import Finalize
from typing import Any

import torch
from lightning.fabric.utilities.apply_func import move_data_to_device
from lightning_utilities.core.apply_func import apply_to_collection
from torch.utils.data import DataLoader, Dataset, Sampler, default_convert, get_worker_info

from hubert_pretrain.distributed import share
from hubert_pretrain.training.limits import READ_AHEAD
from hubert_pretrain.training.progress import Stopwatch
from hubert_pretrain.training.resilience.preemption import ignore_in_worker

FIRST_AT_EXIT = 100
"""Priority of a finaliser of multiprocessing; those with a higher number run earlier."""


class ResumableSampler(Sampler[int]):
    """Indices of this rank's micro-batches, from the first of the step that training has reached to
    the last: of each step a contiguous part, in which micro-batches of one shape stay together.

    There is no length on purpose, so that Lightning sees one endless epoch and does not count
    batches that a resumed run skips.
    """

    def __init__(
        self,
        reached: Callable[[], int],
        *,
        steps: int,
        micro_batches: int,
        rank: int,
        world_size: int,
        fuse: int = 1,
    ) -> None:
        """
        Args:
            reached: returns the number of updates done. Called when iteration starts: after a
                checkpoint was loaded, it is that checkpoint's step.
            steps: of the training.
            micro_batches: of a step, over all ranks.
            fuse: micro-batches of one forward pass; only the index of the first is delivered.
        """
        self.reached = reached
        self.steps = steps
        self.micro_batches = micro_batches
        self.rank = rank
        self.world_size = world_size
        self.fuse = fuse

    def __iter__(self) -> Iterator[int]:
        mine = share(self.micro_batches, self.rank, self.world_size)
        for step in range(self.reached(), self.steps):
            first = step * self.micro_batches
            yield from range(first + mine.start, first + mine.stop, self.fuse)


def equal_share(count: int, rank: int, world_size: int) -> range:
    """A rank's share of `count` batches to validate on, as long as that of every other rank;
    indices from `count` on are fillers.

    A rank with fewer batches would leave the validation earlier, or skip it, while others wait for
    it in a collective.
    """
    each = -(-count // world_size)
    return range(rank * each, (rank + 1) * each)


def loader(dataset: Dataset[Any], indices: Iterable[int], *, workers: int) -> DataLoader[Any]:
    """Items of `dataset`, each of them already a batch, in the order of `indices`.

    Workers only read ahead (0: in this process).
    """
    if workers:
        Finalize(None, _end_workers, exitpriority=FIRST_AT_EXIT)
    return DataLoader(
        dataset,
        batch_size=None,
        sampler=indices,
        num_workers=workers,
        pin_memory=torch.cuda.is_available(),
        prefetch_factor=READ_AHEAD if workers else None,
        worker_init_fn=ignore_in_worker,
        collate_fn=hand_over,
    )


def hand_over(item: Any) -> Any:
    """The tensors of an item, in a worker in shared memory.

    torch would share them in a thread of the worker, where an error (a full /dev/shm) is printed
    and the batch is lost: the training would wait for it for ever. Here it is raised.
    """
    batch = default_convert(item)
    if get_worker_info() is not None:
        batch = apply_to_collection(batch, torch.Tensor, torch.Tensor.share_memory_)
    return batch


def _end_workers() -> None:
    """Kill workers that still run at exit: after an error their loader may still be referenced by
    the traceback.

    multiprocessing would send them SIGTERM, which they ignore because a scheduler sends it too
    (`ignore_in_worker`), and wait for ever.
    """
    if threading.current_thread() is threading.main_thread():
        # torch's handler raises when a worker is killed.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for process in multiprocessing.active_children():
        if process.daemon:
            process.kill()
            process.join()


class Timed:
    """The batches of a loader; `waiting` runs while the next one is waited for, and at no other
    time: not while the training computes, logs, validates or saves.
    """

    def __init__(self, batches: Iterable[Any], waiting: Stopwatch) -> None:
        self.batches = batches
        self.waiting = waiting

    def __iter__(self) -> Iterator[Any]:
        batches = iter(self.batches)
        while True:
            self.waiting.start()
            try:
                batch = next(batches)
            except StopIteration:
                return
            finally:
                self.waiting.stop()
            yield batch


def to_device(device: torch.device, batches: Iterable[Any]) -> Iterable[Any]:
    """The batches of a loader on their device: through a `CudaPrefetcher` on a GPU, elsewhere as
    they are.
    """
    return CudaPrefetcher(batches, device) if device.type == "cuda" else batches


class CudaPrefetcher:
    """Batches (flat dicts) on a GPU, copied on a separate stream while the GPU computes with the
    batch before.

    Lightning would copy on the stream that computes, so the GPU would be idle meanwhile: 87.5 s of
    audio are 5.6 MB, some .2 ms of the 10 ms that a step of Base takes at 40 % of an H100. Needs
    batches in pinned memory, as `loader` makes them: copies of other memory are synchronous.
    """

    def __init__(self, batches: Iterable[Any], device: torch.device) -> None:
        self.batches = batches
        self.device = device

    def __iter__(self) -> Iterator[Any]:
        copying = torch.cuda.Stream(self.device)
        for batch in self.batches:
            with torch.cuda.stream(copying):
                copied = move_data_to_device(batch, self.device)
            computing = torch.cuda.current_stream(self.device)
            computing.wait_stream(copying)
            for value in copied.values():
                if isinstance(value, torch.Tensor):
                    # Its memory may be reused only when that stream is done with it.
                    value.record_stream(computing)
            yield copied
