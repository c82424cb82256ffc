"""Writes a target store: any number of processes, interrupted at any time, leave the same bytes.

Letters: T frames of an utterance, N codebooks with K_1 ... K_N clusters.
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
"""Utterances per block: the most that an interruption can cost."""


class TargetSource(Protocol):
    """Source of targets: one or several codebooks, or files of another project."""

    @property
    def sizes(self) -> list[int]:
        """K_1 ... K_N."""
        ...

    @property
    def grid(self) -> FrameGrid:
        """The grid of the ids."""
        ...

    @property
    def features(self) -> dict[str, Any]:
        """Fingerprint of the features that were assigned."""
        ...

    @property
    def fingerprint(self) -> str:
        """SHA-256 of everything that determines the ids of these features."""
        ...


class TargetWriter:
    """Writes a store block by block.

    A block that is marked as done is never written again, and two processes that write the same
    block write the same bytes. The files stay open: when another process has finished the store and
    renamed its folder, this one can still complete its block.
    """

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder = folder
        self._manifest = manifest
        self._description = read_description(folder)
        self._offsets = load_offsets(folder, len(manifest))
        # O_DSYNC: written bytes are on disk when the call returns. It also keeps a network file
        # system from writing back whole pages, which would overwrite blocks of other machines with
        # older bytes.
        flags = os.O_RDWR | getattr(os, "O_DSYNC", os.O_SYNC)
        self._targets = _File(folder / TARGETS, flags)
        self._marks = _File(folder / MARKS, flags)

    @staticmethod
    def create(
        folder: Path, manifest: Manifest, source: TargetSource, *, block_rows: int = BLOCK_ROWS
    ) -> TargetWriter:
        """Allocates a store in `folder`, or opens the one that an interrupted run of the same work
        left there.

        Raises:
            ConfigError: more clusters than 16 bits can number.
            HubertPretrainError: the disk is full. Run again when it is not; no work is lost.
        """
        if max(source.sizes) > 1 << 16:
            raise ConfigError(
                f"n_clusters={max(source.sizes)}, but targets are 16-bit numbers; choose at most "
                f"{1 << 16}"
            )
        description = _describe(manifest, source, block_rows)
        if read_json(folder / DESCRIPTION) != description:
            (folder / DESCRIPTION).unlink(missing_ok=True)
            ends = np.cumsum(frames_of(manifest, source.grid))
            offsets = np.concatenate([[0], ends]).astype(np.int64)
            with disk_room(folder / OFFSETS, offsets.nbytes):
                np.save(folder / OFFSETS, offsets)
            _allocate(folder / TARGETS, DTYPE.itemsize * int(offsets[-1]) * len(source.sizes))
            _allocate(folder / MARKS, -(-len(manifest) // block_rows))
            write_json(folder / DESCRIPTION, description)
        return TargetWriter(folder, manifest)

    @staticmethod
    def join(
        folder: Path,
        manifest: Manifest,
        source: TargetSource,
        *,
        is_done: Callable[[], bool],
        block_rows: int = BLOCK_ROWS,
        patience_seconds: float = 600.0,
    ) -> TargetWriter | None:
        """Waits for the store that rank 0 creates for the same work, and opens it. None when all
        work is done by then.

        Raises ArtefactError when there is none after `patience_seconds`.
        """
        description = _describe(manifest, source, block_rows)
        writer: TargetWriter | None = None

        def is_there() -> bool:
            nonlocal writer
            if is_done():
                return True
            if read_json(folder / DESCRIPTION) == description:
                # An error here means that the store was finished and renamed at this moment.
                with suppress(ArtefactError, OSError):
                    writer = TargetWriter(folder, manifest)
            return writer is not None

        if not wait_for_first(is_there, patience_seconds):
            raise ArtefactError(
                f"{folder}: no store of these targets after {patience_seconds:g} seconds; rank 0 "
                "makes it, so see that it runs with the same recipe and work_dir"
            )
        return writer

    @property
    def num_blocks(self) -> int:
        """Number of blocks."""
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
        """Writes the ids of a block, then marks it as done.

        `ids` holds one array per row of the block: (T,), or (T, N) for several codebooks.

        Raises:
            DataError: ids that do not fit (see `check_ids`); the message names the utterance.
            HubertPretrainError: the disk is full; the block stays pending.
        """
        rows = self.rows(block)
        n_clusters = self._description["n_clusters"]
        num_frames = np.diff(self._offsets[rows[0] : rows[-1] + 2]).tolist()
        utterances = self._manifest.take("id", rows).to_pylist()
        for of_row, length, utterance in zip(ids, num_frames, utterances, strict=True):
            check_ids(of_row, num_frames=length, n_clusters=n_clusters, utterance=utterance)
        data = np.concatenate(ids).astype(DTYPE).tobytes()
        frame_bytes = DTYPE.itemsize * (1 if isinstance(n_clusters, int) else len(n_clusters))
        with disk_room(self.folder / TARGETS, len(data)):
            self._targets.write_at(data, frame_bytes * int(self._offsets[rows[0]]))
            self._marks.write_at(b"\x01", block)


def _describe(manifest: Manifest, source: TargetSource, block_rows: int) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "rows": len(manifest),
        "block_rows": block_rows,
        "n_clusters": one_or_several(source.sizes),
        "grid": {"window": source.grid.window, "hop": source.grid.hop},
        "codebook": {"sha256": source.fingerprint, "features": source.features},
        "manifest": manifest.fingerprint,
    }


def _allocate(path: Path, size: int) -> None:
    """A file of `size` zero bytes that are allocated now, so that a full disk is found before the
    work starts.
    """
    with disk_room(path, size), open(path, "wb") as file:
        if hasattr(os, "posix_fallocate") and size:  # not on macOS
            os.posix_fallocate(file.fileno(), 0, size)
        file.truncate(size)


class _File:
    """An open file, in which several processes overwrite different ranges."""

    def __init__(self, path: Path, flags: int) -> None:
        self.descriptor = os.open(path, flags)

    def __del__(self) -> None:
        os.close(self.descriptor)

    def write_at(self, data: bytes, position: int) -> None:
        """Overwrites the bytes from `position`."""
        while data:
            written = os.pwrite(self.descriptor, data, position)
            data = data[written:]
            position += written
