"""The target store: targets of every frame of a corpus, as a memory map of 16-bit integers.

A target is the cluster id of a frame. A store is a folder with

    targets.bin   uint16, ids of all rows concatenated; of several codebooks the N ids of a frame
                  stand side by side
    offsets.npy   int64 (rows + 1): row i has the frames [offsets[i], offsets[i + 1])
    blocks.done   one byte per block of rows, 1 when its ids are on disk
    store.json    grid, numbers of clusters, fingerprints of the codebooks and the manifest

LibriSpeech's 960 hours are 346 MB. Every file is allocated before the first id is known. So any
process can write any block at any time (targets/writer.py), and the bytes depend neither on who
wrote them nor on interruptions.

Letters: T frames of an utterance, N codebooks with K_1 ... K_N clusters.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hubert_pretrain.data.manifest import Manifest
from hubert_pretrain.errors import ArtefactError, DataError
from hubert_pretrain.files import read_json
from hubert_pretrain.frames import FrameGrid, rate_hint

FORMAT = "hubert_pretrain.targets.2"
FORMAT_0_1 = "hubert_pretrain.targets.1"
"""Of version 0.1, which this version refuses."""
TARGETS = "targets.bin"
OFFSETS = "offsets.npy"
MARKS = "blocks.done"
DESCRIPTION = "store.json"
FILES = (TARGETS, OFFSETS, MARKS, DESCRIPTION)
"""Content of the folder."""
DTYPE = np.dtype("<u2")


class TargetStore:
    """Random access to finished targets. Cheap to open, to pickle and to fork."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._description = read_description(folder)
        rows = int(self._description["rows"])
        block_rows = int(self._description["block_rows"])
        self._check_marks(-(-rows // block_rows))
        self.offsets: NDArray[np.int64] = load_offsets(folder, rows)
        """(rows + 1) int64."""
        shape = (int(self.offsets[-1]), len(self.sizes))
        expected = DTYPE.itemsize * shape[0] * shape[1]
        found = _size(folder / TARGETS)
        if found != expected:
            raise ArtefactError(
                f"{folder / TARGETS}: has {found} bytes, expected {expected}; it was cut, "
                "redo=NAME/label makes it again"
            )
        self.ids: NDArray[np.uint16] = np.memmap(
            folder / TARGETS, dtype=DTYPE, mode="r", shape=shape
        )
        """(frames of all rows, N)."""

    @staticmethod
    def open(folder: str | Path) -> TargetStore:
        """Opens the output of a label stage in O(1).

        Raises ArtefactError when it is missing, damaged or unfinished.
        """
        return TargetStore(Path(folder).absolute())

    def __reduce__(self) -> tuple[Any, ...]:
        return TargetStore, (self.folder,)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def sizes(self) -> list[int]:
        """K_1 ... K_N: every id of codebook n is below K_n."""
        return as_sizes(self._description["n_clusters"])

    @property
    def grid(self) -> FrameGrid:
        """The grid of the targets."""
        return FrameGrid(**self._description["grid"])

    @property
    def codebook(self) -> dict[str, Any]:
        """Source of the targets: SHA-256 of the centroids, and the fingerprint of the features."""
        return dict(self._description["codebook"])

    @property
    def manifest_fingerprint(self) -> str:
        """Fingerprint of the manifest."""
        return str(self._description["manifest"])

    def targets(self, row: int) -> NDArray[np.uint16]:
        """Targets of a manifest row: (T,) for one codebook, (T, N) for several. A read-only view of
        the file.

        Raises ArtefactError for an id that is not below its K.
        """
        matrix = self.target_matrix(row)
        return matrix[:, 0] if matrix.shape[1] == 1 else matrix

    def target_matrix(self, row: int) -> NDArray[np.uint16]:
        """The same as (T, N), also for one codebook."""
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} of targets for {len(self)} rows")
        ids = self.ids[int(self.offsets[row]) : int(self.offsets[row + 1])]
        largest = ids.max(axis=0, initial=0).tolist()
        for number, (largest_id, size) in enumerate(zip(largest, self.sizes, strict=True), start=1):
            if largest_id >= size:
                which = f" of codebook {number}" if len(self.sizes) > 1 else ""
                raise ArtefactError(
                    f"{self.folder / TARGETS}: row {row} holds id {largest_id}{which}, but "
                    f"K={size}; redo=NAME/label makes it again"
                )
        return ids

    def check(self, manifest: Manifest, grid: FrameGrid | None = None) -> None:
        """Raises ArtefactError, naming the first difference, when the targets were made for another
        manifest, or for another grid.
        """
        if grid is not None and grid != self.grid:
            raise ArtefactError(
                f"{self.folder}: targets come {self.grid.frames_per_second:g} times a second (a "
                f"window of {self.grid.window} samples every {self.grid.hop}), the model's frames "
                f"{grid.frames_per_second:g} times ({grid.window} every {grid.hop}); label on its "
                "grid"
            )
        if self._description["manifest"] == manifest.fingerprint:
            return
        if len(self) != len(manifest):
            raise ArtefactError(
                f"{self.folder}: targets of {len(self)} utterances, but {manifest.path} has "
                f"{len(manifest)}; redo=NAME/label makes them again"
            )
        found = np.diff(self.offsets)
        expected = frames_of(manifest, self.grid)
        differing = np.flatnonzero(found != expected)
        if len(differing):
            row = int(differing[0])
            message = length_message(manifest[row].id, int(found[row]), int(expected[row]))
            raise ArtefactError(f"{self.folder}: {message}")
        raise ArtefactError(
            f"{self.folder}: made for other utterances than those of {manifest.path}; "
            "redo=NAME/label makes them again"
        )

    def _check_marks(self, num_blocks: int) -> None:
        path = self.folder / MARKS
        try:
            marks = path.read_bytes()
        except OSError as error:
            raise ArtefactError(
                f"{path}: cannot be read ({error.strerror}); redo=NAME/label makes it again"
            ) from error
        if len(marks) != num_blocks:
            raise ArtefactError(
                f"{path}: has {len(marks)} marks, expected one for each of {num_blocks} blocks; it "
                "was cut, redo=NAME/label makes it again"
            )
        unfinished = marks.count(0)
        if unfinished:
            raise ArtefactError(
                f"{self.folder}: {unfinished} blocks of targets were never written; run the label "
                "stage again to finish them"
            )


def check_ids(
    ids: NDArray[np.integer], *, num_frames: int, n_clusters: int | Sequence[int], utterance: str
) -> None:
    """Raises DataError when ids are not integers in [0, K), or not one per frame (and codebook) of
    the utterance.
    """
    sizes = as_sizes(n_clusters)
    columns = () if len(sizes) == 1 else (len(sizes),)
    is_integer = np.issubdtype(ids.dtype, np.integer)
    if ids.ndim == 0 or ids.shape[1:] != columns or not is_integer:
        expected = "a row of integers"
        if len(sizes) > 1:
            expected = f"integers (frames, {len(sizes)} codebooks)"
        raise DataError(
            f"targets of {utterance!r}: {ids.dtype} of shape {ids.shape}, expected {expected}"
        )
    if len(ids) != num_frames:
        raise DataError(length_message(utterance, len(ids), num_frames))
    matrix = ids.reshape(len(ids), len(sizes))
    is_outside = (matrix < 0) | (matrix >= np.array(sizes))
    if is_outside.any():
        frame, codebook = map(int, np.argwhere(is_outside)[0])
        which = f" {codebook + 1}" if len(sizes) > 1 else ""
        size = sizes[codebook]
        raise DataError(
            f"targets of {utterance!r}: id {int(matrix[frame, codebook])} at frame {frame}, but "
            f"the codebook{which} has K={size} clusters (0 to {size - 1}); label with the codebook "
            "that the model is to be trained with"
        )


def as_sizes(n_clusters: int | Sequence[int]) -> list[int]:
    """K, or one K per codebook, as a list."""
    return [n_clusters] if isinstance(n_clusters, int) else list(n_clusters)


def one_or_several(sizes: Sequence[int]) -> int | list[int]:
    """The inverse of `as_sizes`, as K is stored in JSON."""
    return int(sizes[0]) if len(sizes) == 1 else [int(size) for size in sizes]


def frames_of(manifest: Manifest, grid: FrameGrid) -> NDArray[np.int64]:
    """Number of frames of every row: (rows,)."""
    return np.asarray(grid.num_frames(manifest.num_samples))  # type: ignore[arg-type]


def length_message(utterance: str, found: int, expected: int) -> str:
    """Error message for a wrong number of ids."""
    hint = rate_hint(found, expected) or "label the audio of this manifest again (redo=NAME/label)"
    return f"targets of {utterance!r}: {found} ids, expected {expected} frames; {hint}"


def read_description(folder: Path) -> dict[str, Any]:
    """`store.json`. Raises ArtefactError when it is missing or damaged."""
    description = read_json(folder / DESCRIPTION)
    if isinstance(description, dict) and description.get("format") == FORMAT_0_1:
        raise ArtefactError(
            f"{folder / DESCRIPTION}: made by version 0.1 of hubert_pretrain, which this version "
            "cannot use; redo=NAME/label makes it again"
        )
    if not isinstance(description, dict) or description.get("format") != FORMAT:
        raise ArtefactError(
            f"{folder / DESCRIPTION}: missing, damaged or not a {FORMAT}; "
            "redo=NAME/label makes it again"
        )
    return description


def load_offsets(folder: Path, rows: int) -> NDArray[np.int64]:
    """`offsets.npy` as a memory map.

    Raises ArtefactError when it is missing, cut or of another number of rows.
    """
    path = folder / OFFSETS
    try:
        offsets: NDArray[np.int64] = np.load(path, mmap_mode="r")
    except (OSError, ValueError, EOFError) as error:
        raise ArtefactError(
            f"{path}: missing or damaged ({error}); redo=NAME/label makes it again"
        ) from error
    if len(offsets) != rows + 1:
        raise ArtefactError(
            f"{path}: has {len(offsets)} numbers, expected {rows + 1}; "
            "redo=NAME/label makes it again"
        )
    return offsets


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        raise ArtefactError(
            f"{path}: cannot be read ({error.strerror}); redo=NAME/label makes it again"
        ) from error
