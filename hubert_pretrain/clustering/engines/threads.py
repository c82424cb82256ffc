"""Work on all cores, each item or chunk of frames in one thread that computes it with one thread of
torch.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from hubert_pretrain.clustering.frame_source import RankFrames

Work = Callable[[int, int, NDArray[np.float32]], None]
Item = TypeVar("Item")
Result = TypeVar("Result")


def over_chunks(shard: RankFrames, work: Work) -> None:
    """Calls `work(start, stop, frames)` once for every chunk of a shard, from as many threads as
    torch uses, in no certain order.

    A chunk is computed by one thread, so its numbers do not depend on how many there are. At most
    one chunk per thread is in memory.
    """
    threads = torch.get_num_threads()
    waiting = iter(shard.chunks())
    lock = threading.Lock()

    def serve() -> None:
        while True:
            with lock:
                chunk = next(waiting, None)
            if chunk is None:
                return
            # Of a read-only memory map this is a copy: torch wants arrays that could be written.
            work(
                *chunk,
                np.require(
                    shard.frames[chunk[0] : chunk[1]], np.float32, ["C_CONTIGUOUS", "WRITEABLE"]
                ),
            )

    at_once(lambda _: serve(), range(threads))


def at_once(function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """`function` of every item, as many at a time as torch uses threads, each with one thread of
    it: any number of them gives the same.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        if min(threads, len(items)) <= 1:
            return [function(item) for item in items]
        with ThreadPoolExecutor(
            threads, initializer=torch.set_num_threads, initargs=(1,), thread_name_prefix="k-means"
        ) as pool:
            return list(pool.map(function, items))
    finally:
        torch.set_num_threads(threads)
