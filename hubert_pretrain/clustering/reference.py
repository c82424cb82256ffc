"""A codebook's inertia against scikit-learn's: is it as good as what everybody would have fitted? N
frames, D width.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from hubert_pretrain.clustering.codebook import Codebook
from hubert_pretrain.clustering.engines.statistics import measure_fit
from hubert_pretrain.clustering.frame_source import RankFrames
from hubert_pretrain.clustering.kmeans import KMeans

PROJECT_FRAMES = 1 << 14
"""Frames per pass of the codebook's transform."""


def against_scikit_learn(
    codebook: Codebook, frames: NDArray[np.float32], *, restarts: int = 20, seed: int = 0
) -> dict[str, float]:
    """Inertia per frame of a codebook on frames (N, D), and of MiniBatchKMeans with the paper's
    settings (section 4.1) fitted on them.

    `inertia_ratio` <= 1: the codebook is no worse, although the other has seen these very frames.
    Both are measured in the space of the codebook's centroids. Raises ConfigError when there are
    fewer frames than clusters.
    """
    parts = [codebook.project(part) for part in torch.from_numpy(frames).split(PROJECT_FRAMES)]
    seen = torch.cat(parts).contiguous().numpy()
    theirs = (
        KMeans("minibatch", codebook.n_clusters, restarts=restarts, seed=seed).fit(seen).inertia_
    )
    ours = measure_fit(RankFrames.whole(seen), codebook.centroids).inertia
    return {
        "frames": len(frames),
        "inertia": ours / len(frames),
        "inertia_of_scikit_learn": theirs / len(frames),
        "inertia_ratio": ours / theirs,
    }
