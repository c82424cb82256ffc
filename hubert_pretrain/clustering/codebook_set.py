"""Several codebooks over the same frames, whose ids stand side by side: product, ensemble and
residual k-means.

| form | parts |
|---|---|
| plain | one, over all columns |
| product (HuBERT paper section 4.1: MFCC static, delta and delta-delta apart) | one per range of
columns |
| ensemble of K (HuBERT paper section 4.4) | several over all columns |
| several layers at once | one per layer, over the columns that it has in the concatenated frame |
| residual | each part but the first is fitted on what the part before it leaves |

Tensor alphabet: N codebooks, K clusters, D width of a frame.
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
from hubert_pretrain.features.extractor import Extractor, describe
from hubert_pretrain.frames import FrameGrid

ALL = "all"
"""Name of the only part of a plain codebook."""


@dataclass(frozen=True, eq=False)
class CodebookPart:
    """One codebook of a set, and what of a frame it sees."""

    name: str
    columns: tuple[int, int]
    """Columns [start, stop) of the frame."""
    codebook: Codebook
    residual: bool = False
    """It sees what the part before it leaves of those columns, in the space of that part's
    centroids.
    """


@dataclass(frozen=True, eq=False)
class CodebookSet:
    """Frames -> cluster ids of each codebook. A plain codebook is a set of one, and is stored as it
    always was.
    """

    parts: tuple[CodebookPart, ...]
    dim: int
    """D, the width of the frames that it takes."""
    fit: dict[str, Any] = field(default_factory=dict)
    """How it was fitted as a whole. For people; nothing depends on it."""
    origin: str = "the codebooks"
    """Where it came from, for error messages."""

    @staticmethod
    def of(codebook: Codebook) -> CodebookSet:
        """The set of one codebook over all columns."""
        return CodebookSet(
            (CodebookPart(ALL, (0, codebook.dim), codebook),),
            codebook.dim,
            codebook.fit,
            codebook.origin,
        )

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
        """Whether it is one codebook over all columns."""
        return self.num_codebooks == 1 and self.parts[0].columns == (0, self.dim)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of all that decides ids: for a plain codebook its own, else of every part with
        its columns.
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
        parts = tuple(
            CodebookPart(part.name, part.columns, part.codebook.to(device), part.residual)
            for part in self.parts
        )
        return CodebookSet(parts, self.dim, self.fit, self.origin)

    def assign(self, frames: Tensor) -> Tensor:
        """Nearest centroids of each frame: (..., D) -> (...) int64 of the only codebook, or (...,
        N) of several.

        Raises ArtefactError when the frames have another width than those that the codebooks were
        fitted on.
        """
        if self.is_plain:
            return self.parts[0].codebook.assign(frames)
        if frames.shape[-1] != self.dim:
            raise ArtefactError(
                f"{self.origin} has codebooks for frames of dimension {self.dim}, fitted on {describe(self.features)}, but the frames have "
                f"dimension {frames.shape[-1]}; label with the features of the cluster stage, or cluster again"
            )
        pieces = frames.reshape(-1, self.dim).split(DEVICE_FRAMES)
        ids = torch.cat([self._assign(piece) for piece in pieces])  # (T, N)
        return (
            ids.view(*frames.shape[:-1], self.num_codebooks)
            if self.num_codebooks > 1
            else ids.view(frames.shape[:-1])
        )

    def _assign(self, frames: Tensor) -> Tensor:
        """(T, D) -> (T, N)."""
        found: list[Tensor] = []
        before = self.parts[0].codebook
        seen = frames
        for part in self.parts:
            seen = (
                before.residual(seen, found[-1])
                if part.residual
                else frames[:, part.columns[0] : part.columns[1]]
            )
            before = part.codebook
            found.append(before.assign(seen))
        return torch.stack(found, dim=-1)

    def check_features(self, extractor: Extractor) -> None:
        """Raises ArtefactError naming each difference when they were fitted on other features than
        the extractor's.
        """
        self.parts[0].codebook.check_features(extractor)

    def save(self, folder: Path) -> None:
        """Writes `codebook.safetensors` and `codebook.json`. Raises HubertPretrainError when the
        disk is full.
        """
        if self.is_plain:
            replace(self.parts[0].codebook, fit=self.fit).save(folder)
            return
        tensors: dict[str, Tensor] = {}
        listed = []
        for part in self.parts:
            tensors |= {
                f"{part.name}.{name}": tensor for name, tensor in part.codebook.tensors().items()
            }
            facts = {
                "name": part.name,
                "columns": list(part.columns),
                "residual": part.residual,
                "n_clusters": part.codebook.n_clusters,
            }
            listed.append(facts | {"spherical": part.codebook.spherical, "fit": part.codebook.fit})
        grid = {"window": self.grid.window, "hop": self.grid.hop}
        description = {
            "n_clusters": self.sizes,
            "dim": self.dim,
            "sha256": self.fingerprint,
            "grid": grid,
            "features": self.features,
        }
        codebook_io.write_codebook(
            folder, tensors, description | {"fit": self.fit, "parts": listed}
        )

    @staticmethod
    def load(folder: str | Path) -> CodebookSet:
        """Reads what `save` wrote, and the folder of a single codebook.

        Raises ArtefactError when a file is missing or damaged, or the two do not belong together.
        """
        folder = Path(folder).absolute()
        tensors, description = codebook_io.read_codebook(folder)
        if "parts" not in description:
            return CodebookSet.of(Codebook.load(folder))
        parts = []
        for facts in description["parts"]:
            prefix = f"{facts['name']}."
            own = {
                name.removeprefix(prefix): tensor
                for name, tensor in tensors.items()
                if name.startswith(prefix)
            }
            codebook = Codebook.of_tensors(
                own,
                {**facts, "features": description["features"]},
                FrameGrid(**description["grid"]),
                f"{folder} ({facts['name']})",
            )
            parts.append(
                CodebookPart(
                    facts["name"],
                    (facts["columns"][0], facts["columns"][1]),
                    codebook,
                    facts["residual"],
                )
            )
        loaded = CodebookSet(tuple(parts), description["dim"], description["fit"], str(folder))
        codebook_io.check_hash(folder, loaded.fingerprint, description)
        return loaded
