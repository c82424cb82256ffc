"""A loader without a state: the sampler says what comes, so resuming is asking for another number."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from hubert_pretrain.training.preemption import ignore_in_worker


class FromStep(Sampler[int]):
    """Numbers of this rank's micro-batches, from the first of the step that training has reached to the last.

    `reached()` is asked when iteration starts: after a checkpoint was loaded, it is that checkpoint's step. There is no length on
    purpose, so that Lightning sees one endless epoch and does not count batches that a resumed run skips.
    """

    def __init__(self, reached: Callable[[], int], *, steps: int, micro_batches: int, rank: int, world_size: int) -> None:
        self.reached, self.steps, self.micro_batches = reached, steps, micro_batches
        self.rank, self.world_size = rank, world_size

    def __iter__(self) -> Iterator[int]:
        first, last = self.reached() * self.micro_batches, self.steps * self.micro_batches
        return iter(range(first + self.rank, last, self.world_size))


def even_share(count: int, rank: int, world_size: int) -> range:
    """A rank's stretch of `count` batches to validate on, as long as that of every other rank: numbers from `count` on are filling.

    A rank with fewer would leave the validation earlier, or skip it, while others wait for it to sum up or to gather weights.
    """
    each = -(-count // world_size)
    return range(rank * each, (rank + 1) * each)


def loader(dataset: Dataset[Any], numbers: Iterable[int], *, workers: int) -> DataLoader[Any]:
    """Items of `dataset` in the order of `numbers`, each of them already a batch. Workers only work ahead (0: in this process)."""
    return DataLoader(
        dataset,
        batch_size=None,
        sampler=numbers,
        num_workers=workers,
        pin_memory=torch.cuda.is_available(),
        prefetch_factor=4 if workers else None,
        worker_init_fn=ignore_in_worker,
    )
