"""Several codebooks over the same frames, whose ids stand side by side.

| form                 | parts                                                                     |
|----------------------|---------------------------------------------------------------------------|
| plain                | one, over all columns                                                     |
| product              | one per range of columns (HuBERT paper, section 4.1: static, delta and    |
|                      | delta-delta MFCC apart)                                                   |
| ensemble             | several over all columns, with different K (HuBERT paper, section 4.4)    |
| several layers       | one per layer, over its columns in the concatenated frame                 |
| residual             | each part after the first is fitted on the residual of the one before it  |

Tensor letters: T frames, N codebooks, K clusters, D width of a frame.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hubert_pretrain.clustering import codebook_io
from hubert_pretrain.clustering.assign import DEVICE_FRAMES
from hubert_pretrain.clustering.codebook import Codebook
from hubert_pretrain.errors import ArtefactError
from hubert_pretrain.features.extractor import FeatureExtractor, describe
from hubert_pretrain.frames import FrameGrid

ALL = "all"
"""Name of the only part of a plain codebook."""


@dataclass(frozen=True, eq=False)
class CodebookPart:
    """One codebook of a set, with its input columns."""

    name: str
    columns: tuple[int, int]
    """Columns [start, stop) of the frame."""
    codebook: Codebook
    residual: bool = False
    """The input is the residual of the part before it, in the space of that part's centroids."""


@dataclass(frozen=True, eq=False)
class CodebookSet:
    """Frames -> cluster ids of each codebook.

    A plain codebook is a set of one and is stored like a single `Codebook`.
    """

    parts: tuple[CodebookPart, ...]
    dim: int
    """D, the width of the input frames."""
    fit: dict[str, Any] = field(default_factory=dict)
    """Settings and results of the whole fit. For information only."""
    origin: str = "the codebooks"
    """Their folder, for error messages."""

    @staticmethod
    def of(codebook: Codebook) -> CodebookSet:
        """The set of one codebook over all columns."""
        part = CodebookPart(ALL, (0, codebook.dim), codebook)
        return CodebookSet((part,), codebook.dim, codebook.fit, codebook.origin)

    @property
    def sizes(self) -> list[int]:
        """K of each codebook."""
        return [part.codebook.n_clusters for part in self.parts]

    @property
    def num_codebooks(self) -> int:
        """N."""
        return len(self.parts)

    @property
    def grid(self) -> FrameGrid:
        """The grid of the frames, and so of the ids."""
        return self.parts[0].codebook.grid

    @property
    def features(self) -> dict[str, Any]:
        """Fingerprint of the extractor whose frames they were fitted on."""
        return self.parts[0].codebook.features

    @property
    def is_plain(self) -> bool:
        """One codebook over all columns."""
        return self.num_codebooks == 1 and self.parts[0].columns == (0, self.dim)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of everything that determines the ids: that of a plain codebook itself, else of
        all parts with their columns.
        """
        if self.is_plain:
            return self.parts[0].codebook.fingerprint
        lines = [
            f"{part.name} {part.columns} {part.residual} {part.codebook.fingerprint}\n"
            for part in self.parts
        ]
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    def to(self, device: torch.device | str) -> CodebookSet:
        """The same codebooks on a device."""
        parts = tuple(replace(part, codebook=part.codebook.to(device)) for part in self.parts)
        return CodebookSet(parts, self.dim, self.fit, self.origin)

    def assign(self, frames: Tensor) -> Tensor:
        """Nearest centroids of each frame: (..., D) -> (...) int64 for one codebook, (..., N) for
        several.

        Raises ArtefactError when the frames have another width than those of the fit.
        """
        if self.is_plain:
            return self.parts[0].codebook.assign(frames)
        if frames.shape[-1] != self.dim:
            raise ArtefactError(
                f"{self.origin} has codebooks for frames of dimension {self.dim}, fitted on "
                f"{describe(self.features)}, but the frames have dimension {frames.shape[-1]}; "
                "use the features that it was fitted on, or fit a codebook on these"
            )
        blocks = frames.reshape(-1, self.dim).split(DEVICE_FRAMES)
        ids = torch.cat([self._assign_block(block) for block in blocks])  # (T, N)
        if self.num_codebooks == 1:
            return ids.view(frames.shape[:-1])
        return ids.view(*frames.shape[:-1], self.num_codebooks)

    def _assign_block(self, frames: Tensor) -> Tensor:
        """(T, D) -> (T, N)."""
        ids: list[Tensor] = []
        previous: Codebook | None = None
        values = frames
        for part in self.parts:
            if part.residual:
                assert previous is not None
                values = previous.residual(values, ids[-1])
            else:
                values = frames[:, part.columns[0] : part.columns[1]]
            previous = part.codebook
            ids.append(previous.assign(values))
        return torch.stack(ids, dim=-1)

    def check_features(self, extractor: FeatureExtractor) -> None:
        """Raises ArtefactError, naming each difference, when they were fitted on other features
        than the extractor's.
        """
        self.parts[0].codebook.check_features(extractor)

    def save(self, folder: Path) -> None:
        """Writes `codebook.safetensors` and `codebook.json`.

        Raises HubertPretrainError when the disk is full.
        """
        if self.is_plain:
            replace(self.parts[0].codebook, fit=self.fit).save(folder)
            return
        tensors: dict[str, Tensor] = {}
        parts = []
        for part in self.parts:
            for name, tensor in part.codebook.tensors().items():
                tensors[f"{part.name}.{name}"] = tensor
            parts.append(
                {
                    "name": part.name,
                    "columns": list(part.columns),
                    "residual": part.residual,
                    "n_clusters": part.codebook.n_clusters,
                    "spherical": part.codebook.spherical,
                    "fit": part.codebook.fit,
                }
            )
        description = {
            "n_clusters": self.sizes,
            "dim": self.dim,
            "sha256": self.fingerprint,
            "grid": {"window": self.grid.window, "hop": self.grid.hop},
            "features": self.features,
            "fit": self.fit,
            "parts": parts,
        }
        codebook_io.write_codebook(folder, tensors, description)

    @staticmethod
    def load(folder: str | Path) -> CodebookSet:
        """Reads the files of `save`, or those of a single codebook.

        Raises ArtefactError when a file is missing or damaged, or the two do not belong together.
        """
        folder = Path(folder).absolute()
        tensors, description = codebook_io.read_codebook(folder)
        if "parts" not in description:
            return CodebookSet.of(Codebook.load(folder))
        parts = []
        for stored in description["parts"]:
            prefix = f"{stored['name']}."
            of_part = {
                name.removeprefix(prefix): tensor
                for name, tensor in tensors.items()
                if name.startswith(prefix)
            }
            codebook = Codebook.of_tensors(
                of_part,
                {**stored, "features": description["features"]},
                FrameGrid(**description["grid"]),
                f"{folder} ({stored['name']})",
            )
            start, stop = stored["columns"]
            parts.append(CodebookPart(stored["name"], (start, stop), codebook, stored["residual"]))
        loaded = CodebookSet(tuple(parts), description["dim"], description["fit"], str(folder))
        codebook_io.check_hash(folder, loaded.fingerprint, description)
        return loaded
