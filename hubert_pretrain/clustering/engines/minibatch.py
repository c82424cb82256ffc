"""scikit-learn's mini-batch k-means with the settings of the HuBERT paper (section 3.2, fairseq's
learn_kmeans.py).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from hubert_pretrain.clustering.engines.frame_summary import summarise
from hubert_pretrain.clustering.engines.lloyd import FitResult
from hubert_pretrain.clustering.frame_source import RankFrames
from hubert_pretrain.clustering.memory import EngineMemory, within_budget
from hubert_pretrain.progress import Advance, progress

if TYPE_CHECKING:
    from sklearn.cluster import MiniBatchKMeans

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
        steps = self.max_iterations * shard.total // min(self.batch_frames, shard.total)
        with (
            threadpool_limits(limits=threads, user_api="openmp"),
            within_budget(shard.frames, self.max_memory_bytes, folder, MEMORY) as frames,
            progress(steps, "mini-batches of k-means", at_most=True) as advance,
        ):
            report_steps(estimator, shard.total, advance)
            estimator.fit(frames)
        centroids = np.asarray(estimator.cluster_centers_, dtype=np.float32)
        return FitResult(torch.from_numpy(centroids), int(estimator.n_iter_), 0)


def report_steps(estimator: MiniBatchKMeans, num_frames: int, advance: Advance) -> None:
    """Have an estimator say where it is after each start and each mini-batch.

    scikit-learn has no callback: it calls two methods of its own at these places. Where a later
    version has them no more, nothing is said, and the fit is the same.
    """
    starts = 0

    def after_start(call: Callable[..., Any], *values: Any, **named: Any) -> Any:
        nonlocal starts
        found = call(*values, **named)
        starts += 1
        advance(0, f"start {starts} of {estimator.n_init}")
        return found

    def after_step(call: Callable[..., Any], step: int, *values: Any, **named: Any) -> Any:
        stops = call(step, *values, **named)
        size = min(estimator.batch_size, num_frames)
        reached = -(-(step + 1) * size // num_frames)
        note = f"pass {reached} of at most {estimator.max_iter}"
        # A mean over the mini-batches, which scikit-learn starts in the second one.
        inertia = getattr(estimator, "_ewa_inertia", None)
        if inertia is not None:
            note += f", inertia {inertia:.4g} a frame"
        advance(step + 1, note)
        return stops

    for name, after in (
        ("_init_centroids", after_start),
        ("_mini_batch_convergence", after_step),
    ):
        call = getattr(estimator, name, None)
        if call is not None:
            setattr(estimator, name, partial(after, call))
