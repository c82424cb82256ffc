"""Scores of what a network has learnt, on speech that nobody trained on (`bench_learning.py`).

Every network gets a codebook of the same K from the same training speech; its layer is chosen by
PNMI on one split, and its units are scored on another, whose speakers should be new.

Letters: T frames of an utterance, L layers, D width of a layer, K clusters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hubert_pretrain import seeds
from hubert_pretrain.clustering import abx, sample
from hubert_pretrain.clustering.abx_items import phone_items
from hubert_pretrain.clustering.codebook import Codebook
from hubert_pretrain.clustering.kmeans import KMeans
from hubert_pretrain.clustering.quality import count_pairs, phone_quality
from hubert_pretrain.data.corpus import Corpus
from hubert_pretrain.errors import DataError
from hubert_pretrain.features.corpus_frames import map_frames
from hubert_pretrain.features.extractor import FeatureExtractor
from hubert_pretrain.targets.phone_discovery import PHONE_HOP, phones_of, score_units

Frames = list[NDArray[np.float32]]
"""(T, L, D) of each utterance."""


@dataclass(frozen=True)
class Scoring:
    """The speech that networks are compared on."""

    n_clusters: int = 50
    """K of every codebook."""
    fit_minutes: float = 30.0
    """Most speech of `train` that codebooks are fitted on."""
    choose_on: str = "valid"
    """Split on which the layer is chosen."""
    split: str = "test"
    """Split whose units are scored."""
    minutes: float = 20.0
    """Most speech of each of these splits."""
    restarts: int = 3
    """Of k-means."""
    center_utterances: bool = False
    """Layers of networks less the mean of each utterance, as `features.center_utterances`."""


def score_network(
    corpus: Corpus, extractor: FeatureExtractor, scoring: Scoring, *, seed: int
) -> dict[str, Any]:
    """Scores of the best layer. Features without layers are one layer.

    Raises DataError when a split has no alignments.
    """
    layers = list(getattr(extractor, "layers", [])) or [0]
    fit_rows = chosen(corpus, "train", scoring.fit_minutes, seed, aligned=False)
    fit_frames = frames_of(corpus, fit_rows, extractor, len(layers))
    choose_rows = chosen(corpus, scoring.choose_on, scoring.minutes, seed)
    choose_frames = frames_of(corpus, choose_rows, extractor, len(layers))
    codebooks = [
        fitted(fit_frames, place, extractor, scoring, seed) for place in range(len(layers))
    ]
    found = [
        pnmi(corpus, choose_rows, units_of(choose_frames, place, codebook), extractor)
        for place, codebook in enumerate(codebooks)
    ]
    best = int(np.argmax(found))
    rows = chosen(corpus, scoring.split, scoring.minutes, seed)
    frames = frames_of(corpus, rows, extractor, len(layers))
    of_best = [each[:, best] for each in frames]  # (T, D)
    units = units_of(frames, best, codebooks[best])
    scores = score_units(
        units,
        list(phones_of(corpus, rows)),
        n_units=scoring.n_clusters,
        n_phones=num_phones(corpus),
        repeat=extractor.grid.hop // PHONE_HOP,
    )
    error = abx.abx(
        phone_items(corpus, rows, extractor.grid),
        lambda item: at_row(of_best, rows, item.row)[item.start : item.stop],
        distance="angular",
        seed=seed,
    )
    return {
        "layer": layers[best],
        "pnmi": scores.pnmi,
        "phone_purity": scores.phone_purity,
        "many_to_one": vars(scores.many_to_one),
        "one_to_one": vars(scores.one_to_one),
        "mean_run_ms": scores.mean_run_ms,
        "abx_within": error.within,
        "abx_across": error.across,
        "speaker_nmi": speaker_information(corpus, rows, units, scoring.n_clusters),
        "pnmi_of_layers": dict(zip(map(str, layers), found, strict=True)),
        "utterances": len(rows),
        "speakers": sorted({corpus.manifest[int(row)].speaker for row in rows}),
    }


def chosen(
    corpus: Corpus, split: str, minutes: float, seed: int, *, aligned: bool = True
) -> NDArray[np.int64]:
    """Rows of a split, so many minutes of it at most, those with alignments alone."""
    rows = corpus.manifest.rows(split)
    if aligned:
        known = corpus.alignments.rows() if corpus.alignments is not None else rows[:0]
        rows = np.intersect1d(rows, known)
    if not len(rows):
        raise DataError(
            f"split {split!r} has no utterances{' with phone alignments' if aligned else ''}; "
            "name another in `score`, or give the corpus alignments (data.alignments)"
        )
    return sample.choose_rows(
        corpus.manifest.num_samples, rows, fraction=1.0, max_hours=minutes / 60, seed=seed
    )


def frames_of(
    corpus: Corpus, rows: NDArray[np.int64], extractor: FeatureExtractor, num_layers: int
) -> Frames:
    """The frames of utterances, layer by layer."""

    def by_layer(frames: Tensor) -> NDArray[np.float32]:
        return np.asarray(frames.reshape(len(frames), num_layers, -1).cpu().numpy())

    return list(map_frames(corpus, rows, extractor, by_layer, framewise=True))


def fitted(
    frames: Frames, place: int, extractor: FeatureExtractor, scoring: Scoring, seed: int
) -> Codebook:
    """The codebook of one layer."""
    together = np.ascontiguousarray(np.concatenate([each[:, place] for each in frames]))
    estimator = KMeans(
        engine="torch",
        n_clusters=scoring.n_clusters,
        restarts=scoring.restarts,
        max_iterations=30,
        tolerance=1e-3,
        seed=seeds.derive(seed, "learning scores"),
    )
    centroids = torch.from_numpy(estimator.fit(together).cluster_centers_)
    return Codebook(centroids, extractor.fingerprint(), extractor.grid)


def units_of(frames: Frames, place: int, codebook: Codebook) -> list[NDArray[np.int64]]:
    """(T,) of each utterance."""
    return [
        codebook.assign(torch.from_numpy(np.ascontiguousarray(each[:, place]))).numpy()
        for each in frames
    ]


def pnmi(
    corpus: Corpus,
    rows: NDArray[np.int64],
    units: Sequence[NDArray[np.int64]],
    extractor: FeatureExtractor,
) -> float:
    """PNMI of units; 0 where it is undefined."""
    assert corpus.alignments is not None
    n_units = max(int(each.max(initial=0)) for each in units) + 1
    joint = np.zeros((n_units, num_phones(corpus)), dtype=np.int64)
    for row, ids in zip(rows.tolist(), units, strict=True):
        phones = corpus.alignments.frame_phone_ids(row, len(ids), extractor.grid)
        joint += count_pairs(ids, phones, *joint.shape)
    return phone_quality(joint).pnmi or 0.0


def speaker_information(
    corpus: Corpus, rows: NDArray[np.int64], units: Sequence[NDArray[np.int64]], n_clusters: int
) -> float | None:
    """Share of the uncertainty about the speaker that a unit removes; None for one speaker."""
    names = [corpus.manifest[int(row)].speaker for row in rows]
    numbers = {name: number for number, name in enumerate(sorted(set(names)))}
    joint = np.zeros((n_clusters, len(numbers)), dtype=np.int64)
    for name, ids in zip(names, units, strict=True):
        joint[:, numbers[name]] += np.bincount(ids, minlength=n_clusters)
    return phone_quality(joint).pnmi


def num_phones(corpus: Corpus) -> int:
    """P, at least 1."""
    return max(1, len(corpus.alignments.phones)) if corpus.alignments is not None else 1


def at_row(
    frames: Sequence[NDArray[np.float32]], rows: NDArray[np.int64], row: int
) -> NDArray[np.float32]:
    """Frames of a row of the manifest; `rows` ascending."""
    return frames[int(np.searchsorted(rows, row))]
