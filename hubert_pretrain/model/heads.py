"""Output heads: pretraining (cosine or softmax over clusters), CTC characters, and utterance
classification.

Letters: B utterances, T frames, D width, d width of the unit embeddings, K clusters of all
codebooks, V symbols, N layers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hubert_pretrain.model.hubert import HubertOutput


class CodebookHead(nn.Module):
    """Logits of each frame over the clusters: cosine of a projection and a unit embedding, divided
    by a temperature (paper, eq. 3).

    One matrix product of normalised vectors; fairseq computes the same from an expanded
    (K + 1, M, d) tensor. Several codebooks have a part of the projection each, in order (fairseq's
    `untie_final_proj`), or share one projection.
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
            temperature: divisor of the cosines.
            tie_projections: all codebooks share one projection; without effect on one codebook.
        """
        super().__init__()
        self.n_clusters = _sizes(n_clusters)
        self.tie_projections = tie_projections
        self.projection = nn.Linear(
            hidden_size, projection_size * (1 if tie_projections else len(self.n_clusters))
        )
        # Uniform in [0, 1) as in fairseq: all unit embeddings begin in nearly the same direction,
        # so the loss begins at about log K.
        self.unit_embeddings = nn.Parameter(
            torch.empty(sum(self.n_clusters), projection_size).uniform_()
        )
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
        """(..., D) -> (..., K) logits, always fp32: bf16 would round cosines by .004 and logits by
        .04.
        """
        projected = self.projection(x)
        with torch.autocast(x.device.type, enabled=False):
            units = F.normalize(self.unit_embeddings.float(), dim=-1, eps=1e-8)
            if self.tie_projections or len(self.n_clusters) == 1:
                return self._cosines(projected, units)
            parts = zip(
                projected.chunk(len(self.n_clusters), dim=-1),
                units.split(self.n_clusters),
                strict=True,
            )
            return torch.cat([self._cosines(part, group) for part, group in parts], dim=-1)

    def _cosines(self, projected: Tensor, units: Tensor) -> Tensor:
        """(..., d) and unit vectors (K, d) -> (..., K)."""
        frames = F.normalize(projected.float(), dim=-1, eps=1e-8)
        return frames @ units.T / self.temperature


class SoftmaxHead(nn.Module):
    """Linear classifier over the clusters, without unit embeddings and temperature."""

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
        return {
            "hidden_size": self.projection.in_features,
            "n_clusters": _one_or_several(self.n_clusters),
        }

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., K) logits, always fp32."""
        with torch.autocast(x.device.type, enabled=False):
            return F.linear(x.float(), self.projection.weight.float(), self.projection.bias.float())


class CTCHead(nn.Module):
    """Logits of each frame over the symbols of a vocabulary, for CTC (fairseq's HubertEncoder.proj,
    `transformers`' lm_head).
    """

    kind: ClassVar[str] = "ctc"

    def __init__(self, hidden_size: int, vocabulary_size: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(hidden_size, vocabulary_size)
        nn.init.xavier_uniform_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    @property
    def settings(self) -> dict[str, Any]:
        """Keyword arguments that rebuild this head."""
        return {
            "hidden_size": self.linear.in_features,
            "vocabulary_size": self.linear.out_features,
            "dropout": self.dropout.p,
        }

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, V) logits; the first symbol is the blank."""
        return self.linear(self.dropout(x))


class ClassificationHead(nn.Module):
    """Classes of utterances: layers (weighted, or the last), projection, mean over valid frames,
    classifier.

    The same computation as `transformers.HubertForSequenceClassification` 5.x: the weighted sum
    runs over the input of layer 1 and the output of each layer, for pre-norm models without the
    final norm.
    """

    kind: ClassVar[str] = "classify"

    def __init__(
        self,
        hidden_size: int,
        n_classes: int,
        projection_size: int = 256,
        n_layers: int = 0,
        weighted_layers: bool = False,
    ) -> None:
        super().__init__()
        self.layer_weights = (
            nn.Parameter(torch.full((n_layers + 1,), 1.0 / (n_layers + 1)))
            if weighted_layers
            else None
        )
        self.projection = nn.Linear(hidden_size, projection_size)
        self.linear = nn.Linear(projection_size, n_classes)

    @property
    def weighted_layers(self) -> bool:
        """True when it needs every layer: run the network with `hidden_states=True` then."""
        return self.layer_weights is not None

    @property
    def settings(self) -> dict[str, Any]:
        """Keyword arguments that rebuild this head."""
        return {
            "hidden_size": self.projection.in_features,
            "n_classes": self.linear.out_features,
            "projection_size": self.projection.out_features,
            "n_layers": 0 if self.layer_weights is None else len(self.layer_weights) - 1,
            "weighted_layers": self.weighted_layers,
        }

    def forward(self, output: HubertOutput, valid: Tensor | None = None) -> Tensor:
        """The network's output and real frames (B, T) bool (None: all) -> (B, classes) logits."""
        x = self.projection(self._mixed(output))  # (B, T, projection_size)
        if valid is None:
            return self.linear(x.mean(1))
        real = valid[..., None].to(x.dtype)
        return self.linear((x * real).sum(1) / real.sum(1))

    def _mixed(self, output: HubertOutput) -> Tensor:
        if self.layer_weights is None:
            return output.last
        if output.hidden_states is None:
            raise ValueError(
                "a weighted layer sum needs every layer: run the network with hidden_states=True"
            )
        states = torch.stack([output.encoder_input, *output.hidden_states])  # (N + 1, B, T, D)
        return torch.einsum("n,nbtd->btd", self.layer_weights.softmax(0), states)


def pretraining_head(
    hidden_size: int,
    n_clusters: int | Sequence[int],
    projection_size: int | None = None,
    **cosine: Any,
) -> CodebookHead | SoftmaxHead:
    """A CodebookHead, or a SoftmaxHead when there is no `projection_size`.

    cosine: further settings of a CodebookHead.
    """
    if projection_size is None:
        return SoftmaxHead(hidden_size, n_clusters)
    return CodebookHead(hidden_size, projection_size, n_clusters, **cosine)


Head: TypeAlias = CodebookHead | SoftmaxHead | CTCHead | ClassificationHead
HEADS: dict[str, Callable[..., Head]] = {
    CodebookHead.kind: pretraining_head,
    CTCHead.kind: CTCHead,
    ClassificationHead.kind: ClassificationHead,
}
"""Kind of checkpoint -> function that builds its head from the head's `settings`."""


def _sizes(n_clusters: int | Sequence[int]) -> tuple[int, ...]:
    return (n_clusters,) if isinstance(n_clusters, int) else tuple(n_clusters)


def _one_or_several(sizes: tuple[int, ...]) -> int | list[int]:
    return sizes[0] if len(sizes) == 1 else list(sizes)
