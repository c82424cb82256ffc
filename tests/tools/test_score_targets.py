from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hubert_pretrain.tools.score_targets import against_scikit_learn
from sklearn.cluster import MiniBatchKMeans

from hubert_pretrain.clustering.codebook import Codebook
from hubert_pretrain.clustering.kmeans import KMeans
from hubert_pretrain.clustering.pca import fit_pca
from hubert_pretrain.errors import ConfigError
from hubert_pretrain.frames import MFCC_GRID

FRAMES = np.random.default_rng(0).normal(size=(3000, 8)).astype(np.float32) * np.arange(
    1, 9, dtype=np.float32
)


def codebook(frames: np.ndarray) -> Codebook:
    fitted = KMeans("torch", 20, restarts=3).fit(frames)
    return Codebook(torch.from_numpy(fitted.cluster_centers_), {}, MFCC_GRID)


def test_equal_to_the_inertia_that_scikit_learn_itself_states() -> None:
    found = against_scikit_learn(codebook(FRAMES), FRAMES, restarts=3, seed=4)
    settings = {
        "batch_size": 10_000,
        "max_iter": 100,
        "max_no_improvement": 100,
        "reassignment_ratio": 0.0,
        "tol": 0.0,
    }
    theirs = MiniBatchKMeans(20, n_init=3, random_state=4, **settings).fit(FRAMES)
    assert found["inertia_of_scikit_learn"] == pytest.approx(
        theirs.inertia_ / len(FRAMES), rel=0.01
    )
    assert found["inertia"] == pytest.approx(
        KMeans("torch", 20, restarts=3).fit(FRAMES).inertia_ / len(FRAMES), rel=1e-6
    )
    assert found["inertia_ratio"] == pytest.approx(1.0, abs=0.02)


def test_a_bad_codebook_is_seen_and_both_live_in_the_space_of_its_transform() -> None:
    transform = fit_pca(torch.from_numpy(FRAMES), dims=3, whiten=True)
    fitted = codebook(transform(torch.from_numpy(FRAMES)).numpy())
    good = replace(fitted, transform=transform)
    assert 0.9 < against_scikit_learn(good, FRAMES, restarts=3)["inertia_ratio"] < 1.02
    assert (
        against_scikit_learn(replace(good, centroids=fitted.centroids + 1), FRAMES, restarts=3)[
            "inertia_ratio"
        ]
        > 1.5
    )


def test_fewer_frames_than_clusters_is_refused() -> None:
    with pytest.raises(ConfigError, match="n_clusters=20 needs at least as many frames"):
        against_scikit_learn(codebook(FRAMES), FRAMES[:10])
