"""Frames -> centroids: an estimator like scikit-learn's, with interchangeable engines.

| engine | what it is | for |
|---|---|---|
| `minibatch` | scikit-learn's MiniBatchKMeans with the settings of the paper (section 3.2) |
repeating the paper |
| `torch` | full-batch, on a CPU or GPU, over ranks, from files larger than memory, resumable |
everything else |
| `faiss` | full-batch of faiss-cpu, from the same start | checking the other against it |
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hubert_pretrain import distributed
from hubert_pretrain.clustering import assign
from hubert_pretrain.clustering.engines.faiss import Faiss
from hubert_pretrain.clustering.engines.lloyd import Lloyd
from hubert_pretrain.clustering.engines.minibatch import MiniBatch
from hubert_pretrain.clustering.engines.statistics import measure
from hubert_pretrain.clustering.frame_source import Frames, RankFrames
from hubert_pretrain.errors import ConfigError
from hubert_pretrain.errors import did_you_mean as nearest_name

ENGINES: dict[str, Any] = {"minibatch": MiniBatch, "torch": Lloyd, "faiss": Faiss}


@dataclass
class KMeans:
    """`KMeans(engine="torch", n_clusters=100).fit(frames).predict(frames)`; scikit-learn's `clone`
    works on it.

    The same frames, settings and seed give the same centroids; with engine `torch` on any number of
    threads and ranks too. The defaults are the paper's. After `fit`: `cluster_centers_` (K, D)
    float32, `inertia_` (sum of squared distances, computed exactly, with the final centroids),
    `counts_` (K,) frames of each cluster, `n_iter_`, `reseeded_` (how often an empty cluster was
    given a new place).
    """

    engine: str = "minibatch"
    """minibatch, torch or faiss."""
    n_clusters: int = 100
    max_iterations: int = 100
    """Passes over the frames at most."""
    tolerance: float = 0.0
    """torch, faiss: stop when a pass improves the inertia by no more than this share of it; 0: when
    no centroid moves (torch). minibatch: when centroids move less."""
    restarts: int = 20
    """k-means++ starts on a sample, of which the best is kept."""
    spherical: bool = False
    """Cosine k-means: centroids have length 1. Frames are expected to have it too. torch, faiss."""
    batch_frames: int = 10_000
    """minibatch: frames per mini-batch."""
    max_no_improvement: int = 100
    """minibatch: stop after so many mini-batches without improvement."""
    reassignment_ratio: float = 0.0
    """minibatch: clusters smaller than this share of the largest are drawn anew."""
    max_sample_bytes: int = 1 << 30
    """torch, faiss: the sample that the start is found on is not larger."""
    device: str = "cpu"
    """torch: where distances are computed."""
    seed: int = 0

    cluster_centers_: NDArray[np.float32] = field(init=False, repr=False, compare=False)
    inertia_: float = field(init=False, repr=False, compare=False)
    counts_: NDArray[np.int64] = field(init=False, repr=False, compare=False)
    n_iter_: int = field(init=False, repr=False, compare=False)
    reseeded_: int = field(init=False, repr=False, compare=False)

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The settings, by name."""
        return {each.name: getattr(self, each.name) for each in fields(self) if each.init}

    def set_params(self, **values: Any) -> KMeans:
        """Changes settings. Raises ConfigError for one that does not exist."""
        for name, value in values.items():
            if name not in self.get_params():
                raise ConfigError(
                    f"KMeans has no setting {name!r}{nearest_name(name, list(self.get_params()))}"
                )
            setattr(self, name, value)
        return self

    def fit(
        self, frames: Frames | RankFrames, y: None = None, *, state: Path | None = None
    ) -> KMeans:
        """Finds the centroids of frames (N, D) float32.

        Args:
            frames: an array, a memory map, or anything with a shape and ranges of rows
            (clustering/frame_source.py); a `Shard` when every rank
                holds a part of them.
            y: nothing; scikit-learn passes it. state: engine torch: a file where each pass leaves
            what it found, and from which an interrupted fit goes on.

        Raises:
            ConfigError: more clusters than frames, an engine that does not exist or cannot do what
            is asked of it. DataError: a frame holds NaN or infinity; the message names the first.
        """
        shard = frames if isinstance(frames, RankFrames) else RankFrames.whole(frames)
        if self.engine not in ENGINES:
            names = list(ENGINES)
            raise ConfigError(
                f"clustering.engine={self.engine!r}: expected one of {', '.join(names)}{nearest_name(self.engine, names)}"
            )
        if shard.total < self.n_clusters:
            raise ConfigError(
                f"clustering.n_clusters={self.n_clusters} needs at least as many frames, the sample has {shard.total}; "
                "lower n_clusters, raise clustering.fraction or clustering.max_hours, or add audio"
            )
        if self.engine != "torch" and distributed.world_size() > 1:
            raise ConfigError(
                f"clustering.engine={self.engine} works in one process; run this stage in one, or use engine=torch"
            )
        if self.engine == "minibatch" and self.spherical:
            raise ConfigError(
                "clustering.spherical needs clustering.engine=torch or faiss: mini-batches of scikit-learn know no cosines"
            )
        form = ENGINES[self.engine]
        known = {each.name for each in fields(form)}
        found = form(
            **{name: value for name, value in self.get_params().items() if name in known}
        ).fit(shard, state)
        fit = measure(shard, found.centroids)
        self.cluster_centers_ = found.centroids.numpy()
        self.inertia_ = fit.inertia
        self.counts_ = fit.counts
        self.n_iter_ = found.iterations
        self.reseeded_ = found.reseeded
        return self

    def predict(self, frames: NDArray[np.float32]) -> NDArray[np.int64]:
        """Ids of the nearest centroids: (N, D) -> (N,)."""
        weight, bias = (
            each.float().contiguous()
            for each in assign.score_weights(torch.from_numpy(self.cluster_centers_))
        )
        return np.asarray(
            assign.assign(
                torch.from_numpy(np.ascontiguousarray(frames, dtype=np.float32)), weight, bias
            ).numpy()
        )

    def score(self, frames: Frames | RankFrames, y: None = None) -> float:
        """Minus the inertia of frames, as scikit-learn has it."""
        shard = frames if isinstance(frames, RankFrames) else RankFrames.whole(frames)
        return -measure(shard, torch.from_numpy(self.cluster_centers_)).inertia
