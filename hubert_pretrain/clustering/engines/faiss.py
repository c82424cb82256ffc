"""Full-batch k-means of faiss, from the same initial centroids as engine `torch` (lloyd.py). One
process; frames in memory or in a mapped file.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from hubert_pretrain.clustering.engines.frame_summary import summarise
from hubert_pretrain.clustering.engines.lloyd import FitResult, Lloyd
from hubert_pretrain.clustering.frame_source import RankFrames
from hubert_pretrain.clustering.memory import EngineMemory, within_budget
from hubert_pretrain.progress import still_running

MEMORY = EngineMemory(row_bytes=16)
"""Of the id and distance that faiss holds for every frame."""


@dataclass(frozen=True)
class Faiss:
    """Settings. `KMeans` documents them."""

    n_clusters: int
    max_iterations: int = 100
    tolerance: float = 0.0
    restarts: int = 20
    spherical: bool = False
    seed: int = 0
    max_sample_bytes: int = 1 << 30
    max_memory_bytes: int = 0

    def fit(self, shard: RankFrames, state_path: Path | None = None) -> FitResult:
        """Centroids of the frames. No state is saved: an interrupted fit starts again.

        An empty cluster gets half of a large one, as faiss does it.
        """
        import faiss

        lloyd = Lloyd(
            self.n_clusters,
            tolerance=self.tolerance,
            restarts=self.restarts,
            spherical=self.spherical,
            seed=self.seed,
            max_sample_bytes=self.max_sample_bytes,
        )
        summary = summarise(shard, sample_frames=lloyd.sample_frames(shard), seed=self.seed)
        initial = lloyd.initial_centroids(summary, torch.device("cpu")).numpy()
        faiss.omp_set_num_threads(torch.get_num_threads())
        engine = faiss.Kmeans(
            shard.dim,
            self.n_clusters,
            niter=self.max_iterations,
            early_stop_threshold=self.tolerance,
            spherical=self.spherical,
            seed=self.seed % 2**31,
            # Use every frame: faiss would draw a sample above its default, and warn below it.
            max_points_per_centroid=-(-shard.total // self.n_clusters),
            min_points_per_centroid=1,
        )
        folder = None if state_path is None else state_path.parent
        with (
            within_budget(shard.frames, self.max_memory_bytes, folder, MEMORY) as frames,
            still_running("faiss k-means"),
        ):
            engine.train(frames, init_centroids=initial)
        iterations = list(engine.iteration_stats or [])
        splits = sum(int(float(iteration["nsplit"])) for iteration in iterations)
        return FitResult(torch.tensor(engine.centroids), len(iterations), splits)
