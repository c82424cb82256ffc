"""Where Lloyd's iterations begin: k-means++ on a sample (Arthur and Vassilvitskii 2007), greedy,
the best of several starts.

Tensor alphabet: n frames of the sample, D width, K clusters, L candidates.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from hubert_pretrain import seeds
from hubert_pretrain.clustering.assign import assign, score_weights
from hubert_pretrain.clustering.engines.threads import at_once

NOTHING = 1e-6
"""A frame whose squared distance to its centroid is below this share of the frames' variance lies
on it, up to rounding.
"""


def kmeans_plusplus(frames: Tensor, n_clusters: int, *, restarts: int, seed: int) -> Tensor:
    """Centroids (K, D) among frames (n, D), n >= K: each is drawn with probability proportional to
    its squared distance to those before it, as the best of 2 + ln K candidates; the start with the
    smallest inertia is kept. A pure function of its arguments."""
    centred = frames - frames.double().mean(0).float()
    lengths = centred.square().sum(1)  # (n,)

    def start(restart: int) -> tuple[Tensor, float]:
        return _start(centred, lengths, n_clusters, seeds.derive(seed, "k-means++", restart))

    # Starts side by side: each is a chain of small steps, in which threads would mostly wait for
    # each other.
    found = (
        at_once(start, range(restarts))
        if frames.device.type == "cpu"
        else map(start, range(restarts))
    )
    chosen, _ = min(found, key=lambda one: one[1])
    return frames[chosen]


def _start(centred: Tensor, lengths: Tensor, n_clusters: int, seed: int) -> tuple[Tensor, float]:
    """Rows (K,) of the frames that were drawn, and the inertia of all frames around them."""
    generator = seeds.generator(seed)
    candidates = 2 + int(math.log(n_clusters))
    draws = torch.from_numpy(generator.random((n_clusters, candidates))).to(lengths)  # (K, L)
    rows = torch.empty(n_clusters, dtype=torch.long, device=lengths.device)
    rows[0] = int(draws[0, 0] * len(lengths))
    closest = _distances(centred, lengths, rows[:1])[0]  # (n,)
    for number in range(1, n_clusters):
        cumulated = closest.cumsum(0)
        drawn = torch.searchsorted(cumulated, draws[number] * cumulated[-1]).clamp_(
            max=len(lengths) - 1
        )  # (L,)
        after = torch.minimum(_distances(centred, lengths, drawn), closest)  # (L, n)
        winner = after.sum(1).argmin()
        rows[number], closest = drawn[winner], after[winner]
    return rows, float(closest.sum(dtype=torch.float64))


def _distances(centred: Tensor, lengths: Tensor, rows: Tensor) -> Tensor:
    """Squared distances of every frame to some of them: (L,) -> (L, n)."""
    return (lengths[rows, None] + lengths - 2 * (centred[rows] @ centred.T)).clamp_(min=0)


def reseed_empty(frames: Tensor, centroids: Tensor, count: int, seed: int) -> Tensor:
    """New places for clusters that died, drawn as k-means++ draws: frames (n, D) -> up to `count`
    of them.

    Fewer, or none, when there are not so many frames away from their centroid: then there are more
    clusters than different frames.
    """
    weight, bias = (each.float().contiguous() for each in score_weights(centroids))
    # As differences, not as one of large numbers: a frame on its centroid has to come out at 0.
    distances = torch.cat(
        [
            (part - centroids[assign(part, weight, bias)]).square().sum(1)
            for part in frames.split(1 << 14)
        ]
    )
    away = distances > NOTHING * frames.var(dim=0, correction=0).sum()
    if not int(away.sum()):
        return frames[:0]
    # Gumbel's trick: the largest keys are a draw without replacement, with these probabilities.
    uniform = torch.from_numpy(seeds.generator(seed).random(len(frames))).to(distances)
    keys = torch.where(
        away, distances.log() - (-uniform.clamp(1e-12, 1 - 1e-7).log()).log(), -math.inf
    )
    return frames[keys.topk(min(count, int(away.sum()))).indices]
