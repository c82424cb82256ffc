"""Targets of a teacher whose frames are a whole number of times closer or further apart than the
model's: each frame of the model takes the id of the teacher's frame that is nearest in time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hubert_pretrain.data.manifest import Manifest
from hubert_pretrain.errors import DataError
from hubert_pretrain.frames import FrameGrid, seconds
from hubert_pretrain.targets.writer import TargetSource


@dataclass(frozen=True)
class OnGrid:
    """A source of targets, brought to the model's grid: a TargetSource."""

    source: FrameGrid
    """The teacher's."""
    grid: FrameGrid
    """The model's."""
    sizes: list[int]
    features: dict[str, Any]
    fingerprint: str

    @staticmethod
    def of(source: TargetSource, grid: FrameGrid) -> OnGrid:
        """It stays the same source: sizes and fingerprints are those of the teacher."""
        return OnGrid(source.grid, grid, source.sizes, source.features, source.fingerprint)

    def check(self, manifest: Manifest) -> None:
        """Raises DataError, naming the first one, where an utterance has a frame of the model and
        none of the teacher.
        """
        lengths = manifest.num_samples
        has_none = (lengths >= self.grid.window) & (lengths < self.source.window)
        if has_none.any():
            row = int(np.flatnonzero(has_none)[0])
            raise DataError(
                f"{int(has_none.sum())} utterances, first {manifest[row].id!r} of "
                f"{seconds(int(lengths[row])):g} s, are shorter than one frame of the teacher "
                f"({seconds(self.source.window):g} s): they have no targets; leave them out of the "
                "corpus, or take a teacher with the model's frames"
            )

    def ids(self, ids: NDArray[Any], num_samples: int) -> NDArray[Any]:
        """Ids (T', ...) of the teacher's frames of an utterance -> (T, ...) of the model's."""
        if self.source == self.grid:
            return ids
        return ids[self.source.nearest(self.grid, num_samples)]

    def describe(self) -> str:
        """One line for the log; "" where the grids are the same."""
        if self.source == self.grid:
            return ""
        rates = self.source.frames_per_second, self.grid.frames_per_second
        return (
            f"targets: {rates[0]:g} a second from the teacher, {rates[1]:g} for the model, by time"
        )
