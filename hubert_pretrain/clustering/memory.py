"""The memory budget of clustering (`clustering.max_memory_gb`), and arrays that keep to it."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import mmap
import os
import resource
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hubert_pretrain.clustering.frame_source import CHUNK_FRAMES, FrameFile, Frames
from hubert_pretrain.errors import ConfigError

WORKING_BYTES = 250_000_000
"""Memory for chunks, their scores and products, and the inner products of k-means++."""
MAPPED = "mapped.scratch"
"""Name of the scratch file for frames that were passed through a function."""
_DROP_SECONDS = 0.01
"""Time between two looks at the memory of the process."""


def resident_bytes() -> int:
    """Memory of this process (on systems without /proc: its maximum so far)."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return peak_bytes()


def give_back() -> None:
    """Return freed memory to the system. The C library keeps much of what earlier stages of this
    process freed, and it would count as used: a series of iterations would reach any budget.
    """
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # only glibc has it
        ctypes.CDLL(None).malloc_trim(0)


def peak_bytes() -> int:
    """The largest memory of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def sample_bytes(budget: int) -> int:
    """Share of a memory budget for the sample from which the initial centroids are computed.

    It depends on the budget only, because the result depends on it.
    """
    return budget // 4


def free_bytes(budget: int) -> int:
    """Rest of a budget for frames, after the memory in use, the sample and working memory;
    negative when it is too small for these. Frames that do not fit are stored on disk; the result
    is the same.
    """
    give_back()
    return budget - resident_bytes() - sample_bytes(budget) - WORKING_BYTES


@dataclass(frozen=True)
class EngineMemory:
    """Memory that an engine needs beside the frames and the working memory."""

    row_bytes: int = 0
    """For every frame."""

    def frame_bytes(self, budget: int, num_frames: int, dim: int) -> int:
        """Rest of a budget for frames in memory: more than these frames need, or 0.

        Raises ConfigError when the budget is too small for this engine even without them.
        """
        free = free_bytes(budget) - num_frames * self.row_bytes
        size = 4 * num_frames * dim
        if size <= free:
            return free
        if free >= 0:
            return 0
        lacking = -free
        enough = (budget + lacking * 4 / 3) / 1e9  # a quarter of what is added is for the sample
        raise ConfigError(
            f"clustering.max_memory_gb={budget / 1e9:g}: the process holds "
            f"{resident_bytes() / 1e9:.2f} GB before it has any frames, and {num_frames} frames "
            f"need {(budget + lacking - resident_bytes()) / 1e9:.2f} GB beside those; set it to "
            f"at least {enough + 0.005:.2f}"
            + (", or use clustering.engine=torch" if self.row_bytes else "")
        )


@contextlib.contextmanager
def within_budget(
    frames: Frames, budget: int, folder: Path | None, memory: EngineMemory
) -> Iterator[NDArray[np.float32]]:
    """Frames (N, D) as one array, for libraries that need one, in a process of at most `budget`
    bytes (0: no limit).

    An array stays as it is. A file is mapped, and its pages, which count as memory of the process
    once they are read, are given back when the process reaches the budget. (Frames read at random
    map large parts of the file for moments; the system takes such pages back when it needs them.)
    Other frames are computed into an array, or into a scratch file in `folder` when they do not
    fit.

    Args:
        frames: the frames.
        budget: see above.
        folder: for the scratch file; None: there is none.
        memory: of the engine that reads the array.
    """
    if isinstance(frames, np.ndarray):
        yield frames
        return
    if isinstance(frames, FrameFile):
        with _mapped(frames, budget) as array:
            yield array
        return
    num_frames, dim = frames.shape
    free = free_bytes(budget) - num_frames * memory.row_bytes
    if not budget or folder is None or 4 * num_frames * dim <= free:
        array = np.empty((num_frames, dim), dtype=np.float32)
        for start in range(0, num_frames, CHUNK_FRAMES):
            array[start : start + CHUNK_FRAMES] = frames[start : start + CHUNK_FRAMES]
        yield array
        return
    path = folder / MAPPED
    try:
        file = FrameFile(path, (num_frames, dim))
        for start in range(0, num_frames, CHUNK_FRAMES):
            file.write(start, frames[start : start + CHUNK_FRAMES])
        with _mapped(file, budget) as array:
            yield array
    finally:
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def _mapped(file: FrameFile, limit: int) -> Iterator[NDArray[np.float32]]:
    """The file as an array, whose pages are given back when the process holds almost `limit`
    bytes; 0: never.
    """
    with open(file.path, "rb") as opened:
        pages = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
    stop = threading.Event()

    def drop_pages() -> None:
        # Half of the working memory is left for what is read until the next look.
        while not stop.wait(_DROP_SECONDS):
            if resident_bytes() > limit - WORKING_BYTES // 2:
                pages.madvise(mmap.MADV_DONTNEED)

    dropper = threading.Thread(target=drop_pages, name="drop pages", daemon=True)
    if limit and hasattr(mmap, "MADV_DONTNEED"):
        dropper.start()
    try:
        yield np.frombuffer(pages, dtype=np.float32).reshape(file.shape)
    finally:
        stop.set()
        if dropper.is_alive():
            dropper.join()
