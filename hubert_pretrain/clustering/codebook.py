"""A codebook: K centroids with their provenance. Stored as safetensors and JSON, which any program
can open and which run no code.

Tensor letters: K clusters, D width of a frame, d width after the codebook's transform (D without
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
from hubert_pretrain.features.extractor import FeatureExtractor, describe
from hubert_pretrain.frames import FrameGrid, rate_hint


@dataclass(frozen=True, eq=False)
class Codebook:
    """Frames -> cluster ids. The hash of the codebook is stored with the targets that it made."""

    centroids: Tensor
    """(K, d) float32."""
    features: dict[str, Any]
    """Fingerprint of the extractor whose frames it was fitted on."""
    grid: FrameGrid
    """The grid of those frames, and so of the ids."""
    fit: dict[str, Any] = field(default_factory=dict)
    """Settings, frames and inertia of the fit. For information only."""
    origin: str = "the codebook"
    """Its folder or file, for error messages."""
    transform: Transform | None = None
    """Applied to frames before they are compared with the centroids."""
    spherical: bool = False
    """Cosine k-means: centroids and frames have length 1."""

    @property
    def n_clusters(self) -> int:
        """K."""
        return int(self.centroids.shape[0])

    @property
    def dim(self) -> int:
        """D, the width of the input frames."""
        if self.transform is None:
            return int(self.centroids.shape[1])
        return int(self.transform.matrix.shape[0])

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the centroids and the transform, independent of device and path."""
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

        Raises ArtefactError when the frames have another width than those of the fit.
        """
        if frames.shape[-1] != self.dim:
            raise ArtefactError(
                f"{self.origin} has {self.n_clusters} centroids of dimension {self.dim}, fitted on "
                f"{describe(self.features)}, but the frames have dimension {frames.shape[-1]}; "
                "use the features that it was fitted on, or fit a codebook on these"
            )
        weight, bias = self._score_weights
        flat = frames.reshape(-1, self.dim).to(weight.dtype)
        return assign.assign(flat, weight, bias).view(frames.shape[:-1])

    def project(self, frames: Tensor) -> Tensor:
        """Frames in the space of the centroids: (..., D) -> (..., d)."""
        projected = frames if self.transform is None else self.transform(frames)
        return nn.functional.normalize(projected, dim=-1) if self.spherical else projected

    def residual(self, frames: Tensor, ids: Tensor) -> Tensor:
        """Frames (..., D) minus their centroids, given by ids (...): (..., d)."""
        return self.project(frames) - self.centroids[ids]

    @cached_property
    def _score_weights(self) -> tuple[Tensor, Tensor]:
        """Weight (D, K) and bias (K,) of the scores, see clustering/assign.py.

        The transform x = (y - mean) @ W is folded in: x @ weight = y @ (W @ weight) - mean @ (W @
        weight). For a spherical codebook the frame's length does not change the ranking of the
        centroids, which all have length 1.
        """
        weight, bias = assign.score_weights(self.centroids)
        if self.spherical:
            bias = torch.zeros_like(bias)
        if self.transform is not None:
            weight = self.transform.matrix.double() @ weight  # (D, K)
            bias = bias - self.transform.mean.double() @ weight
        return weight.float().contiguous(), bias.float()

    def check_features(self, extractor: FeatureExtractor) -> None:
        """Raises ArtefactError, naming each difference, when the codebook was fitted on other
        features than the extractor's.
        """
        other = extractor.fingerprint()
        differences = [
            f"{name}: {self.features.get(name)} here, {other.get(name)} there"
            for name in {**self.features, **other}
            if self.features.get(name) != other.get(name)
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
                f"{self.origin} was fitted on {describe(self.features)} but the frames come from "
                f"{describe(other)} ({'; '.join(differences)}); use the features that it was "
                "fitted on, or fit a codebook on these"
            )

    def tensors(self) -> dict[str, Tensor]:
        """The stored tensors, by name."""
        tensors = {"centroids": self.centroids}
        if self.transform is not None:
            tensors["mean"] = self.transform.mean
            tensors["matrix"] = self.transform.matrix
        return tensors

    def save(self, folder: Path) -> None:
        """Writes `codebook.safetensors` and `codebook.json`.

        Raises HubertPretrainError when the disk is full.
        """
        description: dict[str, Any] = {
            "n_clusters": self.n_clusters,
            "dim": self.dim,
            "sha256": self.fingerprint,
        }
        if self.spherical:
            description["spherical"] = True
        description["grid"] = {"window": self.grid.window, "hop": self.grid.hop}
        description["features"] = self.features
        description["fit"] = self.fit
        codebook_io.write_codebook(folder, self.tensors(), description)

    @staticmethod
    def load(folder: str | Path) -> Codebook:
        """Reads the files of `save`.

        Raises ArtefactError when a file is missing or damaged, or the two do not belong together.
        """
        folder = Path(folder).absolute()
        tensors, description = codebook_io.read_codebook(folder)
        if "parts" in description:
            names = ", ".join(part["name"] for part in description["parts"])
            raise ArtefactError(
                f"{folder}: holds several codebooks ({names}), one was expected; open it as a "
                "CodebookSet"
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
        """The codebook of stored `tensors()` and its description.

        Raises ArtefactError when a tensor is missing.
        """
        try:
            transform = None
            if "mean" in tensors:
                transform = Transform(tensors["mean"].float(), tensors["matrix"].float())
            centroids = tensors["centroids"].float()
        except KeyError as error:
            raise ArtefactError(
                f"{origin}: {codebook_io.CENTROIDS} cannot be read (no tensor {error}); "
                f"{codebook_io.AGAIN}"
            ) from error
        return Codebook(
            centroids=centroids,
            features=description["features"],
            grid=grid,
            fit=description["fit"],
            origin=origin,
            transform=transform,
            spherical=bool(description.get("spherical", False)),
        )
