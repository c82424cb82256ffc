"""Full-batch k-means of faiss, from the same start as our own (see lloyd.py). One process; frames
in memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from hubert_pretrain.clustering.engines.frame_summary import summarise
from hubert_pretrain.clustering.engines.lloyd import Fitted, Lloyd
from hubert_pretrain.clustering.frame_source import RankFrames, in_memory


@dataclass(frozen=True)
class Faiss:
    """The settings. See `KMeans` for their meaning."""

    n_clusters: int
    max_iterations: int = 100
    tolerance: float = 0.0
    restarts: int = 20
    spherical: bool = False
    seed: int = 0
    max_sample_bytes: int = 1 << 30

    def fit(self, shard: RankFrames, state: Path | None = None) -> Fitted:
        """Centroids. It keeps no state: an interrupted fit begins anew. An empty cluster takes half
        of a large one, as faiss does it.
        """
        import faiss

        own = Lloyd(
            self.n_clusters,
            tolerance=self.tolerance,
            restarts=self.restarts,
            spherical=self.spherical,
            seed=self.seed,
            max_sample_bytes=self.max_sample_bytes,
        )
        survey = summarise(shard, sample_frames=own.sample_frames(shard), seed=self.seed)
        start = own.start(survey, torch.device("cpu")).numpy()
        faiss.omp_set_num_threads(torch.get_num_threads())
        engine = faiss.Kmeans(
            shard.dim,
            self.n_clusters,
            niter=self.max_iterations,
            early_stop_threshold=self.tolerance,
            spherical=self.spherical,
            seed=self.seed % 2**31,
            # It would draw a sample of so many frames, or warn that there are few.
            max_points_per_centroid=-(-shard.total // self.n_clusters),
            min_points_per_centroid=1,
        )
        engine.train(in_memory(shard.frames), init_centroids=start)
        steps = list(engine.iteration_stats or [])
        splits = sum(int(float(step["nsplit"])) for step in steps)
        return Fitted(torch.tensor(engine.centroids), len(steps), splits)
