"""The target store: one cluster id per frame of every utterance of a manifest, as a memory map of 16-bit numbers.

A folder with
    targets.bin   uint16, the ids of all rows behind one another
    offsets.npy   int64 (rows + 1): row i has the ids [offsets[i], offsets[i + 1])
    blocks.done   one byte per block of rows, 1 when its ids are on disk
    store.json    grid, number of clusters, the codebook's and the manifest's fingerprints
LibriSpeech's 960 hours are 346 MB. Every file is allocated before the first id is known, so any process can write any block at any time,
and the bytes do not depend on who wrote them or how often the work was interrupted. T frames, K clusters.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hubert_pretrain.clustering.codebook import Codebook
from hubert_pretrain.data.manifest import Manifest
from hubert_pretrain.errors import ArtefactError, ConfigError, DataError, HubertPretrainError
from hubert_pretrain.frames import FrameGrid
from hubert_pretrain.workspace import read_json, write_json

FORMAT = "hubert_pretrain.targets.1"
TARGETS, OFFSETS, MARKS, DESCRIPTION = "targets.bin", "offsets.npy", "blocks.done", "store.json"
DTYPE = np.dtype("<u2")
BLOCK_ROWS = 64
"""Utterances per block: what a kill can cost."""


class TargetStore:
    """Random access to finished targets. Cheap to open, to pickle and to fork."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._description = _read_description(folder)
        unfinished = int((np.frombuffer(_read(folder / MARKS), dtype=np.uint8) == 0).sum())
        if unfinished:
            raise ArtefactError(f"{folder}: {unfinished} blocks of targets were never written; run the label stage again to finish them")
        self.offsets: NDArray[np.int64] = np.load(folder / OFFSETS, mmap_mode="r")
        """(rows + 1) int64."""
        size = (folder / TARGETS).stat().st_size
        if size != DTYPE.itemsize * int(self.offsets[-1]):
            raise ArtefactError(
                f"{folder / TARGETS}: has {size} bytes, expected {DTYPE.itemsize * int(self.offsets[-1])}; it was cut, label again"
            )
        self.ids: NDArray[np.uint16] = np.memmap(folder / TARGETS, dtype=DTYPE, mode="r")
        """All ids behind one another."""

    @staticmethod
    def open(folder: str | Path) -> TargetStore:
        """Opens the output of a label stage in O(1). Raises ArtefactError when it is missing, damaged or unfinished."""
        return TargetStore(Path(folder).absolute())

    def __reduce__(self) -> tuple[Any, ...]:
        return TargetStore, (self.folder,)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def num_clusters(self) -> int:
        """K: every id is below it."""
        return int(self._description["n_clusters"])

    @property
    def grid(self) -> FrameGrid:
        """The grid that the ids lie on."""
        return FrameGrid(**self._description["grid"])

    @property
    def codebook(self) -> dict[str, Any]:
        """What made the ids: SHA-256 of the centroids, and the fingerprint of the features."""
        return dict(self._description["codebook"])

    def targets(self, row: int) -> NDArray[np.uint16]:
        """Cluster ids (T,) of a manifest row, a read-only view of the file. Raises ArtefactError for an id that is not below K."""
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} of targets for {len(self)} rows")
        ids = self.ids[int(self.offsets[row]) : int(self.offsets[row + 1])]
        if len(ids) and int(ids.max()) >= self.num_clusters:
            raise ArtefactError(f"{self.folder / TARGETS}: row {row} holds id {int(ids.max())}, but K={self.num_clusters}; label again")
        return ids

    def check(self, manifest: Manifest, grid: FrameGrid | None = None) -> None:
        """Raises ArtefactError naming the first difference when the targets were not made for this manifest, or for another grid."""
        if grid is not None and grid != self.grid:
            raise ArtefactError(
                f"{self.folder}: targets come {self.grid.frames_per_second:g} times a second (a window of {self.grid.window} samples every "
                f"{self.grid.hop}), the model's frames {grid.frames_per_second:g} times ({grid.window} every {grid.hop}); label on its grid"
            )
        if self._description["manifest"] == manifest.fingerprint:
            return
        if len(self) != len(manifest):
            raise ArtefactError(
                f"{self.folder}: targets of {len(self)} utterances, but {manifest.path} has {len(manifest)}; run the label stage again"
            )
        found, expected = np.diff(self.offsets), _frames_of(manifest, self.grid)
        if len(rows := np.flatnonzero(found != expected)):
            row = int(rows[0])
            raise ArtefactError(f"{self.folder}: {_length_message(manifest[row].id, int(found[row]), int(expected[row]))}")
        raise ArtefactError(f"{self.folder}: made for other utterances than those of {manifest.path}; run the label stage again")


