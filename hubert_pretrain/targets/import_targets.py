"""Imports targets of other programs or runs into a target store: fairseq's `.km` files, or a store
of another run on the same corpus.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hubert_pretrain.data.manifest import Manifest
from hubert_pretrain.errors import ArtefactError, DataError
from hubert_pretrain.frames import FrameGrid
from hubert_pretrain.targets.fairseq_km import KmTargets, is_km_folder
from hubert_pretrain.targets.regrid import OnGrid
from hubert_pretrain.targets.store import DESCRIPTION, TargetStore
from hubert_pretrain.targets.writer import TargetWriter


class StoredTargets:
    """A finished store of the same utterances, as a TargetSource."""

    def __init__(self, folder: Path, manifest: Manifest, grid: FrameGrid) -> None:
        self._store = TargetStore.open(folder)
        self._manifest = manifest
        self._store.check(manifest, None if self._store.grid.fits(grid) else grid)
        self.sizes = self._store.sizes
        self.grid = grid
        self.features = self._store.codebook["features"]
        self.fingerprint = self._store.codebook["sha256"]
        self._to_grid = OnGrid(self._store.grid, grid, self.sizes, self.features, self.fingerprint)
        self._to_grid.check(manifest)

    def ids(self, row: int) -> NDArray[np.uint16]:
        """(T,) or (T, N)."""
        return self._to_grid.ids(self._store.targets(row), int(self._manifest.num_samples[row]))

    def report(self) -> str:
        """One line that describes the import."""
        sizes = ", ".join(map(str, self.sizes))
        return f"targets of {len(self._store)} utterances from {self._store.folder} (K={sizes})"


def import_targets(
    source: Path,
    folder: Path,
    manifest: Manifest,
    *,
    grid: FrameGrid,
    tolerance: int = 0,
    n_clusters: Sequence[int] | None = None,
) -> str:
    """Writes a store into `folder` for the rows of a manifest. An interrupted import continues.

    Args:
        source: folder with `.km` and `.tsv` files, or with a store.
        folder: the new store.
        manifest: of the prepared corpus. Utterances are matched by path or id, not by order.
        grid: of the model that will be trained on the targets.
        tolerance: see `KmTargets`.
        n_clusters: see `KmTargets`.

    Returns:
        A line that describes the import.

    Raises:
        ArtefactError: `source` is neither, or a store of other utterances or another grid.
        DataError: labels that do not fit; the message names file, line and utterance.
    """
    targets: StoredTargets | KmTargets
    if (source / DESCRIPTION).is_file():
        targets = StoredTargets(source, manifest, grid)
    elif is_km_folder(source):
        targets = KmTargets(source, manifest, grid, tolerance, n_clusters)
    else:
        raise ArtefactError(
            f"{source}: holds no targets; expected a label stage's {DESCRIPTION}, or fairseq's "
            "<split>.tsv and <split>.km"
        )
    folder.mkdir(parents=True, exist_ok=True)
    writer = TargetWriter.create(folder, manifest, targets)
    for block in writer.pending().tolist():
        writer.write(block, [targets.ids(row) for row in writer.rows(block).tolist()])
    _refuse_constant(TargetStore.open(folder))
    return targets.report()


def _refuse_constant(store: TargetStore) -> None:
    """Raises DataError when all targets are equal.

    That happened with a dictionary that lacked the labels: a month of training learnt nothing
    (fairseq#4521).
    """
    for number, size in enumerate(store.sizes):
        if len(store) and size > 1 and np.ptp(store.ids[:, number]) == 0:
            raise DataError(
                f"{store.folder}: every label is {int(store.ids[0, number])}, of K={size}; there "
                "is nothing to learn, check the source"
            )
