"""K-means as a scikit-learn style estimator with three engines.

| engine      | implementation                                    | for                            |
|-------------|---------------------------------------------------|--------------------------------|
| `minibatch` | scikit-learn's MiniBatchKMeans with the settings  | repeating the paper            |
|             | of the HuBERT paper (section 3.2)                 |                                |
| `torch`     | full batch, on a CPU or GPU, over ranks, from     | everything else                |
|             | files larger than memory, resumable               |                                |
| `faiss`     | full batch of faiss-cpu, from the same initial    | checking `torch` against it    |
|             | centroids as `torch`                              |                                |
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
from hubert_pretrain.clustering.engines import faiss, minibatch
from hubert_pretrain.clustering.engines.faiss import Faiss
from hubert_pretrain.clustering.engines.lloyd import FitResult, Lloyd
from hubert_pretrain.clustering.engines.minibatch import MiniBatch
from hubert_pretrain.clustering.engines.statistics import measure_fit
from hubert_pretrain.clustering.frame_source import Frames, RankFrames
from hubert_pretrain.clustering.memory import EngineMemory, sample_bytes
from hubert_pretrain.config.schema import ClusteringConfig
from hubert_pretrain.errors import ConfigError, did_you_mean

ENGINES = ["minibatch", "torch", "faiss"]
_RECIPE = ClusteringConfig(n_clusters=100)
"""The defaults of a recipe, which are the estimator's too."""