class TargetWriter:
    """Writes a store block by block; what is marked as done is never written again."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder = folder
        self._manifest = manifest
        self._description = _read_description(folder)
        self._offsets = np.load(folder / OFFSETS, mmap_mode="r")

    @staticmethod
    def create(folder: Path, manifest: Manifest, codebook: Codebook, *, block_rows: int = BLOCK_ROWS) -> TargetWriter:
        """Allocates a store in `folder`, or opens the one that an interrupted run of the same work left there.

        Raises:
            ConfigError: more clusters than 16 bits can number.
            HubertPretrainError: the disk cannot hold it (nothing is lost: run again when it can).
        """
        if codebook.n_clusters > 1 << 16:
            raise ConfigError(f"n_clusters={codebook.n_clusters}, but targets are 16-bit numbers; choose at most {1 << 16}")
        description = {
            "format": FORMAT,
            "rows": len(manifest),
            "block_rows": block_rows,
            "n_clusters": codebook.n_clusters,
            "grid": {"window": codebook.grid.window, "hop": codebook.grid.hop},
            "codebook": {"sha256": codebook.fingerprint, "features": codebook.features},
            "manifest": manifest.fingerprint,
        }
        if read_json(folder / DESCRIPTION) != description:
            (folder / DESCRIPTION).unlink(missing_ok=True)
            offsets = np.concatenate([[0], np.cumsum(_frames_of(manifest, codebook.grid))]).astype(np.int64)
            np.save(folder / OFFSETS, offsets)
            _allocate(folder / TARGETS, DTYPE.itemsize * int(offsets[-1]))
            _allocate(folder / MARKS, -(-len(manifest) // block_rows))
            write_json(folder / DESCRIPTION, description)
        return TargetWriter(folder, manifest)

    def pending(self) -> NDArray[np.int64]:
        """The blocks that are not on disk yet, ascending."""
        return np.flatnonzero(np.frombuffer(_read(self.folder / MARKS), dtype=np.uint8) == 0)

    def rows(self, block: int) -> NDArray[np.int64]:
        """The manifest rows of a block."""
        size = int(self._description["block_rows"])
        return np.arange(block * size, min((block + 1) * size, len(self._manifest)), dtype=np.int64)

    def write(self, block: int, ids: Sequence[NDArray[np.integer]]) -> None:
        """Writes the ids of a block, one array (T,) per row of it, and then marks it as done.

        Raises DataError, naming the utterance, for ids that do not fit (see `check_ids`); the block then stays pending.
        """
        rows = self.rows(block)
        for row, part in zip(rows, ids, strict=True):
            num_frames = int(self._offsets[row + 1] - self._offsets[row])
            check_ids(part, num_frames=num_frames, n_clusters=int(self._description["n_clusters"]), utterance=self._manifest[int(row)].id)
        data = np.concatenate(ids).astype(DTYPE).tobytes()
        _write_at(self.folder / TARGETS, data, DTYPE.itemsize * int(self._offsets[rows[0]]))
        _write_at(self.folder / MARKS, b"\x01", block)


def check_ids(ids: NDArray[np.integer], *, num_frames: int, n_clusters: int, utterance: str) -> None:
    """Raises DataError when ids are not whole numbers in [0, K), or not one per frame of the utterance."""
    if ids.ndim != 1 or not np.issubdtype(ids.dtype, np.integer):
        raise DataError(f"targets of {utterance!r}: {ids.dtype} of shape {ids.shape}, expected a row of whole numbers")
    if len(ids) != num_frames:
        raise DataError(_length_message(utterance, len(ids), num_frames))
    outside = np.flatnonzero((ids < 0) | (ids >= n_clusters))
    if len(outside):
        frame = int(outside[0])
        raise DataError(
            f"targets of {utterance!r}: id {int(ids[frame])} at frame {frame}, but the codebook has K={n_clusters} clusters (0 to "
            f"{n_clusters - 1}); label with the codebook that these targets are to be trained with"
        )


def _frames_of(manifest: Manifest, grid: FrameGrid) -> NDArray[np.int64]:
    return np.asarray(grid.num_frames(manifest.num_samples))  # type: ignore[arg-type]


def _length_message(utterance: str, found: int, expected: int) -> str:
    if abs(found - 2 * expected) <= 1:
        hint = "twice as many: are these 100 Hz? Take every second one ([::2])"
    elif abs(2 * found - expected) <= 1:
        hint = "half as many: are these 25 Hz? Label again on the model's grid"
    else:
        hint = "label again from the audio of this manifest"
    return f"targets of {utterance!r}: {found} ids, expected {expected} frames; {hint}"


def _read_description(folder: Path) -> dict[str, Any]:
    description = read_json(folder / DESCRIPTION)
    if not isinstance(description, dict) or description.get("format") != FORMAT:
        raise ArtefactError(f"{folder / DESCRIPTION}: missing, damaged or not a {FORMAT}; run the label stage again")
    return description


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ArtefactError(f"{path}: cannot be read ({error.strerror}); run the label stage again") from error


def _allocate(path: Path, size: int) -> None:
    """A file of `size` zero bytes whose place on disk is taken now, so that a full disk is found before the work and not after it."""
    try:
        with open(path, "wb") as file:
            if hasattr(os, "posix_fallocate"):  # not on macOS
                os.posix_fallocate(file.fileno(), 0, size)
            file.truncate(size)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise HubertPretrainError(f"{path}: the disk has no room for {size} bytes of targets; free some and run the stage again") from error


def _write_at(path: Path, data: bytes, position: int) -> None:
    """Overwrites a part of a file and waits until it is on disk."""
    descriptor = os.open(path, os.O_WRONLY)
    try:
        while data:
            written = os.pwrite(descriptor, data, position)
            data, position = data[written:], position + written
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
