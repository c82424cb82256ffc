"""Frames -> centroids: scikit-learn's MiniBatchKMeans with the settings of the paper (section 3.2, learn_kmeans.py)."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from hubert_pretrain.clustering.codebook import Codebook
from hubert_pretrain.errors import ConfigError, DataError

FRAMES_AT_ONCE = 1 << 16
"""Frames per pass of `inertia`: 65536 x 768 floats are 200 MB."""

WORTH_THREADS = 10**9
"""Multiplications per mini-batch from which threads pay. On smaller ones scikit-learn's threads mostly wait for each other, in busy loops:
on a machine that others use, K=50 over 39 dimensions took 52 s with two threads and 11 s with one."""


def fit(
    frames: NDArray[np.float32],
    *,
    n_clusters: int,
    batch_frames: int = 10_000,
    max_iterations: int = 100,
    max_no_improvement: int = 100,
    restarts: int = 20,
    tolerance: float = 0.0,
    reassignment_ratio: float = 0.0,
    seed: int = 0,
) -> NDArray[np.float32]:
    """Centroids (K, D) float32 of frames (N, D) float32; the same for the same frames and seed.

    The defaults are the paper's: k-means++, the best of 20 starts, mini-batches of 10,000 frames, until 100 of them in a row bring no
    improvement or 100 passes are over. `frames` may be a memory map; it is not copied.

    Raises:
        ConfigError: fewer frames than clusters.
        DataError: a frame holds NaN or infinity; the message names the first.
    """
    from sklearn.cluster import MiniBatchKMeans
    from threadpoolctl import threadpool_limits

    check_frames(frames, n_clusters)
    estimator = MiniBatchKMeans(
        n_clusters=n_clusters,
        init="k-means++",
        batch_size=batch_frames,
        max_iter=max_iterations,
        max_no_improvement=max_no_improvement,
        n_init=restarts,
        tol=tolerance,
        reassignment_ratio=reassignment_ratio,
        compute_labels=False,
        random_state=seed % 2**32,
    )
    small = batch_frames * frames.shape[1] * n_clusters < WORTH_THREADS
    with threadpool_limits(limits=1 if small else None, user_api="openmp"):
        return np.asarray(estimator.fit(frames).cluster_centers_, dtype=np.float32)


def check_frames(frames: NDArray[np.float32], n_clusters: int) -> None:
    """Refuses what k-means cannot work on, in words (see `fit`)."""
    if len(frames) < n_clusters:
        raise ConfigError(
            f"clustering.n_clusters={n_clusters} needs at least as many frames, the sample has {len(frames)}; "
            "lower n_clusters, raise clustering.fraction or clustering.max_hours, or add audio"
        )
    for start in range(0, len(frames), FRAMES_AT_ONCE):
        finite = np.isfinite(frames[start : start + FRAMES_AT_ONCE]).all(axis=1)
        if not finite.all():
            raise DataError(f"frame {start + int(finite.argmin())} of {len(frames)} holds NaN or infinity; mend the features")


def inertia(frames: NDArray[np.float32], codebook: Codebook) -> float:
    """Mean squared distance of frames (N, D) to their nearest centroid."""
    total = 0.0
    for start in range(0, len(frames), FRAMES_AT_ONCE):
        part = torch.from_numpy(np.array(frames[start : start + FRAMES_AT_ONCE]))
        nearest = codebook.centroids[codebook.assign(part)]
        total += float((part - nearest).square().sum(dim=-1).double().sum())
    return total / len(frames)
