"""A codebook: K centroids and what made them. Stored as safetensors + JSON, so it opens anywhere and runs no code.

Tensor alphabet: K clusters, D width of a frame.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from hubert_pretrain.errors import ArtefactError
from hubert_pretrain.features.extractor import Extractor, describe
from hubert_pretrain.frames import FrameGrid
from hubert_pretrain.workspace import read_json, write_json

FORMAT = "hubert_pretrain.codebook.1"
CENTROIDS = "codebook.safetensors"
DESCRIPTION = "codebook.json"
FRAMES_AT_ONCE = 1 << 15
"""Frames per matrix product of `assign`: with K=500 their scores are 65 MB, however long the recording."""


@dataclass(frozen=True, eq=False)
class Codebook:
    """Frames -> cluster ids. The same codebook labels every split and is named in every set of targets."""

    centroids: Tensor
    """(K, D) float32."""
    features: dict[str, Any]
    """Fingerprint of the extractor whose frames it was fitted on."""
    grid: FrameGrid
    """The grid of those frames, and so of the ids."""
    fit: dict[str, Any] = field(default_factory=dict)
    """How it was fitted: settings, frames, inertia. For people; nothing depends on it."""
    origin: str = "the codebook"
    """Where it came from, for error messages."""

    @property
    def n_clusters(self) -> int:
        """K."""
        return int(self.centroids.shape[0])

    @property
    def dim(self) -> int:
        """D."""
        return int(self.centroids.shape[1])

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the centroids, whatever device they are on and wherever they were read from."""
        return hashlib.sha256(self.centroids.detach().cpu().contiguous().numpy().tobytes()).hexdigest()

    def to(self, device: torch.device | str) -> Codebook:
        """The same codebook with its centroids on a device."""
        return Codebook(self.centroids.to(device), self.features, self.grid, self.fit, self.origin)

    def assign(self, frames: Tensor) -> Tensor:
        """Nearest centroid of each frame by Euclidean distance: (..., D) -> (...) int64.

        Raises ArtefactError when the frames have another width than the centroids.
        """
        if frames.shape[-1] != self.dim:
            raise ArtefactError(
                f"{self.origin} has {self.n_clusters} centroids of dimension {self.dim}, fitted on {describe(self.features)}, but the "
                f"frames have dimension {frames.shape[-1]}; label with the features of the cluster stage, or cluster again"
            )
        weight, bias = self._tables
        parts = frames.reshape(-1, self.dim).to(weight.dtype).split(FRAMES_AT_ONCE)
        return torch.cat([torch.addmm(bias, part, weight).argmax(-1) for part in parts]).view(frames.shape[:-1])

    @cached_property
    def _tables(self) -> tuple[Tensor, Tensor]:
        """argmin |x - c|^2 = argmax x.(c - m) - (|c|^2 - |m|^2)/2 for any m; the mean centroid keeps the numbers, and rounding, small."""
        centre = self.centroids.double().mean(0)
        weight = (self.centroids.double() - centre).T.contiguous()  # (D, K)
        bias = -(self.centroids.double().square().sum(-1) - centre.square().sum()) / 2
        return weight.float(), bias.float()

    def check_features(self, extractor: Extractor) -> None:
        """Raises ArtefactError naming each difference when the codebook was fitted on other features than the extractor's."""
        other = extractor.fingerprint()
        names = [name for name in {**self.features, **other} if self.features.get(name) != other.get(name)]
        differences = [f"{name}: {self.features.get(name)} here, {other.get(name)} there" for name in names]
        if self.grid != extractor.grid:
            differences.append(f"grid: {self.grid} here, {extractor.grid} there")
        if differences:
            raise ArtefactError(
                f"{self.origin} was fitted on {describe(self.features)} but the frames come from {describe(other)} "
                f"({'; '.join(differences)}); label with the features of the cluster stage, or cluster again"
            )

    def save(self, folder: Path) -> None:
        """Writes `codebook.safetensors`, then `codebook.json` with its hash: after a kill between the two, `load` refuses them."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / CENTROIDS).write_bytes(save({"centroids": self.centroids.detach().cpu().contiguous()}))
        description = {"format": FORMAT, "n_clusters": self.n_clusters, "dim": self.dim, "sha256": self.fingerprint}
        grid = {"window": self.grid.window, "hop": self.grid.hop}
        write_json(folder / DESCRIPTION, description | {"grid": grid, "features": self.features, "fit": self.fit})

    @staticmethod
    def load(folder: str | Path) -> Codebook:
        """Reads what `save` wrote. Raises ArtefactError when a file is missing or damaged, or the two do not belong together."""
        folder = Path(folder).absolute()
        description = read_json(folder / DESCRIPTION)
        if not isinstance(description, dict) or description.get("format") != FORMAT:
            raise ArtefactError(f"{folder / DESCRIPTION}: missing, damaged or not a {FORMAT}; run the cluster stage again")
        try:
            centroids = load_file(folder / CENTROIDS)["centroids"]
        except (OSError, KeyError, SafetensorError) as error:
            raise ArtefactError(f"{folder / CENTROIDS}: cannot be read ({error}); run the cluster stage again") from error
        codebook = Codebook(
            centroids.float(), description["features"], FrameGrid(**description["grid"]), description["fit"], origin=str(folder)
        )
        if codebook.fingerprint != description["sha256"]:
            raise ArtefactError(f"{folder}: {CENTROIDS} is not the one that {DESCRIPTION} describes (other SHA-256); cluster again")
        return codebook
