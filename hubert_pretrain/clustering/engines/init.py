"""Initial centroids: greedy k-means++ (Arthur and Vassilvitskii 2007), the best of several starts;
and new places for empty clusters.

Tensor letters: n frames of the sample, D width of a frame, K clusters, L candidates per draw.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from hubert_pretrain import seeds
from hubert_pretrain.clustering.assign import assign, float32_weights
from hubert_pretrain.clustering.engines.threads import parallel_map

ON_CENTROID = 1e-6
"""A frame whose squared distance to its centroid is below this share of the frames' variance equals
its centroid up to rounding."""
RESEED_BLOCK = 1 << 14
"""Frames whose distances `reseed_empty` computes at once."""


def kmeans_plusplus(frames: Tensor, n_clusters: int, *, restarts: int, seed: int) -> Tensor:
    """Centroids (K, D) chosen among frames (n, D), n >= K. A pure function of its arguments.

    Each centroid is drawn with probability proportional to the squared distance to the centroids
    before it, as the best of 2 + ln K candidates (greedy k-means++). Of `restarts` starts the one
    with the smallest inertia is returned.
    """
    # Distances are computed from inner products; centring keeps those small, and with them the
    # rounding errors.
    centred = frames - frames.double().mean(0).float()
    squared_norms = centred.square().sum(1)  # (n,)

    def start(restart: int) -> tuple[Tensor, float]:
        start_seed = seeds.derive(seed, "k-means++", restart)
        return _draw_centroids(centred, squared_norms, n_clusters, start_seed)

    # A start is a chain of small steps, in which torch's threads would mostly wait for each other:
    # on a CPU whole starts run in parallel instead.
    if frames.device.type == "cpu":
        starts = parallel_map(start, range(restarts))
    else:
        starts = [start(restart) for restart in range(restarts)]
    rows, _ = min(starts, key=lambda rows_and_inertia: rows_and_inertia[1])
    return frames[rows]


def _draw_centroids(
    centred: Tensor, squared_norms: Tensor, n_clusters: int, seed: int
) -> tuple[Tensor, float]:
    """Rows (K,) of the chosen frames, and the inertia of all frames around them."""
    generator = seeds.generator(seed)
    candidates = 2 + int(math.log(n_clusters))
    draws = torch.from_numpy(generator.random((n_clusters, candidates))).to(squared_norms)  # (K, L)
    rows = torch.empty(n_clusters, dtype=torch.long, device=squared_norms.device)
    rows[0] = int(draws[0, 0] * len(squared_norms))
    closest = _squared_distances(centred, squared_norms, rows[:1])[0]  # (n,): to nearest centroid
    for number in range(1, n_clusters):
        # Candidates by inverting the cumulative distribution of the squared distances.
        cumulative = closest.cumsum(0)
        drawn = torch.searchsorted(cumulative, draws[number] * cumulative[-1])  # (L,)
        drawn = drawn.clamp_(max=len(squared_norms) - 1)
        # The candidate that leaves the smallest inertia wins.
        distances = _squared_distances(centred, squared_norms, drawn)
        closest_after = torch.minimum(distances, closest)  # (L, n)
        winner = closest_after.sum(1).argmin()
        rows[number] = drawn[winner]
        closest = closest_after[winner]
    return rows, float(closest.sum(dtype=torch.float64))


def _squared_distances(centred: Tensor, squared_norms: Tensor, rows: Tensor) -> Tensor:
    """Squared distances of every frame to the frames `rows` (L,): (L, n)."""
    inner = centred[rows] @ centred.T
    return (squared_norms[rows, None] + squared_norms - 2 * inner).clamp_(min=0)


def reseed_empty(frames: Tensor, centroids: Tensor, count: int, seed: int) -> Tensor:
    """New centroids for `count` empty clusters: frames (n, D) drawn with probability proportional
    to the squared distance to their centroid, as in k-means++.

    Returns fewer than `count`, or none, when not so many frames lie away from their centroid: then
    there are more clusters than distinct frames.
    """
    weight, bias = float32_weights(centroids)
    # Computed as differences, not from inner products: a frame on its centroid must give exactly 0.
    distances = torch.cat(
        [
            (block - centroids[assign(block, weight, bias)]).square().sum(1)
            for block in frames.split(RESEED_BLOCK)
        ]
    )  # (n,)
    is_away = distances > ON_CENTROID * frames.var(dim=0, correction=0).sum()
    num_away = int(is_away.sum())
    if num_away == 0:
        return frames[:0]
    # Gumbel trick: the largest of these keys are a draw without replacement, with probabilities
    # proportional to the distances.
    uniform = torch.from_numpy(seeds.generator(seed).random(len(frames))).to(distances)
    gumbel = -(-uniform.clamp(1e-12, 1 - 1e-7).log()).log()
    keys = torch.where(is_away, distances.log() + gumbel, -math.inf)
    return frames[keys.topk(min(count, num_away)).indices]
