"""Full-batch k-means against scikit-learn's MiniBatchKMeans(n_init=20) on the same frames of real
speech: never a larger inertia.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.cluster import MiniBatchKMeans

from hubert_pretrain.clustering.kmeans import KMeans
from hubert_pretrain.data import audio
from hubert_pretrain.features.extractor import FeatureExtractor
from hubert_pretrain.features.hubert_layer import HubertLayer
from hubert_pretrain.features.mfcc import Mfcc
from hubert_pretrain.model.checkpoint import save_model
from hubert_pretrain.model.config import HubertConfig
from hubert_pretrain.model.hubert import Hubert

FULL_100 = {"max_iterations": 30, "tolerance": 1e-3, "restarts": 2}
"""conf/clustering/full_100.yaml."""
FULL_500 = {"max_iterations": 30, "tolerance": 5e-4, "restarts": 2}
"""conf/clustering/full_500.yaml."""


def frames_of(shared: Path, extractor: FeatureExtractor, files: int) -> np.ndarray:
    paths = sorted((shared / "data" / "librispeech").rglob("*.flac"))[:files]
    return torch.cat(
        [extractor(torch.from_numpy(audio.read(path))[None])[0] for path in paths]
    ).numpy()


def usual_inertia(frames: np.ndarray, n_clusters: int, seed: int) -> float:
    settings = {
        "batch_size": 10_000,
        "max_iter": 100,
        "max_no_improvement": 100,
        "tol": 0.0,
        "n_init": 20,
    }
    estimator = MiniBatchKMeans(
        n_clusters, **settings, reassignment_ratio=0.0, compute_labels=False, random_state=seed
    )
    return -float(estimator.fit(frames).score(frames))


@pytest.mark.long
@pytest.mark.parametrize("seed", range(3))
def test_mfcc(shared: Path, seed: int) -> None:
    frames = frames_of(shared, Mfcc(), 150)
    usual = usual_inertia(frames, 100, seed)
    for engine in ("torch", "faiss"):
        assert KMeans(engine, 100, seed=seed, **FULL_100).fit(frames).inertia_ <= 0.995 * usual, (
            engine
        )  # type: ignore[arg-type]


@pytest.mark.long
@pytest.mark.parametrize("seed", range(3))
def test_a_layer(shared: Path, tmp_path: Path, seed: int) -> None:
    torch.manual_seed(0)
    small = {
        "conv_dim": [64] * 7,
        "hidden_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 512,
    }
    save_model(
        tmp_path,
        Hubert(HubertConfig(**small, num_conv_pos_embeddings=32, num_conv_pos_embedding_groups=8)),
    )
    frames = frames_of(shared, HubertLayer(tmp_path, 2), 80)
    usual = usual_inertia(frames, 500, seed)
    for engine in ("torch", "faiss"):
        assert KMeans(engine, 500, seed=seed, **FULL_500).fit(frames).inertia_ <= 0.995 * usual, (
            engine
        )  # type: ignore[arg-type]
