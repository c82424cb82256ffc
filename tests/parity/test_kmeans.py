"""Our k-means is scikit-learn's with the settings of fairseq's learn_kmeans.py, called here as it
calls it; our ids are its `predict`.
"""

from __future__ import annotations

import numpy as np
import torch
from sklearn.cluster import MiniBatchKMeans

from hubert_pretrain.clustering.codebook import Codebook
from hubert_pretrain.clustering.kmeans import KMeans
from hubert_pretrain.features.mfcc import Mfcc
from hubert_pretrain.frames import MODEL_GRID


def speechlike_frames() -> np.ndarray:
    generator = torch.Generator().manual_seed(0)
    level = torch.rand(1, 40, generator=generator).repeat_interleave(8000, dim=1)
    return Mfcc()(level * torch.randn(1, 320_000, generator=generator))[0].numpy()


def test_codebook_inertia_and_ids_equal_those_of_learn_kmeans() -> None:
    frames = speechlike_frames()
    reference = MiniBatchKMeans(
        n_clusters=50,
        init="k-means++",
        max_iter=100,
        batch_size=10000,
        compute_labels=False,
        tol=0.0,
        max_no_improvement=100,
        init_size=None,
        n_init=20,
        reassignment_ratio=0.0,
        random_state=5,
    ).fit(frames)
    estimator = KMeans(n_clusters=50, seed=5).fit(frames)
    centroids = estimator.cluster_centers_
    np.testing.assert_array_equal(centroids, reference.cluster_centers_.astype(np.float32))

    codebook = Codebook(torch.from_numpy(centroids), {}, MODEL_GRID)
    np.testing.assert_allclose(estimator.inertia_, -reference.score(frames), rtol=1e-4)
    ours = codebook.assign(torch.from_numpy(frames)).numpy()
    theirs = reference.predict(frames)
    differing = np.flatnonzero(ours != theirs)
    assert len(differing) <= len(frames) // 1000
    to_ours, to_theirs = (
        ((frames - centroids[ids]) ** 2).sum(-1)[differing] for ids in (ours, theirs)
    )
    np.testing.assert_allclose(to_ours, to_theirs, rtol=1e-4)  # only ties
