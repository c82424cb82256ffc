"""Fits a set of codebooks: plain, product, ensemble or residual k-means, with optional PCA or
cosine distance.

Tensor letters: N frames, D width of a frame, d width after a view or transform.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hubert_pretrain import seeds
from hubert_pretrain.clustering.codebook import Codebook
from hubert_pretrain.clustering.codebook_set import ALL, CodebookPart, CodebookSet
from hubert_pretrain.clustering.engines.frame_summary import summarise
from hubert_pretrain.clustering.frame_source import MappedFrames, RankFrames
from hubert_pretrain.clustering.kmeans import KMeans
from hubert_pretrain.clustering.pca import Transform, fit_pca
from hubert_pretrain.errors import ConfigError
from hubert_pretrain.frames import FrameGrid

PCA_FRAMES = 1 << 17
"""Frames that principal components are estimated from, where the memory allows: 40 minutes of
speech are enough."""

View = Callable[[Tensor], Tensor]
"""(n, D) -> (n, d): the part of the frames that a codebook is fitted on."""


@dataclass(frozen=True)
class CodebookSpec:
    """Request for one codebook."""

    name: str
    n_clusters: int
    columns: tuple[int, int]
    """[start, stop) of the frame."""
    residual: bool = False
    """Fit on the residual of the codebook before it, over the same columns."""


def parse_specs(
    codebooks: Sequence[dict[str, Any]], *, dim: int, n_clusters: int
) -> list[CodebookSpec]:
    """The specs of `clustering.codebooks`; one codebook over all columns when the list is empty.

    Args:
        codebooks: {name, columns, n_clusters, residual} each. All but the name are optional: the
            defaults are all columns (for a residual codebook those of the one before it), the
            common number of clusters, not residual.
        dim: D, the width of the frames.
        n_clusters: the common number of clusters.

    Raises ConfigError for a repeated name, columns outside the frame, or a residual codebook
    without one before it.
    """
    if not codebooks:
        return [CodebookSpec(ALL, n_clusters, (0, dim))]
    specs: list[CodebookSpec] = []
    for number, each in enumerate(codebooks):
        key = f"clustering.codebooks[{number}]"
        name = str(each["name"])
        residual = bool(each.get("residual", False))
        if residual and not specs:
            raise ConfigError(
                f"{key} ({name!r}) is residual, but there is no codebook before it; put the one "
                "whose residual it fits first"
            )
        default = specs[-1].columns if residual else (0, dim)
        columns = tuple(each.get("columns") or default)
        if len(columns) != 2 or not 0 <= columns[0] < columns[1] <= dim:
            raise ConfigError(
                f"{key}.columns={list(columns)}: expected [start, stop] within the {dim} columns "
                "of the features"
            )
        if residual and columns != default:
            raise ConfigError(
                f"{key}.columns={list(columns)}: a residual codebook has the columns of the one "
                f"before it, {list(default)}; leave them out"
            )
        if "." in name or name in [spec.name for spec in specs]:
            raise ConfigError(
                f"{key}.name={name!r}: expected a name without a dot that no other codebook has"
            )
        specs.append(
            CodebookSpec(
                name=name,
                n_clusters=int(each.get("n_clusters", n_clusters)),
                columns=(columns[0], columns[1]),
                residual=residual,
            )
        )
    return specs


@dataclass(frozen=True)
class CodebookFitter:
    """Settings of a fit."""

    estimator: KMeans
    """Its settings are used, except the number of clusters and the seed."""
    seed: int | Callable[[str], int]
    """One seed, from which those of the codebooks are derived, or the seed of each by name."""
    pca_dims: int = 0
    whiten: bool = False
    folder: Path | None = None
    """For the states from which an interrupted fit continues."""

    def fit(
        self,
        shard: RankFrames,
        specs: Sequence[CodebookSpec],
        *,
        features: dict[str, Any],
        grid: FrameGrid,
    ) -> CodebookSet:
        """Codebooks for frames (N, D), fitted in the order of `specs`.

        The `fit` of each codebook states n_clusters, inertia (mean squared distance, in the space
        of its centroids), dead_clusters (without a frame), reseeded and iterations. Raises the
        errors of `KMeans.fit`.
        """
        parts: list[CodebookPart] = []
        view: View | None = None
        for spec in specs:
            if spec.residual:
                previous = parts[-1].codebook
                view = _residual_view(previous, view)
                dim = previous.centroids.shape[1]
            else:
                start, stop = spec.columns
                view = None if spec.columns == (0, shard.dim) else _column_view(start, stop)
                dim = stop - start
            codebook = self._fit_codebook(shard, spec, view, dim)
            codebook = replace(codebook, features=features, grid=grid)
            parts.append(CodebookPart(spec.name, spec.columns, codebook, spec.residual))
        return CodebookSet(tuple(parts), shard.dim)

    def seed_of(self, name: str) -> int:
        """The seed of a codebook."""
        return self.seed(name) if callable(self.seed) else seeds.derive(self.seed, name)

    def _fit_codebook(
        self, shard: RankFrames, spec: CodebookSpec, view: View | None, dim: int
    ) -> Codebook:
        """A codebook without features and grid, fitted on `view` of the frames, of width `dim`."""
        seed = self.seed_of(spec.name)
        # Residuals are differences in the space of the codebook before, which has been transformed
        # and normalised already.
        spherical = self.estimator.spherical and not spec.residual
        transform = None
        if not spec.residual:
            transform = self._fit_transform(_mapped(shard, view, dim), seed)
        if transform is not None:
            dim = transform.matrix.shape[1]
        codebook = Codebook(
            centroids=torch.empty(spec.n_clusters, dim),
            features={},
            grid=FrameGrid(1, 1),
            transform=transform,
            spherical=spherical,
        )
        if transform is not None or spherical:
            view = _compose(view, codebook.project)

        estimator = replace(
            self.estimator, n_clusters=spec.n_clusters, seed=seed, spherical=spherical
        )
        state_path = None if self.folder is None else self.folder / f"{spec.name}.state"
        estimator.fit(_mapped(shard, view, dim), state_path=state_path)
        facts = {
            "n_clusters": spec.n_clusters,
            "inertia": estimator.inertia_ / shard.total,
            "dead_clusters": int((estimator.counts_ == 0).sum()),
            "reseeded": estimator.reseeded_,
            "iterations": estimator.n_iter_,
        }
        return replace(codebook, centroids=torch.from_numpy(estimator.cluster_centers_), fit=facts)

    def _fit_transform(self, shard: RankFrames, seed: int) -> Transform | None:
        if not self.pca_dims and not self.whiten:
            return None
        most = max(1, self.estimator.max_sample_bytes // (4 * shard.dim))
        sample_frames = min(PCA_FRAMES, most)
        summary = summarise(
            shard, sample_frames=sample_frames, seed=seeds.derive(seed, "transform")
        )
        return fit_pca(summary.sample, dims=self.pca_dims, whiten=self.whiten)


def fit_facts(codebooks: CodebookSet) -> dict[str, Any]:
    """The `fit` of a codebook, or of several codebooks as lists in their order."""
    of_codebooks = [part.codebook.fit for part in codebooks.parts]
    if len(of_codebooks) == 1:
        return of_codebooks[0]
    return {name: [facts[name] for facts in of_codebooks] for name in of_codebooks[0]}


def describe_fit(facts: dict[str, Any]) -> str:
    """One line for the log, from `fit_facts`."""
    shown = {
        "K": facts["n_clusters"],
        "mean squared distance": facts["inertia"],
        "empty clusters": facts["dead_clusters"],
        "passes": facts["iterations"],
    }
    return "codebook: " + ", ".join(f"{name} {_text(value)}" for name, value in shown.items())


def _text(value: Any) -> str:
    """A number, or those of several codebooks."""
    values = value if isinstance(value, list) else [value]
    return " + ".join(f"{each:.4g}" if isinstance(each, float) else str(each) for each in values)


# -- views of the frames; None is the identity


def _mapped(shard: RankFrames, view: View | None, dim: int) -> RankFrames:
    if view is None:
        return shard
    return replace(shard, frames=MappedFrames(shard.frames, view, dim))


def _column_view(start: int, stop: int) -> View:
    return lambda frames: frames[:, start:stop]


def _compose(first: View | None, second: View) -> View:
    return second if first is None else lambda frames: second(first(frames))


def _residual_view(codebook: Codebook, view: View | None) -> View:
    def residual(frames: Tensor) -> Tensor:
        values = (frames if view is None else view(frames)).contiguous()
        return codebook.residual(values, codebook.assign(values))

    return residual
