"""Full-batch k-means of faiss, from the same initial centroids as engine `torch` (lloyd.py). One
process; frames in memory or in a mapped file.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from hubert_pretrain.clustering.engines.frame_summary import summarise
from hubert_pretrain.clustering.engines.lloyd import FitResult, Lloyd
from hubert_pretrain.clustering.frame_source import RankFrames
from hubert_pretrain.clustering.memory import EngineMemory, within_budget
from hubert_pretrain.progress import Advance, progress

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
        folder = None if state_path is None else state_path.parent
        with (
            within_budget(shard.frames, self.max_memory_bytes, folder, MEMORY) as frames,
            progress(self.max_iterations, "faiss k-means, passes", at_most=True) as advance,
        ):
            return self._passes(frames, initial, advance)

    def _passes(
        self, frames: NDArray[np.float32], centroids: NDArray[np.float32], advance: Advance
    ) -> FitResult:
        """The passes of faiss over the frames (N, D), one call for each: it tells nothing before
        a call ends. The centroids (K, D) have the bits of a single call.
        """
        import faiss

        index = (faiss.IndexFlatIP if self.spherical else faiss.IndexFlatL2)(frames.shape[1])
        splits = 0
        before = math.nan
        for iteration in range(1, self.max_iterations + 1):
            if self.spherical:
                faiss.normalize_L2(centroids)
            engine = faiss.Clustering(frames.shape[1], self.n_clusters)
            engine.niter = 1
            # Use every frame: faiss would draw a sample above its default, and warn below it.
            engine.max_points_per_centroid = -(-len(frames) // self.n_clusters)
            engine.min_points_per_centroid = 1
            faiss.copy_array_to_vector(centroids.ravel(), engine.centroids)
            engine.train(frames, index)
            centroids = faiss.vector_float_to_array(engine.centroids).reshape(centroids.shape)
            found = engine.iteration_stats.at(0)  # type: ignore[attr-defined]  # a vector of C++
            splits += found.nsplit
            inertia = 2 * (len(frames) - found.obj) if self.spherical else found.obj
            advance(iteration, f"inertia {inertia:.4g}")
            if abs(before - found.obj) <= self.tolerance * abs(before):  # the rule of faiss
                break
            before = found.obj
        if self.spherical:
            faiss.normalize_L2(centroids)
        return FitResult(torch.from_numpy(centroids), iteration, splits)
