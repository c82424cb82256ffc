"""Tables of the units of one iteration: phones, speakers, durations, neighbours.

Letters: K clusters, P phones, S speakers, T frames.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hubert_pretrain.clustering.codebook_set import CodebookSet
from hubert_pretrain.clustering.quality import count_pairs, run_lengths
from hubert_pretrain.data.corpus import Corpus
from hubert_pretrain.errors import HubertPretrainError
from hubert_pretrain.targets.phone_discovery import PHONE_GRID, phones_of, score_units
from hubert_pretrain.targets.quality import evenly_spaced
from hubert_pretrain.targets.store import TargetStore

MAX_ROWS = 2000
"""Utterances that are counted, evenly spaced: the report stays quick for a large corpus."""
MAX_SPEAKERS = 200
MAX_PHONES = 60
"""Rows of the heat map: the most frequent phones."""
NEIGHBOURS = 5


@dataclass(frozen=True)
class Counts:
    """Counts over some utterances."""

    phones: NDArray[np.int64]
    """(K, P)."""
    speakers: NDArray[np.int64]
    """(K, S)."""
    runs: NDArray[np.int64]
    """(K,) runs of equal ids."""
    run_frames: NDArray[np.int64]
    """(K,) frames in these runs: all frames of the unit."""


def unit_table(store: TargetStore, corpus: Corpus, codebook_folder: Path | None) -> dict[str, Any]:
    """Plain JSON values about the units of the first codebook.

    codebook_folder: of the cluster stage, for neighbours; None: there are none.
    """
    counts = count(store, corpus)
    names = speaker_names(corpus)
    frames_ms = 1000 / store.grid.frames_per_second
    table: dict[str, Any] = {
        "n_clusters": store.sizes[0],
        "codebooks": len(store.sizes),
        "frame_ms": frames_ms,
        "use": counts.run_frames.tolist(),
        "duration_ms": [
            round(frames_ms * frames / runs, 1) if runs else None
            for frames, runs in zip(counts.run_frames, counts.runs, strict=True)
        ],
        "speakers": [top(row, names, 3) for row in counts.speakers],
        "neighbours": neighbours(codebook_folder),
    }
    return table | phone_table(store, corpus, counts)


def phone_table(store: TargetStore, corpus: Corpus, counts: Counts) -> dict[str, Any]:
    """P(phone | unit) in percent with phones by frequency, and how units follow phones; empty
    without alignments.
    """
    alignments = corpus.alignments
    if alignments is None or not counts.phones.any():
        return {}
    order = np.argsort(-counts.phones.sum(axis=0), kind="stable")
    order = order[counts.phones.sum(axis=0)[order] > 0][:MAX_PHONES]
    of_units = counts.phones.sum(axis=1, keepdims=True)
    shares = 100 * counts.phones[:, order] / np.maximum(1, of_units)
    return {
        "phones": [alignments.phones[number] for number in order],
        "shares": np.rint(shares).astype(int).tolist(),
        "segments": segment_scores(store, corpus),
    }


def segment_scores(store: TargetStore, corpus: Corpus) -> dict[str, float]:
    """Phone error rate and boundaries where each unit stands for its most frequent phone, as the
    command score-units measures them; empty where units do not last a multiple of 10 ms.
    """
    alignments = corpus.alignments
    repeat, rest = divmod(store.grid.hop, PHONE_GRID.hop)
    if rest or alignments is None:
        return {}
    rows = evenly_spaced(alignments.rows(), MAX_ROWS)
    scores = score_units(
        [store.target_matrix(row)[:, 0] for row in rows.tolist()],
        list(phones_of(corpus, rows)),
        n_units=store.sizes[0],
        n_phones=len(alignments.phones),
        repeat=repeat,
    )
    return asdict(scores.many_to_one)


def count(store: TargetStore, corpus: Corpus) -> Counts:
    """Counts over at most MAX_ROWS utterances."""
    size = store.sizes[0]
    alignments = corpus.alignments
    num_phones = 1 if alignments is None else max(1, len(alignments.phones))
    phones = np.zeros((size, num_phones), dtype=np.int64)
    runs = np.zeros(size, dtype=np.int64)
    run_frames = np.zeros(size, dtype=np.int64)
    names = speaker_names(corpus)
    speakers = np.zeros((size, max(1, len(names))), dtype=np.int64)
    rows = evenly_spaced(corpus.manifest.rows(), MAX_ROWS)
    numbers = corpus.manifest.take("speaker", rows).indices.to_numpy()
    for row, speaker in zip(rows.tolist(), numbers.tolist(), strict=True):
        ids = store.target_matrix(row)[:, 0]
        if alignments is not None and alignments.has(row):
            of_frames = alignments.frame_phone_ids(row, len(ids), store.grid)
            phones += count_pairs(ids, of_frames, size, num_phones)
        if speaker < len(names) and names[speaker]:
            speakers[:, speaker] += np.bincount(ids, minlength=size)
        starts, lengths = run_lengths(ids)
        values = ids[starts]
        runs += np.bincount(values, minlength=size)
        np.add.at(run_frames, values, lengths)
    return Counts(phones, speakers, runs, run_frames)


def speaker_names(corpus: Corpus) -> list[str]:
    """Names by number, at most MAX_SPEAKERS."""
    rows = corpus.manifest.rows()[:1]
    names = corpus.manifest.take("speaker", rows).dictionary.to_pylist()
    return [str(name or "") for name in names[:MAX_SPEAKERS]]


def top(counts: NDArray[np.int64], names: list[str], number: int) -> list[tuple[str, int]]:
    """The most frequent names, with their share in percent."""
    total = int(counts.sum())
    if not total:
        return []
    order = np.argsort(-counts, kind="stable")[:number]
    return [
        (names[place], round(100 * int(counts[place]) / total))
        for place in order.tolist()
        if counts[place] and names[place]
    ]


def neighbours(codebook_folder: Path | None) -> list[list[int]]:
    """The nearest other centroids of each unit; empty where there is no codebook."""
    if codebook_folder is None:
        return []
    try:
        centroids = CodebookSet.load(codebook_folder).parts[0].codebook.centroids
    except HubertPretrainError:
        return []
    distances = torch.cdist(centroids, centroids)
    distances.fill_diagonal_(float("inf"))
    nearest = min(NEIGHBOURS, len(centroids) - 1)
    return distances.topk(nearest, largest=False).indices.tolist() if nearest else []
