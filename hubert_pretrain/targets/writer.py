"""Writing a target store: any number of processes, killed at any time, leave the same bytes. T
frames, N codebooks, K clusters.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from hubert_pretrain.data.manifest import Manifest
from hubert_pretrain.distributed import wait_for_first
from hubert_pretrain.errors import ArtefactError, ConfigError
from hubert_pretrain.files import disk_room, read_json, write_json
from hubert_pretrain.frames import FrameGrid
from hubert_pretrain.targets.store import (
    DESCRIPTION,
    DTYPE,
    FORMAT,
    MARKS,
    OFFSETS,
    TARGETS,
    check_ids,
    frames_of,
    load_offsets,
    one_or_several,
    read_description,
)

BLOCK_ROWS = 64
"""Utterances per block: what a kill can cost."""


class Origin(Protocol):
    """What ids come from: a codebook, several of them, or files of another project."""

    @property
    def sizes(self) -> list[int]:
        """K_1 ... K_N."""
        ...

    @property
    def grid(self) -> FrameGrid:
        """The grid that the ids lie on."""
        ...

    @property
    def features(self) -> dict[str, Any]:
        """Fingerprint of the features that were assigned."""
        ...

    @property
    def fingerprint(self) -> str:
        """SHA-256 of what decides the ids of these features."""
        ...


class TargetWriter:
    """Writes a store block by block; what is marked as done is never written again, and what two
    processes write is the same.

    The files stay open: the folder may be renamed, because it is finished, while a process is still
    at a block that another has done.
    """

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder = folder
        self._manifest = manifest
        self._description = read_description(folder)
        self._offsets = load_offsets(folder, len(manifest))
        # O_DSYNC: what was written is on disk when the call returns. It also keeps a network file
        # system from writing whole pages back, and with them older bytes of the blocks of other
        # machines.
        flags = os.O_RDWR | getattr(os, "O_DSYNC", os.O_SYNC)
        self._targets = _File(folder / TARGETS, flags)
        self._marks = _File(folder / MARKS, flags)

    @staticmethod
    def create(
        folder: Path, manifest: Manifest, origin: Origin, *, block_rows: int = BLOCK_ROWS
    ) -> TargetWriter:
        """Allocates a store in `folder`, or opens the one that an interrupted run of the same work
        left there.

        Raises:
            ConfigError: more clusters than 16 bits can number.
            HubertPretrainError: the disk cannot hold it (nothing is lost: run again when it can).
        """
        if max(origin.sizes) > 1 << 16:
            raise ConfigError(
                f"n_clusters={max(origin.sizes)}, but targets are 16-bit numbers; choose at most {1 << 16}"
            )
        description = _describe(manifest, origin, block_rows)
        if read_json(folder / DESCRIPTION) != description:
            (folder / DESCRIPTION).unlink(missing_ok=True)
            offsets = np.concatenate([[0], np.cumsum(frames_of(manifest, origin.grid))]).astype(
                np.int64
            )
            with disk_room(folder / OFFSETS, offsets.nbytes):
                np.save(folder / OFFSETS, offsets)
            _allocate(folder / TARGETS, DTYPE.itemsize * int(offsets[-1]) * len(origin.sizes))
            _allocate(folder / MARKS, -(-len(manifest) // block_rows))
            write_json(folder / DESCRIPTION, description)
        return TargetWriter(folder, manifest)

    @staticmethod
    def join(
        folder: Path,
        manifest: Manifest,
        origin: Origin,
        *,
        is_done: Callable[[], bool],
        block_rows: int = BLOCK_ROWS,
        patience_seconds: float = 600.0,
    ) -> TargetWriter | None:
        """Opens the store that rank 0 creates for the same work; waits until it is there. None when
        all of the work is done by then.

        Raises ArtefactError when there is none after `patience_seconds`.
        """
        description = _describe(manifest, origin, block_rows)
        store: TargetWriter | None = None

        def is_there() -> bool:
            nonlocal store
            if is_done():
                return True
            if read_json(folder / DESCRIPTION) == description:
                with suppress(ArtefactError, OSError):  # finished, and so renamed, at this moment
                    store = TargetWriter(folder, manifest)
            return store is not None

        if not wait_for_first(is_there, patience_seconds):
            raise ArtefactError(
                f"{folder}: no store of these targets after {patience_seconds:g} seconds; rank 0 "
                "makes it, so see that it runs with the same recipe and work_dir"
            )
        return store

    @property
    def num_blocks(self) -> int:
        """Blocks in all."""
        return -(-len(self._manifest) // int(self._description["block_rows"]))

    def pending(self) -> NDArray[np.int64]:
        """The blocks that are not on disk yet, ascending."""
        marks = os.pread(self._marks.descriptor, self.num_blocks, 0)
        return np.flatnonzero(np.frombuffer(marks, dtype=np.uint8) == 0)

    def rows(self, block: int) -> NDArray[np.int64]:
        """The manifest rows of a block."""
        size = int(self._description["block_rows"])
        return np.arange(block * size, min((block + 1) * size, len(self._manifest)), dtype=np.int64)

    def write(self, block: int, ids: Sequence[NDArray[np.integer]]) -> None:
        """Writes the ids of a block, one array (T,), or (T, N) of several codebooks, per row of it,
        and then marks it as done.

        Raises DataError, naming the utterance, for ids that do not fit (see `check_ids`), and
        HubertPretrainError when the disk is full;
        the block then stays pending.
        """
        rows = self.rows(block)
        n_clusters = self._description["n_clusters"]
        num_frames = np.diff(self._offsets[rows[0] : rows[-1] + 2]).tolist()
        for part, length, utterance in zip(
            ids, num_frames, self._manifest.take("id", rows).to_pylist(), strict=True
        ):
            check_ids(part, num_frames=length, n_clusters=n_clusters, utterance=utterance)
        data = np.concatenate(ids).astype(DTYPE).tobytes()
        frame_bytes = DTYPE.itemsize * (1 if isinstance(n_clusters, int) else len(n_clusters))
        with disk_room(self.folder / TARGETS, len(data)):
            self._targets.write_at(data, frame_bytes * int(self._offsets[rows[0]]))
            self._marks.write_at(b"\x01", block)


def _describe(manifest: Manifest, origin: Origin, block_rows: int) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "rows": len(manifest),
        "block_rows": block_rows,
        "n_clusters": one_or_several(origin.sizes),
        "grid": {"window": origin.grid.window, "hop": origin.grid.hop},
        "codebook": {"sha256": origin.fingerprint, "features": origin.features},
        "manifest": manifest.fingerprint,
    }


def _allocate(path: Path, size: int) -> None:
    """A file of `size` zero bytes whose place on disk is taken now, so that a full disk is found
    before the work and not after it.
    """
    with disk_room(path, size), open(path, "wb") as file:
        if hasattr(os, "posix_fallocate") and size:  # not on macOS
            os.posix_fallocate(file.fileno(), 0, size)
        file.truncate(size)


class _File:
    """An open file that is overwritten in places, by several processes in different ones."""

    def __init__(self, path: Path, flags: int) -> None:
        self.descriptor = os.open(path, flags)

    def __del__(self) -> None:
        os.close(self.descriptor)

    def write_at(self, data: bytes, position: int) -> None:
        """Overwrites a part of it."""
        while data:
            written = os.pwrite(self.descriptor, data, position)
            data = data[written:]
            position = position + written
