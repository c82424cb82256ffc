"""Chunks of frames on all cores: each thread takes the next chunk and computes it with one thread of torch."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray

from hubert_pretrain.clustering.source import Shard

Work = Callable[[int, int, NDArray[np.float32]], None]


def over_chunks(shard: Shard, work: Work) -> None:
    """Calls `work(start, stop, frames)` once for every chunk of a shard, from as many threads as torch uses, in no certain order.

    A chunk is computed by one thread, so its numbers do not depend on how many there are. At most one chunk per thread is in memory.
    """
    threads = torch.get_num_threads()
    waiting, lock = iter(shard.chunks()), threading.Lock()

    def serve() -> None:
        while True:
            with lock:
                chunk = next(waiting, None)
            if chunk is None:
                return
            # Of a read-only memory map this is a copy: torch wants arrays that could be written.
            work(*chunk, np.require(shard.frames[chunk[0] : chunk[1]], np.float32, ["C_CONTIGUOUS", "WRITEABLE"]))

    torch.set_num_threads(1)
    try:
        if threads == 1:
            serve()
            return
        with ThreadPoolExecutor(threads, thread_name_prefix="k-means") as pool:
            for future in [pool.submit(serve) for _ in range(threads)]:
                future.result()
    finally:
        torch.set_num_threads(threads)
