"""Which layer of a checkpoint to cluster: every layer scored in one pass over some speech. (The
paper's figure 2, for any checkpoint.)

Each utterance goes through the network once and gives the frames of all layers; then each layer
gets a codebook and its scores. N frames of all utterances, D width of a layer, L layers, K
clusters.
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

CRITERIA = {"pnmi": 1, "phone_purity": 1, "abx": -1, "stability": 1}
"""What a layer may be chosen by; -1 where less is better. The first two need alignments; abx needs
them or one word per utterance; stability needs nothing: agreement of two codebooks, each fitted on
one half of the utterances (von Luxburg 2010)."""
RESTARTS = 3
ABX_CELLS = 1000
SCRATCH = "layers.scratch"


@dataclass(frozen=True)
class LayerScore:
    """What the units of one layer are worth. None where the speech has nothing to measure with."""

    layer: int
    pnmi: float | None
    """Share of the uncertainty about the phone that K clusters remove."""
    phone_purity: float | None
    cluster_purity: float | None
    speaker_nmi: float | None
    """The same share of the uncertainty about the speaker: what units should not say."""
    abx: float | None
    """Share of triplets that go wrong with the frames themselves, mean of within and across
    speakers.
    """
    stability: float
    """Adjusted mutual information of the ids of two codebooks, each fitted on half of the
    utterances.
    """
    perplexity: float


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
        corpus: where the audio, the alignments and the speakers are. rows: of its manifest.
        extractor: gives the layers side by side, e.g. `HubertLayer(checkpoint, "all")`. n_clusters:
        K of every layer's codebook; fitted and measured on the same frames, so let them be many
        more. seed: for k-means. device: where frames are computed. workers: threads that decode
        and, on a CPU, compute. scratch: folder for a memory map of the frames, when they are many.

    Raises:
        DataError: there are too few frames.
    """
    frames, counts = _gather(corpus, rows, extractor, device, workers, scratch)
    if frames.shape[1] < 2 * n_clusters:
        raise DataError(
            f"{len(rows)} utterances have {frames.shape[1]} frames, too few to score layers with K={n_clusters}; take more"
        )
    measure = _Measure(corpus, rows, counts, extractor, n_clusters, seed)
    try:
        return [
            measure(layer, torch.from_numpy(np.ascontiguousarray(part)))
            for layer, part in zip(extractor.layers, frames, strict=True)
        ]
    finally:
        (scratch / SCRATCH).unlink(missing_ok=True)


def best_layer(scores: Sequence[LayerScore], criterion: str) -> int:
    """The layer that a criterion likes best; of equal ones the first.

    Raises DataError when the speech has nothing to measure it with.
    """
    check_criterion(criterion)
    values = {score.layer: getattr(score, criterion) for score in scores}
    if any(value is None for value in values.values()):
        lacking = (
            "no two of the same phone or word to compare" if criterion == "abx" else "no alignments"
        )
        raise DataError(
            f"layers cannot be chosen by {criterion}: these utterances have {lacking}; choose another layer_choice.split, or "
            "layer_choice.criterion=stability, which needs neither"
        )
    return max(values, key=lambda layer: (CRITERIA[criterion] * values[layer], -layer))


def check_criterion(criterion: str) -> None:
    """Raises ConfigError for a criterion that does not exist."""
    if criterion not in CRITERIA:
        names = list(CRITERIA)
        raise ConfigError(
            f"layer_choice.criterion={criterion!r}: expected one of {', '.join(names)}{did_you_mean(criterion, names)}"
        )


def choose_rows(
    corpus: Corpus, split: str, criterion: str, *, max_hours: float, seed: int
) -> NDArray[np.int64]:
    """The utterances that layers are scored on: of a split, aligned ones where the criterion asks
    for it, at most `max_hours`.
    """
    check_criterion(criterion)
    rows = corpus.manifest.rows(split)
    if criterion in ("pnmi", "phone_purity"):
        aligned = (
            corpus.alignments.rows()
            if corpus.alignments is not None
            else np.empty(0, dtype=np.int64)
        )
        rows = np.intersect1d(rows, aligned)
    if len(rows) == 0:
        raise DataError(
            f"split {split!r} has no utterances {'with alignments ' if criterion != 'stability' else ''}to choose a layer by {criterion}; "
            "choose another layer_choice.split, or layer_choice.criterion=stability, which needs none"
        )
    return sample.choose_rows(
        corpus.manifest.num_samples, rows, fraction=1.0, max_hours=max_hours, seed=seed
    )


