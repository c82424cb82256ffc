"""Sources of frames for k-means: an array, a file of any size, or a function applied while reading.

Tensor letters: N frames of all ranks, n frames of a range, D width of a frame, d width after a
function.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from hubert_pretrain import distributed
from hubert_pretrain.errors import ArtefactError
from hubert_pretrain.files import disk_room, read_json, write_json

CHUNK_FRAMES = 1 << 13
"""Frames that are read, summed and rounded together. Chunks start at multiples of this number of
the frames of all ranks. So any number of ranks and threads computes the same sums."""


class Frames(Protocol):
    """The part of a NumPy array that k-means uses: reading ranges of rows, from several threads.

    Arrays and memory maps are frames too.
    """

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, D)."""
        ...

    def __getitem__(self, rows: slice, /) -> NDArray[np.float32]:
        """(stop - start, D) float32; `rows` has no step."""
        ...


@dataclass(frozen=True)
class RankFrames:
    """The part of all frames that this rank holds. A single process holds all of them."""

    frames: Frames
    """Rows [start, start + len(frames)) of all frames."""
    start: int
    total: int
    """N."""

    @staticmethod
    def whole(frames: Frames) -> RankFrames:
        """For a single process, which holds all frames."""
        return RankFrames(frames, 0, frames.shape[0])

    @property
    def dim(self) -> int:
        """D."""
        return int(self.frames.shape[1])

    def chunks(self) -> list[tuple[int, int]]:
        """[start, stop) of every chunk, counted in this rank's own rows."""
        if self.start % CHUNK_FRAMES:
            raise ValueError(
                f"a rank's frames start at a multiple of {CHUNK_FRAMES}, not at {self.start}"
            )
        length = self.frames.shape[0]
        return [
            (position, min(position + CHUNK_FRAMES, length))
            for position in range(0, length, CHUNK_FRAMES)
        ]


def rank_range(total: int) -> range:
    """The rows of `total` frames that this rank holds: whole chunks, shared evenly."""
    num_chunks = -(-total // CHUNK_FRAMES)
    chunks = distributed.share(num_chunks, distributed.rank(), distributed.world_size())
    return range(min(chunks.start * CHUNK_FRAMES, total), min(chunks.stop * CHUNK_FRAMES, total))


class FrameFile:
    """Frames in a file, read on request.

    Unlike with a memory map, pages that were read do not count as memory of this process, so
    hundreds of gigabytes can be processed within a memory budget.
    """

    def __init__(self, path: Path, shape: tuple[int, int]) -> None:
        """Opens the file of an earlier process that marked it complete with this shape, or
        allocates it on the disk.

        Raises HubertPretrainError when the disk is full.
        """
        self.path = path
        self.shape = shape
        self.is_complete = read_json(self._mark) == {"shape": list(shape)}
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        size = 4 * shape[0] * shape[1]
        if not self.is_complete and size:
            with disk_room(path, size):
                if hasattr(os, "posix_fallocate"):  # not on macOS
                    os.posix_fallocate(self._descriptor, 0, size)
                os.truncate(self._descriptor, size)

    @property
    def _mark(self) -> Path:
        return self.path.with_name(f"{self.path.name}.json")

    def mark_complete(self) -> None:
        """Records on disk that every frame was written."""
        os.fsync(self._descriptor)
        write_json(self._mark, {"shape": list(self.shape)})
        self.is_complete = True

    def __getitem__(self, rows: slice) -> NDArray[np.float32]:
        start, stop, _ = rows.indices(self.shape[0])
        frames = np.empty((max(0, stop - start), self.shape[1]), dtype=np.float32)
        view = frames.view(np.uint8).reshape(-1).data
        position = 4 * start * self.shape[1]
        while view:
            count = os.preadv(self._descriptor, [view], position)
            if count == 0:
                raise ArtefactError(
                    f"{self.path}: ends before frame {stop} of {self.shape[0]}; make it again "
                    "with redo=NAME/cluster"
                )
            view = view[count:]
            position += count
        return frames

    def write(self, start: int, frames: NDArray[np.float32]) -> None:
        """Writes frames (n, D) at row `start`. Raises HubertPretrainError when the disk is full."""
        view = np.ascontiguousarray(frames, dtype=np.float32).view(np.uint8).reshape(-1).data
        position = 4 * start * self.shape[1]
        with disk_room(self.path, len(view)):
            while view:
                count = os.pwrite(self._descriptor, view, position)
                view = view[count:]
                position += count


def as_array(frames: Frames) -> NDArray[np.float32]:
    """(N, D) as an array: an array as it is, a file as a memory map."""
    if isinstance(frames, FrameFile):
        return np.memmap(frames.path, dtype=np.float32, mode="r", shape=frames.shape)
    if isinstance(frames, np.ndarray):
        return frames
    return frames[0 : frames.shape[0]]


@dataclass(frozen=True)
class MappedFrames:
    """Frames passed through a function while they are read: selected columns, a PCA, the residual
    of another codebook.
    """

    frames: Frames
    function: Callable[[torch.Tensor], torch.Tensor]
    """(n, D) -> (n, d)."""
    dim: int
    """d."""

    @property
    def shape(self) -> tuple[int, int]:
        """(N, d)."""
        return self.frames.shape[0], self.dim

    def __getitem__(self, rows: slice) -> NDArray[np.float32]:
        mapped = self.function(torch.from_numpy(np.ascontiguousarray(self.frames[rows])))
        return np.ascontiguousarray(mapped.numpy(), dtype=np.float32)
