"""Where k-means reads frames from: an array, a file of any size, or frames that are made when they
are asked for.

N frames, D width.
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
*all* frames, whoever holds them: this is why any number of ranks and threads arrives at the same
sums."""


class Frames(Protocol):
    """What of a NumPy array k-means uses: it reads ranges of rows, from several threads. Arrays and
    memory maps are such, of course.
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
    """The frames that this rank holds: rows [start, start + len) of all `total`. One process holds
    everything.
    """

    frames: Frames
    start: int
    total: int

    @staticmethod
    def whole(frames: Frames) -> RankFrames:
        """For a process that is alone, or a rank that holds all frames and answers for all of
        them.
        """
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


def share_of_frames(total: int) -> range:
    """Which of all frames this rank holds: whole chunks, shared out as evenly as they go."""
    mine = distributed.share(
        -(-total // CHUNK_FRAMES), distributed.rank(), distributed.world_size()
    )
    return range(min(mine.start * CHUNK_FRAMES, total), min(mine.stop * CHUNK_FRAMES, total))


class FrameFile:
    """Frames in a file that are read as they are asked for. Unlike those of a memory map, pages
    that were read do not count as memory of this process, so hundreds of gigabytes can be gone
    through within a budget."""

    def __init__(self, path: Path, shape: tuple[int, int]) -> None:
        """Opens a file that a process `complete`d with frames of this shape, or takes its room on
        the disk.

        Raises HubertPretrainError when the disk has no such room.
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

    def complete(self) -> None:
        """Says that every frame was written."""
        os.fsync(self._descriptor)
        write_json(self._mark, {"shape": list(self.shape)})
        self.is_complete = True

    def __getitem__(self, rows: slice) -> NDArray[np.float32]:
        start, stop, _ = rows.indices(self.shape[0])
        frames = np.empty((max(0, stop - start), self.shape[1]), dtype=np.float32)
        view = frames.view(np.uint8).reshape(-1).data
        position = 4 * start * self.shape[1]
        while view:
            if (count := os.preadv(self._descriptor, [view], position)) == 0:
                raise ArtefactError(
                    f"{self.path}: ends before frame {stop} of {self.shape[0]}; delete it and run the stage again"
                )
            view = view[count:]
            position = position + count
        return frames

    def write(self, start: int, frames: NDArray[np.float32]) -> None:
        """Puts frames (n, D) at row `start`. Raises HubertPretrainError when the disk is full."""
        view = np.ascontiguousarray(frames, dtype=np.float32).view(np.uint8).reshape(-1).data
        position = 4 * start * self.shape[1]
        with disk_room(self.path, len(view)):
            while view:
                count = os.pwrite(self._descriptor, view, position)
                view = view[count:]
                position = position + count

    def memory_map(self) -> NDArray[np.float32]:
        """The same as an array, for libraries that want one."""
        return np.memmap(self.path, dtype=np.float32, mode="r", shape=self.shape)


def in_memory(frames: Frames) -> NDArray[np.float32]:
    """(N, D) as an array: the array or memory map that it is, or all of it computed."""
    if isinstance(frames, FrameFile):
        return frames.memory_map()
    return frames if isinstance(frames, np.ndarray) else frames[0 : frames.shape[0]]


@dataclass(frozen=True)
class MappedFrames:
    """Frames that go through a function when they are read: a choice of columns, a transform, what
    another codebook leaves.
    """

    frames: Frames
    function: Callable[[torch.Tensor], torch.Tensor]
    """(n, D) -> (n, d)."""
    dim: int

    @property
    def shape(self) -> tuple[int, int]:
        """(N, d)."""
        return self.frames.shape[0], self.dim

    def __getitem__(self, rows: slice) -> NDArray[np.float32]:
        found = self.function(torch.from_numpy(np.ascontiguousarray(self.frames[rows])))
        return np.ascontiguousarray(found.numpy(), dtype=np.float32)
