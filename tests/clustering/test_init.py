"""The start of k-means: k-means++ on a sample."""

from __future__ import annotations

import torch
from torch import Tensor

from hubert_pretrain.clustering.engines.init import kmeans_plusplus


def blobs(seed: int) -> tuple[Tensor, Tensor]:
    """Frames (n, 3) of 20 clusters far apart, of which the first has nearly all, and their
    centres.
    """
    generator = torch.Generator().manual_seed(seed)
    centres = 1000 * torch.randn(20, 3, generator=generator)
    sizes = torch.tensor([2000] + [5] * 19)
    frames = centres.repeat_interleave(sizes, dim=0)
    return frames + torch.randn(frames.shape, generator=generator), centres


def inertia(frames: Tensor, centroids: Tensor) -> float:
    return float(torch.cdist(frames.double(), centroids.double()).amin(1).square().sum())


def test_small_clusters_far_away_get_a_centroid() -> None:
    """Drawn uniformly, nearly all centroids would lie in the first cluster."""
    for seed in range(5):
        frames, centres = blobs(seed)
        start = kmeans_plusplus(frames, 20, restarts=1, seed=seed)
        assert torch.cdist(start, centres).argmin(1).unique().tolist() == list(range(20))


def test_the_best_of_the_restarts_is_used() -> None:
    better = 0
    for seed in range(5):
        frames = torch.randn(500, 6, generator=torch.Generator().manual_seed(seed))
        one = inertia(frames, kmeans_plusplus(frames, 12, restarts=1, seed=seed))
        best = inertia(frames, kmeans_plusplus(frames, 12, restarts=8, seed=seed))
        assert best <= one * (1 + 1e-6)
        better += best < one
    assert better > 0
