"""scikit-learn's mini-batch k-means with the settings of the HuBERT paper (section 3.2, fairseq's
learn_kmeans.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from hubert_pretrain.clustering.engines.frame_summary import summarise
from hubert_pretrain.clustering.engines.lloyd import FitResult
from hubert_pretrain.clustering.frame_source import RankFrames
from hubert_pretrain.clustering.memory import EngineMemory, within_budget
from hubert_pretrain.progress import still_running

PARALLEL_MULTIPLICATIONS = 10**9
"""Multiplications per mini-batch above which threads are used. Below it scikit-learn's threads
mostly wait for each other in busy loops: on a machine shared with others, K=50 over 39 dimensions
took 52 s with two threads and 11 s with one."""


MEMORY = EngineMemory(row_bytes=32)
"""Of the norms, weights and cumulative weights that scikit-learn holds for every frame."""


@dataclass(frozen=True)
class MiniBatch:
    """Settings. `KMeans` documents them."""

    n_clusters: int
    batch_frames: int = 10_000
    max_iterations: int = 100
    max_no_improvement: int = 100
    restarts: int = 20
    tolerance: float = 0.0
    reassignment_ratio: float = 0.0
    seed: int = 0
    max_memory_bytes: int = 0

    def fit(self, shard: RankFrames, state_path: Path | None = None) -> FitResult:
        """Centroids of the frames. No state is saved: an interrupted fit starts again. Beside the
        frames it needs `MEMORY`.
        """
        from sklearn.cluster import MiniBatchKMeans
        from threadpoolctl import threadpool_limits

        # Only for its check that all frames are finite.
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
        multiplications = self.batch_frames * shard.dim * self.n_clusters
        threads = None if multiplications >= PARALLEL_MULTIPLICATIONS else 1
        folder = None if state_path is None else state_path.parent
        with (
            threadpool_limits(limits=threads, user_api="openmp"),
            within_budget(shard.frames, self.max_memory_bytes, folder, MEMORY) as frames,
            still_running("mini-batch k-means"),
        ):
            estimator.fit(frames)
        centroids = np.asarray(estimator.cluster_centers_, dtype=np.float32)
        return FitResult(torch.from_numpy(centroids), int(estimator.n_iter_), 0)
