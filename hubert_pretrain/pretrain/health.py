"""How a pretraining feels, measured in the steps that are logged and nowhere else: nothing here
waits for the device between two logs.

Shapes: M hidden frames, K clusters, N codebooks, L layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hubert_pretrain import distributed
from hubert_pretrain.clustering.quality import entropy, perplexity
from hubert_pretrain.frames import SAMPLE_RATE
from hubert_pretrain.model.config import HubertConfig
from hubert_pretrain.model.flops import training_flops_per_second
from hubert_pretrain.pretrain.loss import Prediction
from hubert_pretrain.training.strategies import full_tensor


class Health:
    """Collects on the device what one logging step shows: which clusters are asked for and
    predicted, and how large layers' outputs are.
    """

    def __init__(self, n_clusters: Sequence[int]) -> None:
        """
        Args:
            n_clusters: K_1 ... K_N.
        """
        self.n_clusters = n_clusters
        self._counts: list[
            tuple[Tensor, Tensor]
        ] = []  # per codebook: of targets (K,) and of predictions (K,)
        self._scales: dict[int, Tensor] = {}  # L -> sum over micro-batches of the rms of its output
        self._passes = 0

    def measure(self, states: Sequence[Tensor], keep: Sequence[bool] | None) -> None:
        """How large the outputs of the layers are (B, T, D) that ran in a micro-batch; all did when
        `keep` is None.

        Not by hooks on the layers: inside a compiled network each would be a graph of its own for
        every number of micro-batches.
        """
        self._passes += 1
        for layer, state in enumerate(states, start=1):
            if keep is None or keep[layer - 1]:
                scale = state.detach().float().square().mean().sqrt()
                self._scales[layer] = (
                    self._scales[layer] + scale if layer in self._scales else scale
                )

    def add(self, masked: Prediction) -> None:
        """The hidden frames of a micro-batch."""
        parts = masked.codebooks or (masked,)
        new = []
        for part, k in zip(parts, self.n_clusters, strict=True):
            assert part.wanted is not None
            assert part.guessed is not None
            new.append((_count(part.wanted, k), _count(part.guessed, k)))
        old = self._counts or [(torch.zeros_like(a), torch.zeros_like(b)) for a, b in new]
        self._counts = [(a + c, b + d) for (a, b), (c, d) in zip(old, new, strict=True)]

    def read(self) -> dict[str, float]:
        """The values of this step, over all ranks, which must all call it; forgets them. Empty when
        nothing was measured.
        """
        if not self._counts:
            return {}
        sums = [each for pair in self._counts for each in pair]
        scales = [self._scales[layer] / self._passes for layer in sorted(self._scales)]
        vector = torch.cat([*sums, *([torch.stack(scales).float()] if scales else [])]).double()
        vector = distributed.sum_over_ranks(vector)
        numbers = vector.cpu().numpy()
        values: dict[str, float] = {}
        at = 0
        for codebook, k in enumerate(self.n_clusters, start=1):
            suffix = f"/codebook_{codebook}" if len(self.n_clusters) > 1 else ""
            for kind in ("targets", "predictions"):
                values |= {
                    f"health/{name}/{kind}{suffix}": value
                    for name, value in usage(numbers[at : at + k].astype(np.int64)).items()
                }
                at += k
        values["health/unigram_entropy"] = sum(
            value for name, value in values.items() if name.startswith("health/entropy/targets")
        )
        # A layer that is dropped in this step is so on every rank.
        for layer, scale in zip(sorted(self._scales), numbers[at:].tolist(), strict=True):
            values[f"health/layer_scale/{layer:02d}"] = scale / distributed.world_size()
        self._counts = []
        self._scales = {}
        self._passes = 0
        return values


def usage(counts: np.ndarray[Any, np.dtype[np.int64]]) -> dict[str, float]:
    """Of counts (K,): share of clusters that occur, entropy in nats, perplexity, share of the most
    frequent one.
    """
    total = max(1, int(counts.sum()))
    return {
        "codebook_use": float((counts > 0).mean()),
        "entropy": entropy(counts),
        "perplexity": perplexity(counts),
        "largest_share": float(counts.max() / total),
    }


def embedding_norms(head: nn.Module) -> dict[str, float]:
    """Length of the unit embeddings; nothing for a head without them. Cosines do not see it, but
    Adam's steps do.
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
    config: HubertConfig, rows: int, samples: int, n_clusters: int, masked: float, **step: Any
) -> float:
    """Operations of a micro-batch (B, S), forward and backward; `step` as in model/flops.py. A
    dropped layer counts as if it had run, as is the custom."""
    clip_seconds = samples / SAMPLE_RATE
    return (
        rows
        * clip_seconds
        * training_flops_per_second(
            config, clip_seconds=clip_seconds, n_clusters=n_clusters, masked=masked, **step
        )
    )


def _count(ids: Tensor, n_clusters: int) -> Tensor:
    """(M,) -> (K,) counts. `bincount` would ask the device for the largest id, and wait; counts are
    exact in fp32 below 16 million.
    """
    return torch.zeros(n_clusters, device=ids.device).scatter_add_(
        0, ids, torch.ones_like(ids, dtype=torch.float32)
    )
