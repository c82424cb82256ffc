"""A codebook: K centroids and what made them. Stored as safetensors + JSON, so it opens anywhere
and runs no code.

Tensor alphabet: K clusters, D width of a frame, d width behind the codebook's transform (D without
one).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hubert_pretrain.clustering import assign, codebook_io
from hubert_pretrain.clustering.pca import Transform
from hubert_pretrain.errors import ArtefactError
from hubert_pretrain.features.extractor import Extractor, describe
from hubert_pretrain.frames import FrameGrid, rate_hint


@dataclass(frozen=True, eq=False)
class Codebook:
    """Frames -> cluster ids. The same codebook labels every split and is named in every set of
    targets.
    """

    centroids: Tensor
    """(K, d) float32."""
    features: dict[str, Any]
    """Fingerprint of the extractor whose frames it was fitted on."""
    grid: FrameGrid
    """The grid of those frames, and so of the ids."""
    fit: dict[str, Any] = field(default_factory=dict)
    """How it was fitted: settings, frames, inertia. For people; nothing depends on it."""
    origin: str = "the codebook"
    """Where it came from, for error messages."""
    transform: Transform | None = None
    """What frames go through before they are compared with the centroids."""
    spherical: bool = False
    """Frames are scaled to length 1 too (cosine k-means); the centroids have that length."""

    @property
    def n_clusters(self) -> int:
        """K."""
        return int(self.centroids.shape[0])

    @property
    def dim(self) -> int:
        """D, the width of the frames that it takes."""
        return int(
            self.centroids.shape[1] if self.transform is None else self.transform.matrix.shape[0]
        )

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the centroids and the transform, whatever device they are on and wherever they
        were read from.
        """
        digest = hashlib.sha256()
        for tensor in self.tensors().values():
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        if self.spherical:
            digest.update(b"spherical")
        return digest.hexdigest()

    def to(self, device: torch.device | str) -> Codebook:
        """The same codebook with its tensors on a device."""
        transform = None if self.transform is None else self.transform.to(device)
        return replace(self, centroids=self.centroids.to(device), transform=transform)

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
        return assign.assign(frames.reshape(-1, self.dim).to(weight.dtype), weight, bias).view(
            frames.shape[:-1]
        )

    def project(self, frames: Tensor) -> Tensor:
        """The space that the centroids live in: (..., D) -> (..., d)."""
        projected = frames if self.transform is None else self.transform(frames)
        return nn.functional.normalize(projected, dim=-1) if self.spherical else projected

    def residual(self, frames: Tensor, ids: Tensor) -> Tensor:
        """What the centroids leave of frames: (..., D) and their ids (...) -> (..., d)."""
        return self.project(frames) - self.centroids[ids]

    @cached_property
    def _tables(self) -> tuple[Tensor, Tensor]:
        """Weight (D, K) and bias (K,), see clustering/assign.py.

        The transform is folded in: with x = (y - mean) @ W the product x @ weight is y @ (W @
        weight) - mean @ (W @ weight). And the length that a spherical codebook would scale a frame
        to does not change which of its centroids, all of length 1, is the nearest.
        """
        weight, bias = assign.score_weights(self.centroids)
        if self.spherical:
            bias = torch.zeros_like(bias)
        if self.transform is not None:
            weight = self.transform.matrix.double() @ weight  # (D, K)
            bias = bias - self.transform.mean.double() @ weight
        return weight.float().contiguous(), bias.float()

    def check_features(self, extractor: Extractor) -> None:
        """Raises ArtefactError naming each difference when the codebook was fitted on other
        features than the extractor's.
        """
        other = extractor.fingerprint()
        names = [
            name
            for name in {**self.features, **other}
            if self.features.get(name) != other.get(name)
        ]
        differences = [
            f"{name}: {self.features.get(name)} here, {other.get(name)} there" for name in names
        ]
        if self.grid != extractor.grid:
            hint = rate_hint(
                round(extractor.grid.frames_per_second), round(self.grid.frames_per_second)
            )
            differences.append(
                f"grid: {self.grid} here, {extractor.grid} there{', ' if hint else ''}{hint}"
            )
        if differences:
            raise ArtefactError(
                f"{self.origin} was fitted on {describe(self.features)} but the frames come from {describe(other)} "
                f"({'; '.join(differences)}); label with the features of the cluster stage, or cluster again"
            )

    def tensors(self) -> dict[str, Tensor]:
        """What is stored of it as numbers, by name."""
        named = {"centroids": self.centroids}
        return (
            named
            if self.transform is None
            else named | {"mean": self.transform.mean, "matrix": self.transform.matrix}
        )

    def save(self, folder: Path) -> None:
        """Writes `codebook.safetensors` and `codebook.json`. Raises HubertPretrainError when the
        disk is full.
        """
        description = {"n_clusters": self.n_clusters, "dim": self.dim, "sha256": self.fingerprint}
        description |= {"spherical": True} if self.spherical else {}
        grid = {"window": self.grid.window, "hop": self.grid.hop}
        codebook_io.write_codebook(
            folder,
            self.tensors(),
            description | {"grid": grid, "features": self.features, "fit": self.fit},
        )

    @staticmethod
    def load(folder: str | Path) -> Codebook:
        """Reads what `save` wrote. Raises ArtefactError when a file is missing or damaged, or the
        two do not belong together.
        """
        folder = Path(folder).absolute()
        tensors, description = codebook_io.read_codebook(folder)
        if "parts" in description:
            names = ", ".join(part["name"] for part in description["parts"])
            raise ArtefactError(
                f"{folder}: holds several codebooks ({names}), one was expected; open it as a CodebookSet"
            )
        codebook = Codebook.of_tensors(
            tensors, description, FrameGrid(**description["grid"]), str(folder)
        )
        codebook_io.check_hash(folder, codebook.fingerprint, description)
        return codebook

    @staticmethod
    def of_tensors(
        tensors: dict[str, Tensor], description: dict[str, Any], grid: FrameGrid, origin: str
    ) -> Codebook:
        """From `tensors()` and what a description says beside them. Raises ArtefactError when one
        is missing.
        """
        try:
            transform = (
                Transform(tensors["mean"].float(), tensors["matrix"].float())
                if "mean" in tensors
                else None
            )
            centroids = tensors["centroids"].float()
            spherical = bool(description.get("spherical", False))
        except KeyError as error:
            raise ArtefactError(
                f"{origin}: {codebook_io.CENTROIDS} cannot be read (no tensor {error}); run the cluster stage again"
            ) from error
        return Codebook(
            centroids,
            description["features"],
            grid,
            description["fit"],
            origin,
            transform,
            spherical,
        )