@dataclass
class KMeans:
    """`KMeans(engine="torch", n_clusters=100).fit(frames).predict(frames)`.

    The same frames, settings and seed give the same centroids; with engine `torch` on any number of
    threads and ranks. The defaults are those of the HuBERT paper. scikit-learn's `clone` works.

    Attributes after `fit`:
        cluster_centers_: (K, D) float32.
        inertia_: sum of squared distances to the nearest centroids, computed exactly with the final
            centroids.
        counts_: (K,) frames of each cluster.
        n_iter_: passes over the frames.
        reseeded_: number of times that an empty cluster got a new centroid.
    """

    engine: str = _RECIPE.engine
    """minibatch, torch or faiss."""
    n_clusters: int = _RECIPE.n_clusters
    max_iterations: int = _RECIPE.max_iterations
    """Most passes over the frames."""
    tolerance: float = _RECIPE.tolerance
    """torch, faiss: stop when a pass improves the inertia by no more than this share of it; 0: when
    no centroid moves (torch). minibatch: stop when centroids move less than this."""
    restarts: int = _RECIPE.restarts
    """k-means++ starts on a sample, of which the best is used."""
    spherical: bool = _RECIPE.spherical
    """torch, faiss: cosine k-means, whose centroids have length 1. Frames are expected to have
    length 1 too."""
    batch_frames: int = _RECIPE.batch_frames
    """minibatch: frames per mini-batch."""
    max_no_improvement: int = _RECIPE.max_no_improvement
    """minibatch: stop after so many mini-batches without improvement."""
    reassignment_ratio: float = _RECIPE.reassignment_ratio
    """minibatch: clusters smaller than this share of the largest get new centroids."""
    max_sample_bytes: int = 1 << 30
    """torch, faiss: upper bound for the sample from which the initial centroids are computed."""
    max_memory_bytes: int = 0
    """minibatch, faiss: upper bound for the memory of the process while frames of a file are read;
    0: none."""
    device: str = "cpu"
    """torch: computes the distances."""
    seed: int = 0

    cluster_centers_: NDArray[np.float32] = field(init=False, repr=False, compare=False)
    inertia_: float = field(init=False, repr=False, compare=False)
    counts_: NDArray[np.int64] = field(init=False, repr=False, compare=False)
    n_iter_: int = field(init=False, repr=False, compare=False)
    reseeded_: int = field(init=False, repr=False, compare=False)

    @staticmethod
    def of(config: ClusteringConfig, *, device: str) -> KMeans:
        """The estimator of a recipe; the seed is set later, per codebook."""
        return KMeans(
            engine=config.engine,
            n_clusters=config.n_clusters,
            max_iterations=config.max_iterations,
            tolerance=config.tolerance,
            restarts=config.restarts,
            spherical=config.spherical,
            batch_frames=config.batch_frames,
            max_no_improvement=config.max_no_improvement,
            reassignment_ratio=config.reassignment_ratio,
            max_sample_bytes=sample_bytes(config.max_memory_bytes),
            max_memory_bytes=config.max_memory_bytes,
            device=device,
        )

    @property
    def memory(self) -> EngineMemory:
        """Memory that the engine needs beside the frames."""
        of_engines = {"minibatch": minibatch.MEMORY, "faiss": faiss.MEMORY}
        return of_engines.get(self.engine, EngineMemory())

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The settings, by name."""
        return {each.name: getattr(self, each.name) for each in fields(self) if each.init}

    def set_params(self, **values: Any) -> KMeans:
        """Changes settings. Raises ConfigError for one that does not exist."""
        names = list(self.get_params())
        for name, value in values.items():
            if name not in names:
                raise ConfigError(f"KMeans has no setting {name!r}{did_you_mean(name, names)}")
            setattr(self, name, value)
        return self

    def fit(
        self, frames: Frames | RankFrames, y: None = None, *, state_path: Path | None = None
    ) -> KMeans:
        """Computes the centroids of frames (N, D) float32.

        Args:
            frames: an array, a memory map, or anything with a shape and ranges of rows
                (frame_source.Frames); `RankFrames` when every rank holds a part of them.
            y: unused; part of scikit-learn's interface.
            state_path: engine torch: file in which each pass saves its state, and from which an
                interrupted fit continues.

        Raises:
            ConfigError: more clusters than frames, an unknown engine, or an engine that does not
                support the settings.
            DataError: a frame holds NaN or infinity; the message names the first.
        """
        shard = _rank_frames(frames)
        self._check(shard)
        result = self._run_engine(shard, state_path)
        measures = measure_fit(shard, result.centroids)
        self.cluster_centers_ = result.centroids.numpy()
        self.inertia_ = measures.inertia
        self.counts_ = measures.counts
        self.n_iter_ = result.iterations
        self.reseeded_ = result.reseeded
        return self

    def predict(self, frames: NDArray[np.float32]) -> NDArray[np.int64]:
        """Ids of the nearest centroids: (N, D) -> (N,)."""
        weight, bias = assign.float32_weights(torch.from_numpy(self.cluster_centers_))
        array = np.ascontiguousarray(frames, dtype=np.float32)
        return np.asarray(assign.assign(torch.from_numpy(array), weight, bias).numpy())

    def score(self, frames: Frames | RankFrames, y: None = None) -> float:
        """Minus the inertia of frames, as scikit-learn defines it."""
        centroids = torch.from_numpy(self.cluster_centers_)
        return -measure_fit(_rank_frames(frames), centroids).inertia

    def _check(self, shard: RankFrames) -> None:
        if self.engine not in ENGINES:
            raise ConfigError(
                f"clustering.engine={self.engine!r}: expected one of {', '.join(ENGINES)}"
                f"{did_you_mean(self.engine, ENGINES)}"
            )
        if shard.total < self.n_clusters:
            raise ConfigError(
                f"clustering.n_clusters={self.n_clusters} needs at least as many frames, the "
                f"sample has {shard.total}; lower n_clusters, raise clustering.fraction or "
                "clustering.max_hours, or add audio"
            )
        if self.engine != "torch" and distributed.world_size() > 1:
            raise ConfigError(
                f"clustering.engine={self.engine} works in one process; run this stage in one, or "
                "use engine=torch"
            )
        if self.engine == "minibatch" and self.spherical:
            raise ConfigError(
                "clustering.spherical needs clustering.engine=torch or faiss: scikit-learn's "
                "mini-batches have no cosine distance"
            )

    def _run_engine(self, shard: RankFrames, state_path: Path | None) -> FitResult:
        engine: Lloyd | Faiss | MiniBatch
        if self.engine == "torch":
            engine = Lloyd(
                n_clusters=self.n_clusters,
                max_iterations=self.max_iterations,
                tolerance=self.tolerance,
                restarts=self.restarts,
                spherical=self.spherical,
                seed=self.seed,
                device=self.device,
                max_sample_bytes=self.max_sample_bytes,
            )
        elif self.engine == "faiss":
            engine = Faiss(
                n_clusters=self.n_clusters,
                max_iterations=self.max_iterations,
                tolerance=self.tolerance,
                restarts=self.restarts,
                spherical=self.spherical,
                seed=self.seed,
                max_sample_bytes=self.max_sample_bytes,
                max_memory_bytes=self.max_memory_bytes,
            )
        else:
            engine = MiniBatch(
                n_clusters=self.n_clusters,
                batch_frames=self.batch_frames,
                max_iterations=self.max_iterations,
                max_no_improvement=self.max_no_improvement,
                restarts=self.restarts,
                tolerance=self.tolerance,
                reassignment_ratio=self.reassignment_ratio,
                seed=self.seed,
                max_memory_bytes=self.max_memory_bytes,
            )
        return engine.fit(shard, state_path)


def _rank_frames(frames: Frames | RankFrames) -> RankFrames:
    return frames if isinstance(frames, RankFrames) else RankFrames.whole(frames)
