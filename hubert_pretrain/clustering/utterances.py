"""Clusters of utterances: k-means over the mean and the spread of their frames.

Tensor letters: N utterances, T frames, D width of a frame.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hubert_pretrain.clustering.kmeans import KMeans
from hubert_pretrain.data.corpus import Corpus
from hubert_pretrain.errors import ConfigError
from hubert_pretrain.features.corpus_frames import Rows, map_frames
from hubert_pretrain.features.extractor import FeatureExtractor

Vectors = NDArray[np.float32]
SMALLEST_SPREAD = 1e-6
RESTARTS = 10
"""Few points in many dimensions: the best of several starts."""


@dataclass(frozen=True)
class UtteranceClustering:
    """Clusters of some utterances, the one with most audio first."""

    rows: Rows
    """Of the manifest, (N,)."""
    numbers: NDArray[np.int64]
    """Cluster of each, (N,)."""
    distances: Vectors
    """Of each to the centre of its cluster, (N,)."""

    @property
    def names(self) -> list[str]:
        """Name of the cluster of each utterance: c00 is the largest."""
        width = max(2, len(str(int(self.numbers.max()))))
        return [f"c{number:0{width}}" for number in self.numbers.tolist()]


def cluster_utterances(
    corpus: Corpus,
    rows: Rows,
    extractor: FeatureExtractor,
    *,
    n_clusters: int,
    seed: int,
    device: torch.device | str = "cpu",
    workers: int = 1,
) -> UtteranceClustering:
    """Clusters utterances by how they sound on the whole: voice, room, channel, language.

    Args:
        corpus: reads the audio.
        rows: of the manifest.
        extractor: of the frames, on `device`.
        n_clusters: at most as many as utterances.
        seed: of k-means.
        device, workers: see `map_frames`.

    Raises ConfigError for more clusters than utterances.
    """
    if not 1 <= n_clusters <= len(rows):
        raise ConfigError(
            f"--n-clusters {n_clusters}: expected 1 to {len(rows)}, the number of utterances"
        )
    found = map_frames(
        corpus,
        rows,
        extractor,
        statistics,
        device=device,
        workers=workers,
        description="utterances",
    )
    vectors = np.stack(list(found))  # (N, 2 D)
    spread = vectors.std(axis=0)
    scaled = (vectors - vectors.mean(axis=0)) / np.maximum(spread, SMALLEST_SPREAD)
    estimator = KMeans(engine="torch", n_clusters=n_clusters, restarts=RESTARTS, seed=seed)
    estimator.fit(scaled)
    numbers = estimator.predict(scaled)
    distances = np.linalg.norm(scaled - estimator.cluster_centers_[numbers], axis=1)
    audio = np.bincount(numbers, weights=corpus.manifest.num_samples[rows], minlength=n_clusters)
    place = np.empty(n_clusters, dtype=np.int64)
    place[np.argsort(-audio, kind="stable")] = np.arange(n_clusters)
    return UtteranceClustering(rows, place[numbers], distances)


def statistics(frames: Tensor) -> Vectors:
    """Mean and standard deviation of frames (T, D) over time: (2 D,)."""
    spread, mean = torch.std_mean(frames, dim=0, correction=0)
    return np.asarray(torch.cat([mean, spread]).cpu().numpy(), dtype=np.float32)
