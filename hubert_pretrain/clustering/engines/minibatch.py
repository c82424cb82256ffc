"""Mini-batch k-means of scikit-learn with the settings of the paper (section 3.2, fairseq's
learn_kmeans.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from hubert_pretrain.clustering.engines.frame_summary import summarise
from hubert_pretrain.clustering.engines.lloyd import Fitted
from hubert_pretrain.clustering.frame_source import RankFrames, in_memory

WORTH_THREADS = 10**9
"""Multiplications per mini-batch from which threads pay. On smaller ones scikit-learn's threads
mostly wait for each other, in busy loops: on a machine that others use, K=50 over 39 dimensions
took 52 s with two threads and 11 s with one."""


@dataclass(frozen=True)
class MiniBatch:
    """The settings. See `KMeans` for their meaning."""

    n_clusters: int
    batch_frames: int = 10_000
    max_iterations: int = 100
    max_no_improvement: int = 100
    restarts: int = 20
    tolerance: float = 0.0
    reassignment_ratio: float = 0.0
    seed: int = 0

    def fit(self, shard: RankFrames, state: Path | None = None) -> Fitted:
        """Centroids of frames in memory or in a memory map. It keeps no state: an interrupted fit
        begins anew.
        """
        from sklearn.cluster import MiniBatchKMeans
        from threadpoolctl import threadpool_limits

        summarise(shard, sample_frames=1, seed=self.seed)
        estimator = MiniBatchKMeans(
            n_clusters=self.n_clusters,
            init="k-means++",
            batch_size=self.batch_frames,
            max_iter=self.max_iterations,
            max_no_improvement=self.max_no_improvement,
            n_init=self.restarts,
            tol=self.tolerance,
            reassignment_ratio=self.reassignment_ratio,
            compute_labels=False,
            random_state=self.seed % 2**32,
        )
        small = self.batch_frames * shard.dim * self.n_clusters < WORTH_THREADS
        with threadpool_limits(limits=1 if small else None, user_api="openmp"):
            estimator.fit(in_memory(shard.frames))
        centroids = np.asarray(estimator.cluster_centers_, dtype=np.float32)
        return Fitted(torch.from_numpy(centroids), int(estimator.n_iter_), 0)
