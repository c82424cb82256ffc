"""Full-batch k-means (Lloyd 1957) in torch: on a CPU or GPU, over any number of ranks, with the
same centroids.

It starts on a sample that doubles in size, so that most iterations are cheap, and ends on all
frames. Only counts and sums travel between ranks. After each pass the state is saved, from which an
interrupted fit continues.

Tensor letters: N frames, n frames of the sample, D width of a frame, K clusters.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from hubert_pretrain import distributed, seeds
from hubert_pretrain.clustering.engines.frame_summary import FrameSummary, summarise
from hubert_pretrain.clustering.engines.init import kmeans_plusplus, reseed_empty
from hubert_pretrain.clustering.engines.statistics import ClusterStatistics, cluster_statistics
from hubert_pretrain.clustering.frame_source import CHUNK_FRAMES, RankFrames, rank_range
from hubert_pretrain.files import disk_room, remove_temporaries, write_bytes
from hubert_pretrain.progress import progress

INIT_FRAMES = 64
"""Frames per cluster for k-means++. Fewer cost quality that no number of iterations recovers: with
10 per cluster, K=500 clusters of a layer of Base end 0.7 % worse, and worse than scikit-learn's."""
SAMPLE_FRAMES = 256
"""Frames per cluster in the sample."""
SAMPLE_TOLERANCE = 5e-3
"""The part of the sample in use is doubled when an iteration improves its inertia by less than this
share."""
SAMPLE_ITERATIONS = 10
"""Most iterations on a part of the sample."""
FULL_SAMPLE_TOLERANCE = 5e-4
"""The tolerance on the whole sample. Convergence here saves passes over all frames, of which there
may be thousands of times as many."""
FULL_SAMPLE_ITERATIONS = 30
"""Most iterations on the whole sample."""


@dataclass(frozen=True)
class FitResult:
    """Result of an engine."""

    centroids: Tensor
    """(K, D) float32 on the CPU."""
    iterations: int
    """Passes over all frames."""
    reseeded: int
    """Number of times that an empty cluster got a new centroid."""


@dataclass(frozen=True)
class LloydState:
    """State between two iterations."""

    centroids: Tensor
    """(K, D) float32, on the CPU."""
    iteration: int = 0
    """Iterations done."""
    reseeded: int = 0
    """See FitResult."""
    inertia: float = math.inf
    """Inertia of the centroids before the last iteration; infinite before the first."""
    converged: bool = False


PassAdvance = Callable[[LloydState], None]
"""Called after each chunk of a pass, with the state before the pass."""


@dataclass(frozen=True)
class Lloyd:
    """Settings of full-batch k-means. `KMeans` documents them."""

    n_clusters: int
    max_iterations: int = 100
    tolerance: float = 0.0
    restarts: int = 20
    spherical: bool = False
    seed: int = 0
    device: str = "cpu"
    max_sample_bytes: int = 1 << 30

    def fit(self, shard: RankFrames, state_path: Path | None = None) -> FitResult:
        """Centroids of the frames of all ranks.

        With a `state_path`, an interrupted fit of the same settings and frames continues there.
        """
        device = torch.device(self.device)
        summary = summarise(shard, sample_frames=self.sample_frames(shard), seed=self.seed)
        key = f"{self} {summary.total} {summary.squares!r}"
        state = load_state(state_path, key)
        if state is None:
            state = LloydState(self.initial_centroids(summary, device))
        with passes("k-means", shard, self.max_iterations, state.iteration) as advance:
            while not state.converged and state.iteration < self.max_iterations:
                state = self._iterate(shard, summary, state, device, self.tolerance, advance)
                save_state(state_path, key, state)
        return FitResult(state.centroids, state.iteration, state.reseeded)

    def sample_frames(self, shard: RankFrames) -> int:
        """Size n of the sample. It depends on the settings only, not on the machine."""
        most = self.max_sample_bytes // (4 * shard.dim)
        return max(self.n_clusters, min(SAMPLE_FRAMES * self.n_clusters, most))

    def initial_centroids(self, summary: FrameSummary, device: torch.device) -> Tensor:
        """Centroids (K, D) from the sample alone: k-means++ on a prefix of it, then Lloyd's
        iterations on prefixes that double in size.
        """
        sample = summary.sample
        size = INIT_FRAMES * self.n_clusters
        centroids = kmeans_plusplus(
            sample[:size].to(device), self.n_clusters, restarts=self.restarts, seed=self.seed
        )
        centroids = self._normalise(centroids.cpu())
        while size < len(sample):
            size = min(2 * size, len(sample))
            is_full = size == len(sample)
            tolerance = FULL_SAMPLE_TOLERANCE if is_full else SAMPLE_TOLERANCE
            max_iterations = FULL_SAMPLE_ITERATIONS if is_full else SAMPLE_ITERATIONS
            prefix = _rank_part(sample[:size])
            prefix_summary = _summarise_prefix(sample[:size], summary)
            state = LloydState(centroids)
            with passes(f"k-means, sample of {size:,} frames", prefix, max_iterations) as advance:
                while not state.converged and state.iteration < max_iterations:
                    state = self._iterate(prefix, prefix_summary, state, device, tolerance, advance)
            centroids = state.centroids
        return centroids

    def _iterate(
        self,
        shard: RankFrames,
        summary: FrameSummary,
        state: LloydState,
        device: torch.device,
        tolerance: float,
        advance: PassAdvance,
    ) -> LloydState:
        """One pass over the frames, and new centroids; `advance` gets the state before it."""
        statistics = cluster_statistics(
            shard, state.centroids, summary, device, partial(advance, state)
        )
        centroids, num_reseeded = self._update(state, statistics, summary)
        # The inertia has float32's precision only. Without a tolerance the criterion is therefore
        # that no centroid moves.
        if tolerance:
            improved = state.inertia - statistics.inertia > tolerance * statistics.inertia
        else:
            improved = not torch.equal(centroids, state.centroids)
        return LloydState(
            centroids=centroids,
            iteration=state.iteration + 1,
            reseeded=state.reseeded + num_reseeded,
            inertia=statistics.inertia,
            converged=num_reseeded == 0 and not improved,
        )

    def _update(
        self, state: LloydState, statistics: ClusterStatistics, summary: FrameSummary
    ) -> tuple[Tensor, int]:
        """New centroids (K, D): the mean frame of each cluster, a reseeded one for empty clusters;
        and the number of the latter.
        """
        is_used = statistics.counts > 0  # (K,)
        means = (statistics.sums / statistics.counts.clamp(min=1)[:, None]).float()
        centroids = torch.where(is_used[:, None], means, state.centroids)
        empty = (statistics.counts == 0).nonzero()[:, 0]
        num_reseeded = 0
        if len(empty):
            seed = seeds.derive(self.seed, "redraw", state.iteration)
            reseeded = reseed_empty(summary.sample, centroids[is_used], len(empty), seed)
            num_reseeded = len(reseeded)
            centroids[empty[:num_reseeded]] = reseeded
        return self._normalise(centroids), num_reseeded

    def _normalise(self, centroids: Tensor) -> Tensor:
        """Length 1 for spherical k-means."""
        return torch.nn.functional.normalize(centroids, dim=1) if self.spherical else centroids


