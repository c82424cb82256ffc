"""Training diagnostics (codebook usage, layer activation scale, embedding norms), computed only on
logging steps, without device synchronisation in between.

Shapes: M masked frames, K clusters, N codebooks, L layer (1-based).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hubert_pretrain import distributed
from hubert_pretrain.clustering.quality import entropy, perplexity
from hubert_pretrain.frames import SAMPLE_RATE
from hubert_pretrain.model.config import HubertConfig
from hubert_pretrain.model.flops import training_flops_per_second
from hubert_pretrain.model.hubert import ActiveLayers
from hubert_pretrain.pretrain.loss import Prediction
from hubert_pretrain.training.strategies import full_tensor


class Health:
    """Diagnostics of one logging step, accumulated on the device over its micro-batches: counts of
    targets and predictions per cluster, and the scale of the layers' outputs.
    """

    def __init__(self, n_clusters: Sequence[int]) -> None:
        """
        Args:
            n_clusters: K_1 ... K_N.
        """
        self.n_clusters = n_clusters
        # Per codebook, (K,) each.
        self._targets: list[Tensor] = []
        self._predictions: list[Tensor] = []
        # (2, layers): sums over the rows for which a layer ran, of the mean square of its output
        # and of 1.
        self._squares: Tensor | None = None

    def measure(self, states: Sequence[Tensor], active: ActiveLayers | None) -> None:
        """Accumulate the scale of the layers' outputs in a micro-batch.

        Args:
            states: (B, T, D) of every layer.
            active: layers that ran, or their rows; None: all did.
        """
        squares = torch.stack(
            [state.detach().float().square().mean(dim=(1, 2)) for state in states]
        )  # (layers, B)
        ran = torch.ones_like(squares)
        for rows, runs in zip(ran, active or [], strict=False):
            if isinstance(runs, Tensor):
                rows.copy_(runs)
            elif not runs:
                rows.zero_()
        sums = torch.stack([(squares * ran).sum(1), ran.sum(1)])
        self._squares = sums if self._squares is None else self._squares + sums

    def add(self, masked: Prediction) -> None:
        """Accumulate the targets and predictions of a micro-batch's masked frames."""
        codebooks = masked.codebooks or (masked,)
        if not self._targets:
            device = masked.nll.device
            self._targets = [torch.zeros(k, device=device) for k in self.n_clusters]
            self._predictions = [torch.zeros(k, device=device) for k in self.n_clusters]
        for index, codebook in enumerate(codebooks):
            assert codebook.targets is not None
            assert codebook.predictions is not None
            _count(self._targets[index], codebook.targets)
            _count(self._predictions[index], codebook.predictions)

    def read(self) -> dict[str, float]:
        """Return the values of this step over all ranks, and reset.

        Every rank must call it. Empty when nothing was measured.
        """
        if not self._targets:
            return {}
        # One transfer: all counts and squares as one vector.
        counts = [*self._targets, *self._predictions]
        squares = [] if self._squares is None else [self._squares.flatten()]
        vector = torch.cat([*counts, *squares]).double()
        numbers = distributed.sum_over_ranks(vector).cpu().numpy()
        *counts_of, sums = np.split(numbers, np.cumsum([len(each) for each in counts]))
        n = len(self.n_clusters)
        values = self._usage(counts_of[:n], counts_of[n:])
        for layer, (square, rows) in enumerate(sums.reshape(2, -1).T.tolist(), start=1):
            if rows:
                values[f"health/layer_scale/{layer:02d}"] = math.sqrt(square / rows)

        self._targets = []
        self._predictions = []
        self._squares = None
        return values

    def _usage(
        self,
        targets: Sequence[NDArray[np.float64]],
        predictions: Sequence[NDArray[np.float64]],
    ) -> dict[str, float]:
        """Usage of each codebook, (K,) counts each, and the sum of the targets' entropies."""
        values: dict[str, float] = {}
        total_entropy = 0.0
        for index in range(len(self.n_clusters)):
            suffix = f"/codebook_{index + 1}" if len(self.n_clusters) > 1 else ""
            of_targets = usage(targets[index].astype(np.int64))
            of_predictions = usage(predictions[index].astype(np.int64))
            total_entropy += of_targets["entropy"]
            for name, value in of_targets.items():
                values[f"health/{name}/targets{suffix}"] = value
            for name, value in of_predictions.items():
                values[f"health/{name}/predictions{suffix}"] = value
        return values | {"health/unigram_entropy": total_entropy}


def usage(counts: NDArray[np.int64]) -> dict[str, float]:
    """Codebook usage from counts (K,): share of clusters that occur, entropy in nats, perplexity,
    share of the most frequent cluster.
    """
    total = max(1, int(counts.sum()))
    return {
        "codebook_use": float((counts > 0).mean()),
        "entropy": entropy(counts),
        "perplexity": perplexity(counts),
        "largest_share": float(counts.max() / total),
    }


def embedding_norms(head: nn.Module) -> dict[str, float]:
    """Norms of the unit embeddings; empty for a head without them.

    The cosine logits do not depend on them, but the relative size of Adam's steps does.
    """
    units = getattr(head, "unit_embeddings", None)
    if units is None:
        return {}
    norms = full_tensor(units.detach()).float().norm(dim=1)
    low, mean, high = torch.stack([norms.min(), norms.mean(), norms.max()]).tolist()
    return {
        "health/embedding_norm/min": low,
        "health/embedding_norm/mean": mean,
        "health/embedding_norm/max": high,
    }


def training_flops(
    config: HubertConfig,
    rows: int,
    samples: int,
    n_clusters: int,
    masked: float,
    *,
    head: str = "cosine",
    supervised_layers: int = 1,
    frozen: bool = False,
) -> float:
    """Operations of a micro-batch (B, S), forward and backward; arguments as in model/flops.py.

    A dropped layer counts as if it had run, as is the custom.
    """
    clip_seconds = samples / SAMPLE_RATE
    per_second = training_flops_per_second(
        config,
        clip_seconds=clip_seconds,
        n_clusters=n_clusters,
        masked=masked,
        head=head,
        supervised_layers=supervised_layers,
        frozen=frozen,
    )
    return rows * clip_seconds * per_second


def _count(counts: Tensor, ids: Tensor) -> None:
    """Add ids (M,) to counts (K,) in place.

    `bincount` would ask the device for the largest id, and wait. Counts are exact in fp32 below 16
    million.
    """
    counts.scatter_add_(0, ids, torch.ones_like(ids, dtype=torch.float32))