def table(scores: Sequence[LayerScore]) -> list[dict[str, Any]]:
    """The scores as plain JSON, rounded for people."""
    return [
        {
            name: round(value, 4) if isinstance(value, float) else value
            for name, value in asdict(score).items()
        }
        for score in scores
    ]


class _Measure:
    """What the utterances say, computed once for all layers."""

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
        self.begins = dict(zip(map(int, rows), np.cumsum([0, *counts]).tolist(), strict=False))
        self.halves = np.repeat(
            seeds.permute(np.arange(len(rows)), len(rows), seed, "halves") % 2, counts
        )  # (N,)
        self.phones = np.concatenate(
            [
                _phones(corpus, int(row), count, self.grid)
                for row, count in zip(rows, counts, strict=True)
            ]
        )
        self.num_phones = len(corpus.alignments.phones) if corpus.alignments is not None else 0
        names = [corpus.manifest[int(row)].speaker for row in rows]
        number = {name: i for i, name in enumerate(sorted(set(names)))}
        self.speakers = np.repeat([number[name] if name else -1 for name in names], counts)
        self.num_speakers = len(number)
        aligned = np.array(
            [
                row
                for row in rows
                if corpus.alignments is not None and corpus.alignments.has(int(row))
            ],
            dtype=np.int64,
        )
        self.items = (
            phone_items(corpus, aligned, self.grid)
            if len(aligned)
            else _words(corpus, self.begins, self.grid)
        )

    def __call__(self, layer: int, frames: Tensor) -> LayerScore:
        """Scores a layer from its frames (N, D)."""
        ids = self._ids(frames, frames)
        halves = [
            self._ids(frames[torch.from_numpy(np.flatnonzero(self.halves == half))], frames)
            for half in (0, 1)
        ]
        quality = phone_quality(
            count_pairs(ids, self.phones, self.n_clusters, max(1, self.num_phones))
        )
        speakers = phone_quality(
            count_pairs(ids, self.speakers, self.n_clusters, max(1, self.num_speakers))
        )
        return LayerScore(
            layer=layer,
            pnmi=quality.pnmi,
            phone_purity=quality.phone_purity,
            cluster_purity=quality.cluster_purity,
            speaker_nmi=speakers.pnmi,
            abx=self._abx(frames.numpy()),
            stability=adjusted_mutual_information(
                count_pairs(halves[0], halves[1], self.n_clusters, self.n_clusters)
            ),
            perplexity=perplexity(np.bincount(ids, minlength=self.n_clusters)),
        )

    def _ids(self, some: Tensor, frames: Tensor) -> NDArray[np.int64]:
        """The ids (N,) of all frames, of a codebook that was fitted on some."""
        estimator = KMeans(
            engine="torch",
            n_clusters=self.n_clusters,
            restarts=RESTARTS,
            seed=seeds.derive(self.seed, "layers"),
        )
        centroids = torch.from_numpy(estimator.fit(some.numpy()).cluster_centers_)
        return Codebook(centroids, self.features, self.grid).assign(frames).numpy()

    def _abx(self, frames: NDArray[np.float32]) -> float | None:
        def values(item: abx.Item) -> NDArray[np.generic]:
            begin = self.begins[item.row]
            return frames[begin + item.start : begin + item.stop]

        score = abx.abx(self.items, values, distance="angular", max_cells=ABX_CELLS, seed=self.seed)
        known = [error for error in (score.within, score.across) if error is not None]
        return float(np.mean(known)) if known else None


def _gather(
    corpus: Corpus,
    rows: NDArray[np.int64],
    extractor: LayerFeatures,
    device: torch.device | str,
    workers: int,
    scratch: Path,
) -> tuple[NDArray[np.float32], list[int]]:
    """Frames (L, N, D), and how many each utterance has."""
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
        what="layers",
        rowwise=True,
    ):
        frames[:, position : position + len(part)] = part.reshape(
            len(part), num_layers, -1
        ).swapaxes(0, 1)
        position += len(part)
    return frames, counts


def _to_numpy(frames: Tensor) -> NDArray[np.float32]:
    return np.asarray(frames.cpu().numpy(), dtype=np.float32)


def _phones(corpus: Corpus, row: int, count: int, grid: Any) -> NDArray[np.int32]:
    if corpus.alignments is None or not corpus.alignments.has(row):
        return np.full(count, -1, dtype=np.int32)
    return corpus.alignments.frame_phone_ids(row, count, grid)


def _words(corpus: Corpus, begins: dict[int, int], grid: Any) -> list[abx.Item]:
    return [item for item in word_items(corpus, grid) if item.row in begins]
