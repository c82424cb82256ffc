"""Layer selection: scores of the codebooks of every layer of a checkpoint, in one pass over some
speech. (The HuBERT paper's figure 2, for any checkpoint.)

Each utterance goes through the network once and gives the frames of all layers; then each layer
gets a codebook and its scores.

Tensor letters: N frames of all utterances, D width of a layer, L layers, K clusters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hubert_pretrain import seeds
from hubert_pretrain.clustering import abx, sample
from hubert_pretrain.clustering.abx_items import phone_items, word_items
from hubert_pretrain.clustering.codebook import Codebook
from hubert_pretrain.clustering.kmeans import KMeans
from hubert_pretrain.clustering.quality import (
    adjusted_mutual_information,
    count_pairs,
    perplexity,
    phone_quality,
)
from hubert_pretrain.data.corpus import Corpus
from hubert_pretrain.errors import ConfigError, DataError, did_you_mean
from hubert_pretrain.features.corpus_frames import map_frames
from hubert_pretrain.features.layer import LayerFeatures
from hubert_pretrain.frames import FrameGrid

CRITERIA = {"pnmi": 1, "phone_purity": 1, "abx": -1, "stability": 1}
"""Criteria for the best layer; -1 where smaller is better. `pnmi` and `phone_purity` need
alignments. `abx` needs alignments or utterances of one word. `stability` needs nothing: it is the
agreement of two codebooks, each fitted on one half of the utterances (von Luxburg 2010)."""
RESTARTS = 3
ABX_CELLS = 1000
SCRATCH = "layers.scratch"


@dataclass(frozen=True)
class LayerScore:
    """Scores of the codebook of one layer. None where the speech lacks what a score needs."""

    layer: int
    pnmi: float | None
    """Share of the uncertainty about the phone that the cluster removes."""
    phone_purity: float | None
    """Accuracy of predicting the phone from the cluster."""
    cluster_purity: float | None
    """Accuracy of predicting the cluster from the phone."""
    speaker_nmi: float | None
    """Share of the uncertainty about the speaker that the cluster removes; lower is better."""
    abx: float | None
    """ABX error rate of the frames themselves, mean of within and across speakers."""
    stability: float
    """Adjusted mutual information of the ids of two codebooks, each fitted on half of the
    utterances."""
    perplexity: float
    """Number of equally frequent clusters with the same entropy."""


def score_layers(
    corpus: Corpus,
    rows: NDArray[np.int64],
    extractor: LayerFeatures,
    *,
    n_clusters: int,
    seed: int = 0,
    device: torch.device | str = "cpu",
    workers: int = 1,
    scratch: Path,
) -> list[LayerScore]:
    """Scores of each layer on the same utterances.

    Args:
        corpus: reads the audio, the alignments and the speakers.
        rows: rows of its manifest.
        extractor: gives the layers side by side, e.g. `HubertLayer(checkpoint, "all")`.
        n_clusters: K of every layer's codebook. It is fitted and scored on the same frames, which
            should be many more.
        seed: of k-means and of the draws.
        device: computes the frames.
        workers: threads that decode and, on a CPU, compute.
        scratch: folder for a memory map of the frames, when they are many.

    Raises:
        DataError: there are too few frames.
    """
    frames, counts = _gather(corpus, rows, extractor, device, workers, scratch)  # (L, N, D)
    try:
        if frames.shape[1] < 2 * n_clusters:
            raise DataError(
                f"{len(rows)} utterances have {frames.shape[1]} frames, too few to score layers "
                f"with K={n_clusters}; take more"
            )
        scorer = _LayerScorer(corpus, rows, counts, extractor, n_clusters, seed)
        scores = []
        for layer, of_layer in zip(extractor.layers, frames, strict=True):
            scores.append(scorer.score(layer, torch.from_numpy(np.ascontiguousarray(of_layer))))
        return scores
    finally:
        (scratch / SCRATCH).unlink(missing_ok=True)


def best_layer(scores: Sequence[LayerScore], criterion: str) -> int:
    """The best layer by a criterion; among equal ones the lowest.

    Raises DataError when the speech lacks what the criterion needs.
    """
    check_criterion(criterion)
    values = {score.layer: getattr(score, criterion) for score in scores}
    if any(value is None for value in values.values()):
        lacking = "no alignments"
        if criterion == "abx":
            lacking = "no two of the same phone or word to compare"
        raise DataError(
            f"layers cannot be chosen by {criterion}: these utterances have {lacking}; choose "
            "another layer_choice.split, or layer_choice.criterion=stability, which needs neither"
        )
    return max(values, key=lambda layer: (CRITERIA[criterion] * values[layer], -layer))


def check_criterion(criterion: str) -> None:
    """Raises ConfigError for an unknown criterion."""
    if criterion not in CRITERIA:
        names = list(CRITERIA)
        raise ConfigError(
            f"layer_choice.criterion={criterion!r}: expected one of {', '.join(names)}"
            f"{did_you_mean(criterion, names)}"
        )


def choose_rows(
    corpus: Corpus, split: str, criterion: str, *, max_hours: float, seed: int
) -> NDArray[np.int64]:
    """The utterances that layers are scored on: of a split, aligned if the criterion needs
    alignments, at most `max_hours`.
    """
    check_criterion(criterion)
    rows = corpus.manifest.rows(split)
    if criterion in ("pnmi", "phone_purity"):
        aligned = np.empty(0, dtype=np.int64)
        if corpus.alignments is not None:
            aligned = corpus.alignments.rows()
        rows = np.intersect1d(rows, aligned)
    if len(rows) == 0:
        kind = "utterances" if criterion == "stability" else "utterances with alignments"
        raise DataError(
            f"split {split!r} has no {kind} to choose a layer by {criterion}; choose another "
            "layer_choice.split, or layer_choice.criterion=stability, which needs none"
        )
    return sample.choose_rows(
        corpus.manifest.num_samples, rows, fraction=1.0, max_hours=max_hours, seed=seed
    )


def score_table(scores: Sequence[LayerScore]) -> list[dict[str, Any]]:
    """The scores as plain JSON, rounded to four digits."""
    return [
        {
            name: round(value, 4) if isinstance(value, float) else value
            for name, value in asdict(score).items()
        }
        for score in scores
    ]


class _LayerScorer:
    """Labels of the utterances, computed once for all layers."""

    def __init__(
        self,
        corpus: Corpus,
        rows: NDArray[np.int64],
        counts: list[int],
        extractor: LayerFeatures,
        n_clusters: int,
        seed: int,
    ) -> None:
        self.n_clusters = n_clusters
        self.seed = seed
        self.features = extractor.fingerprint()
        self.grid = extractor.grid

        # First frame of each utterance, and the half of the utterances that each frame is in.
        starts = np.cumsum([0, *counts]).tolist()
        self.starts = dict(zip(map(int, rows), starts, strict=False))
        half_of_rows = seeds.permute(np.arange(len(rows)), len(rows), seed, "halves") % 2
        self.halves = np.repeat(half_of_rows, counts)  # (N,)

        # Phone and speaker of each frame, -1 where unknown.
        self.phones = np.concatenate(
            [
                _frame_phones(corpus, int(row), count, self.grid)
                for row, count in zip(rows, counts, strict=True)
            ]
        )  # (N,)
        self.num_phones = 0 if corpus.alignments is None else len(corpus.alignments.phones)
        names = [corpus.manifest[int(row)].speaker for row in rows]
        numbers = {name: number for number, name in enumerate(sorted(set(names)))}
        speaker_of_rows = [numbers[name] if name else -1 for name in names]
        self.speakers = np.repeat(speaker_of_rows, counts)  # (N,)
        self.num_speakers = len(numbers)

        self.items = self._abx_items(corpus, rows)

    def _abx_items(self, corpus: Corpus, rows: NDArray[np.int64]) -> list[abx.Item]:
        """Phones of the aligned utterances; without alignments, utterances of one word."""
        alignments = corpus.alignments
        if alignments is not None:
            aligned = [row for row in rows.tolist() if alignments.has(row)]
            if aligned:
                return phone_items(corpus, np.array(aligned, dtype=np.int64), self.grid)
        return [item for item in word_items(corpus, self.grid) if item.row in self.starts]

    def score(self, layer: int, frames: Tensor) -> LayerScore:
        """Scores of a layer from its frames (N, D)."""
        ids = self._cluster_ids(frames, frames)
        by_phone = phone_quality(
            count_pairs(ids, self.phones, self.n_clusters, max(1, self.num_phones))
        )
        by_speaker = phone_quality(
            count_pairs(ids, self.speakers, self.n_clusters, max(1, self.num_speakers))
        )
        # Two codebooks, each fitted on one half of the utterances, applied to all frames.
        first_half = torch.from_numpy(self.halves == 0)
        ids_of_first = self._cluster_ids(frames[first_half], frames)
        ids_of_second = self._cluster_ids(frames[~first_half], frames)
        agreement = count_pairs(ids_of_first, ids_of_second, self.n_clusters, self.n_clusters)
        return LayerScore(
            layer=layer,
            pnmi=by_phone.pnmi,
            phone_purity=by_phone.phone_purity,
            cluster_purity=by_phone.cluster_purity,
            speaker_nmi=by_speaker.pnmi,
            abx=self._abx_error(frames.numpy()),
            stability=adjusted_mutual_information(agreement),
            perplexity=perplexity(np.bincount(ids, minlength=self.n_clusters)),
        )

    def _cluster_ids(self, fit_on: Tensor, frames: Tensor) -> NDArray[np.int64]:
        """Ids (N,) of frames (N, D) under a codebook fitted on `fit_on` (n, D)."""
        estimator = KMeans(
            engine="torch",
            n_clusters=self.n_clusters,
            restarts=RESTARTS,
            seed=seeds.derive(self.seed, "layers"),
        )
        centroids = torch.from_numpy(estimator.fit(fit_on.numpy()).cluster_centers_)
        return Codebook(centroids, self.features, self.grid).assign(frames).numpy()

    def _abx_error(self, frames: NDArray[np.float32]) -> float | None:
        def values(item: abx.Item) -> NDArray[np.generic]:
            start = self.starts[item.row]
            return frames[start + item.start : start + item.stop]

        score = abx.abx(self.items, values, distance="angular", max_cells=ABX_CELLS, seed=self.seed)
        errors = [error for error in (score.within, score.across) if error is not None]
        return float(np.mean(errors)) if errors else None


def _gather(
    corpus: Corpus,
    rows: NDArray[np.int64],
    extractor: LayerFeatures,
    device: torch.device | str,
    workers: int,
    scratch: Path,
) -> tuple[NDArray[np.float32], list[int]]:
    """Frames (L, N, D), and the number of frames of each utterance."""
    counts = [
        extractor.grid.num_frames(int(length)) for length in corpus.manifest.num_samples[rows]
    ]
    num_layers = len(extractor.layers)
    shape = (num_layers, sum(counts), extractor.dim // num_layers)
    frames: NDArray[np.float32]
    if 4 * int(np.prod(shape)) > sample.MEMORY_BYTES:
        frames = np.lib.format.open_memmap(
            scratch / SCRATCH, mode="w+", dtype=np.float32, shape=shape
        )
    else:
        frames = np.empty(shape, dtype=np.float32)
    position = 0
    for part in map_frames(
        corpus,
        rows,
        extractor,
        _to_numpy,
        device=device,
        workers=workers,
        description="layers",
        framewise=True,
    ):
        by_layer = part.reshape(len(part), num_layers, -1).swapaxes(0, 1)  # (L, T, D)
        frames[:, position : position + len(part)] = by_layer
        position += len(part)
    return frames, counts


def _to_numpy(frames: Tensor) -> NDArray[np.float32]:
    return np.asarray(frames.cpu().numpy(), dtype=np.float32)


def _frame_phones(corpus: Corpus, row: int, count: int, grid: FrameGrid) -> NDArray[np.int32]:
    """Phone number of each frame of an utterance, -1 without alignment: (count,)."""
    if corpus.alignments is None or not corpus.alignments.has(row):
        return np.full(count, -1, dtype=np.int32)
    return corpus.alignments.frame_phone_ids(row, count, grid)
