"""Parallel work on threads, each of which lets torch use one thread.

An item or chunk is computed by one thread, so its numbers do not depend on the number of threads.
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

ChunkFunction = Callable[[int, int, NDArray[np.float32]], None]
"""(start, stop, frames) of a chunk, with positions counted in the rank's own frames."""
Item = TypeVar("Item")
Result = TypeVar("Result")


def for_each_chunk(shard: RankFrames, function: ChunkFunction, advance: Callable[[], None]) -> None:
    """Calls `function(start, stop, frames)` once for every chunk of a rank's frames, in no
    particular order, from as many threads as torch uses; and `advance` after each, from one thread
    at a time.

    At most one chunk per thread is in memory.
    """
    chunks = iter(shard.chunks())
    lock = threading.Lock()

    def work_until_done() -> None:
        while True:
            with lock:
                chunk = next(chunks, None)
            if chunk is None:
                return
            start, stop = chunk
            # torch requires writable arrays: a read-only memory map is copied here.
            frames = np.require(shard.frames[start:stop], np.float32, ["C_CONTIGUOUS", "WRITEABLE"])
            function(start, stop, frames)
            with lock:
                advance()

    parallel_map(lambda _: work_until_done(), range(torch.get_num_threads()))


def parallel_map(function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """`[function(item) for item in items]` on as many threads as torch uses."""
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
