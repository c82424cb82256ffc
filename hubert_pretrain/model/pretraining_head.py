"""What HuBERT is pretrained under: scores of every frame against the clusters of one or several codebooks.

Shapes: D width, M masked frames, d width of the unit embeddings, N codebooks of K_1 ... K_N clusters, K their sum.
Scores of several codebooks stand side by side, (M, K): `logits.split(head.n_clusters, dim=-1)` gives those of each.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class CodebookHead(nn.Module):
    """Scores of each frame against each cluster: cosine of a projection and a unit embedding, over a temperature (paper, eq. 3).

    One matrix product of normalised vectors; the reference code's expanded (K + 1, M, d) tensor computes the same. With several
    codebooks each has its part of the projection, in order (fairseq's `untie_final_proj`), or all read the same one.
    """

    kind: ClassVar[str] = "pretrain"

    def __init__(
        self,
        hidden_size: int,
        projection_size: int,
        n_clusters: int | Sequence[int],
        temperature: float = 0.1,
        *,
        tie_projections: bool = False,
    ) -> None:
        """
        Args:
            hidden_size: D.
            projection_size: d.
            n_clusters: K, or one number per codebook.
            temperature: what cosines are divided by.
            tie_projections: all codebooks read one projection. (With one codebook there is nothing to tie.)
        """
        super().__init__()
        self.n_clusters = _sizes(n_clusters)
        self.tie_projections = tie_projections
        self.projection = nn.Linear(hidden_size, projection_size * (1 if tie_projections else len(self.n_clusters)))
        # U[0, 1) as in fairseq: all units start in nearly the same direction, so the loss starts at about log K.
        self.unit_embeddings = nn.Parameter(torch.empty(sum(self.n_clusters), projection_size).uniform_())
        self.temperature = temperature

    @property
    def settings(self) -> dict[str, Any]:
        """Keyword arguments that rebuild this head."""
        return {
            "hidden_size": self.projection.in_features,
            "projection_size": self.unit_embeddings.shape[1],
            "n_clusters": _one_or_several(self.n_clusters),
            "temperature": self.temperature,
            "tie_projections": self.tie_projections,
        }

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., K) logits, fp32 whatever the precision: bf16 would round cosines by .004, logits by .04."""
        projected = self.projection(x)
        with torch.autocast(x.device.type, enabled=False):
            units = F.normalize(self.unit_embeddings.float(), dim=-1, eps=1e-8)
            if self.tie_projections or len(self.n_clusters) == 1:
                return self._cosines(projected, units)
            parts = zip(projected.chunk(len(self.n_clusters), dim=-1), units.split(self.n_clusters), strict=True)
            return torch.cat([self._cosines(part, group) for part, group in parts], dim=-1)

    def _cosines(self, projected: Tensor, units: Tensor) -> Tensor:
        """(..., d) and unit vectors (K, d) -> (..., K)."""
        frames = F.normalize(projected.float(), dim=-1, eps=1e-8)
        return frames @ units.T / self.temperature


class SoftmaxHead(nn.Module):
    """A plain linear classifier over the clusters, without unit embeddings and temperature."""

    kind: ClassVar[str] = "pretrain"

    def __init__(self, hidden_size: int, n_clusters: int | Sequence[int]) -> None:
        """
        Args:
            hidden_size: D.
            n_clusters: K, or one number per codebook.
        """
        super().__init__()
        self.n_clusters = _sizes(n_clusters)
        self.projection = nn.Linear(hidden_size, sum(self.n_clusters))

    @property
    def settings(self) -> dict[str, Any]:
        """Keyword arguments that rebuild this head."""
        return {"hidden_size": self.projection.in_features, "n_clusters": _one_or_several(self.n_clusters)}

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., K) logits, fp32 whatever the precision."""
        with torch.autocast(x.device.type, enabled=False):
            return F.linear(x.float(), self.projection.weight.float(), self.projection.bias.float())


def pretraining_head(
    hidden_size: int, n_clusters: int | Sequence[int], projection_size: int | None = None, **cosine: Any
) -> CodebookHead | SoftmaxHead:
    """The head with these settings: a CodebookHead (to which `cosine` goes), or without a `projection_size` a SoftmaxHead."""
    if projection_size is None:
        return SoftmaxHead(hidden_size, n_clusters)
    return CodebookHead(hidden_size, projection_size, n_clusters, **cosine)


def _sizes(n_clusters: int | Sequence[int]) -> tuple[int, ...]:
    return (n_clusters,) if isinstance(n_clusters, int) else tuple(n_clusters)


def _one_or_several(sizes: tuple[int, ...]) -> int | list[int]:
    return sizes[0] if len(sizes) == 1 else list(sizes)
