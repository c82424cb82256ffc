"""Frames -> a set of codebooks: plain, product, ensemble or residual k-means, behind PCA or on the
sphere.

Tensor alphabet: N frames, D width, d width behind a transform.
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
from hubert_pretrain.clustering.pca import fit_transform
from hubert_pretrain.errors import ConfigError
from hubert_pretrain.frames import FrameGrid

TRANSFORM_FRAMES = 1 << 17
"""Frames that principal components are estimated from: 40 minutes of speech determine them."""


@dataclass(frozen=True)
class CodebookSpec:
    """One codebook that is wanted."""

    name: str
    n_clusters: int
    columns: tuple[int, int]
    """[start, stop) of the frame."""
    residual: bool = False
    """Fitted on what the codebook before it leaves of the same columns."""


def parse_specs(
    codebooks: Sequence[dict[str, Any]], *, dim: int, n_clusters: int
) -> list[CodebookSpec]:
    """`clustering.codebooks` as plans; one over all columns when there are none.

    Args:
        codebooks: {name, columns, n_clusters, residual} each; all but the name may be left out: all
        columns (of the codebook before it, for
            a residual one), the common number of clusters, not residual.
        dim: D, the width of the frames.
        n_clusters: the common number of clusters.

    Raises ConfigError for a name that is used twice, columns that frames do not have, or a residual
    of nothing.
    """
    if not codebooks:
        return [CodebookSpec(ALL, n_clusters, (0, dim))]
    found: list[CodebookSpec] = []
    for number, each in enumerate(codebooks):
        key = f"clustering.codebooks[{number}]"
        name = str(each["name"])
        residual = bool(each.get("residual", False))
        if residual and not found:
            raise ConfigError(
                f"{key} ({name!r}) is residual, but there is no codebook before it; put the one whose rest it fits first"
            )
        before = found[-1].columns if residual else (0, dim)
        columns = tuple(each.get("columns") or before)
        if len(columns) != 2 or not 0 <= columns[0] < columns[1] <= dim:
            raise ConfigError(
                f"{key}.columns={list(columns)}: expected [start, stop] within the {dim} columns of the features"
            )
        if residual and columns != before:
            raise ConfigError(
                f"{key}.columns={list(columns)}: a residual codebook has those of the one before it, {list(before)}; leave it out"
            )
        if "." in name or name in [plan.name for plan in found]:
            raise ConfigError(
                f"{key}.name={name!r}: expected a name without a dot that no other codebook has"
            )
        found.append(
            CodebookSpec(
                name, int(each.get("n_clusters", n_clusters)), (columns[0], columns[1]), residual
            )
        )
    return found


@dataclass(frozen=True)
class CodebookFitter:
    """How codebooks are fitted."""

    estimator: KMeans
    """Its settings, but for the number of clusters and the seed."""
    seed: int | Callable[[str], int]
    """Of everything, or of each codebook by its name."""
    pca_dims: int = 0
    whiten: bool = False
    folder: Path | None = None
    """Where an interrupted fit leaves how far it came."""

    def fit(
        self,
        shard: RankFrames,
        wanted: Sequence[CodebookSpec],
        *,
        features: dict[str, Any],
        grid: FrameGrid,
    ) -> CodebookSet:
        """Codebooks for frames (N, D), in order. Their `fit` says of each: n_clusters, inertia
        (mean squared distance, in the space of its centroids), dead_clusters, reseeded and
        iterations. Raises what `KMeans.fit` raises."""
        parts: list[CodebookPart] = []
        view: Callable[[Tensor], Tensor] = _identity
        for plan in wanted:
            if plan.residual:
                view = _residual(parts[-1].codebook, view)
            else:
                view = _identity if plan.columns == (0, shard.dim) else _columns(*plan.columns)
            codebook = self._fit(
                shard,
                plan,
                view,
                parts[-1].codebook.centroids.shape[1] if plan.residual else plan.columns,
            )
            parts.append(
                CodebookPart(
                    plan.name,
                    plan.columns,
                    replace(codebook, features=features, grid=grid),
                    plan.residual,
                )
            )
        return CodebookSet(tuple(parts), shard.dim)

    def seed_of(self, name: str) -> int:
        """The seed of a codebook."""
        return self.seed(name) if callable(self.seed) else seeds.derive(self.seed, name)

    def _fit(
        self,
        shard: RankFrames,
        plan: CodebookSpec,
        view: Callable[[Tensor], Tensor],
        width: int | tuple[int, int],
    ) -> Codebook:
        seed = self.seed_of(plan.name)
        dim = width if isinstance(width, int) else width[1] - width[0]
        seen = _mapped(shard, view, dim)
        spherical = self.estimator.spherical and not plan.residual
        blank = Codebook(
            torch.empty(plan.n_clusters, dim), {}, FrameGrid(1, 1), spherical=spherical
        )
        if (self.pca_dims or self.whiten) and not plan.residual:
            survey = summarise(
                seen, sample_frames=TRANSFORM_FRAMES, seed=seeds.derive(seed, "transform")
            )
            transform = fit_transform(survey.sample, dims=self.pca_dims, whiten=self.whiten)
            assert transform is not None
            blank = replace(blank, transform=transform)
            dim = transform.matrix.shape[1]
        if blank.transform is not None or spherical:
            seen = _mapped(shard, _then(view, blank.project), dim)
        estimator = replace(
            self.estimator, n_clusters=plan.n_clusters, seed=seed, spherical=spherical
        )
        estimator.fit(
            seen, state=None if self.folder is None else self.folder / f"{plan.name}.state"
        )
        facts = {
            "n_clusters": plan.n_clusters,
            "inertia": estimator.inertia_ / shard.total,
            "dead_clusters": int((estimator.counts_ == 0).sum()),
            "reseeded": estimator.reseeded_,
            "iterations": estimator.n_iter_,
        }
        return replace(blank, centroids=torch.from_numpy(estimator.cluster_centers_), fit=facts)


def fit_facts(codebooks: CodebookSet) -> dict[str, Any]:
    """What `fit` measured of a codebook, or of several as lists in their order."""
    each = [part.codebook.fit for part in codebooks.parts]
    return (
        each[0] if len(each) == 1 else {name: [facts[name] for facts in each] for name in each[0]}
    )


def _mapped(shard: RankFrames, view: Callable[[Tensor], Tensor], dim: int) -> RankFrames:
    return (
        shard if view is _identity else replace(shard, frames=MappedFrames(shard.frames, view, dim))
    )


def _identity(frames: Tensor) -> Tensor:
    return frames


def _columns(start: int, stop: int) -> Callable[[Tensor], Tensor]:
    return lambda frames: frames[:, start:stop]


def _then(
    first: Callable[[Tensor], Tensor], second: Callable[[Tensor], Tensor]
) -> Callable[[Tensor], Tensor]:
    return lambda frames: second(first(frames))


def _residual(codebook: Codebook, view: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    def rest(frames: Tensor) -> Tensor:
        seen = view(frames).contiguous()
        return codebook.residual(seen, codebook.assign(seen))

    return rest