@contextmanager
def passes(what: str, shard: RankFrames, most: int, done: int = 0) -> Iterator[PassAdvance]:
    """Gives a function to call after each chunk of a rank's frames, in `most` passes over them of
    which `done` were made before.
    """
    chunks = (most - done) * len(shard.chunks())
    with progress(chunks, f"{what}, chunks", at_most=True) as advance:

        def after_chunk(state: LloydState) -> None:
            note = f"pass {state.iteration + 1} of at most {most}"
            if state.iteration:
                note += f", inertia {state.inertia:.4g}"
            advance(note=note)

        yield after_chunk


def _rank_part(sample: Tensor) -> RankFrames:
    """This rank's part of frames that every rank holds."""
    part = rank_range(len(sample))
    return RankFrames(sample[part.start : part.stop].numpy(), part.start, len(sample))


def _summarise_prefix(prefix: Tensor, summary: FrameSummary) -> FrameSummary:
    """The summary of a prefix of the sample as if it were all frames."""
    chunks = prefix.split(CHUNK_FRAMES)
    sums = torch.stack([chunk.sum(0, dtype=torch.float64) for chunk in chunks]).sum(0)
    squares = sum(float(chunk.double().square().sum()) for chunk in chunks)
    return FrameSummary(
        sample=prefix,
        sums=sums.numpy(),
        squares=squares,
        largest=summary.largest,
        total=len(prefix),
    )


def save_state(path: Path | None, key: str, state: LloydState) -> None:
    """Replaces the file at `path` atomically (None: does nothing). Only the first rank writes.

    Raises HubertPretrainError when the disk is full.
    """
    if path is None or distributed.rank() > 0:
        return
    numbers = torch.tensor(
        [state.iteration, state.reseeded, state.inertia, state.converged], dtype=torch.float64
    )
    tensors = {"centroids": state.centroids.contiguous(), "numbers": numbers}
    data = save(tensors, metadata={"key": key})
    with disk_room(path, len(data)):
        write_bytes(path, data)


def load_state(path: Path | None, key: str) -> LloydState | None:
    """The state that `save_state` wrote for the same settings and frames (`key`); else None."""
    if path is None:
        return None
    # Of a fit that was killed while it saved.
    if distributed.rank() == 0:
        remove_temporaries(path)
    try:
        with safe_open(path, "pt") as file:
            if (file.metadata() or {}).get("key") != key:
                return None
            iteration, reseeded, inertia, converged = file.get_tensor("numbers").tolist()
            return LloydState(
                centroids=file.get_tensor("centroids"),
                iteration=int(iteration),
                reseeded=int(reseeded),
                inertia=inertia,
                converged=bool(converged),
            )
    except (OSError, SafetensorError):
        return None
