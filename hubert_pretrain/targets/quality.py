"""What targets are worth: the facts of a label stage, and of any two stores of one corpus. K
clusters, P phones, N codebooks.

Everything is computed from the finished store, so the facts do not depend on how often its making
was interrupted.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hubert_pretrain.clustering import abx
from hubert_pretrain.clustering.abx_items import phone_items, word_items
from hubert_pretrain.clustering.quality import (
    adjusted_mutual_information,
    count_pairs,
    entropy,
    perplexity,
    phone_quality,
    run_lengths,
)
from hubert_pretrain.data.corpus import Corpus
from hubert_pretrain.errors import ArtefactError
from hubert_pretrain.frames import seconds
from hubert_pretrain.targets.store import TargetStore, one_or_several

FRAMES_AT_ONCE = 1 << 24
"""Frames per pass of `count_ids`."""
ROWS_TO_LOOK_AT = 50_000
"""Runs, speakers and single words are measured on so many utterances of `train`, evenly spaced,
when there are more.
"""
SPEAKERS_TO_LOOK_AT = 1000
ROWS_FOR_ABX = 2000
"""Aligned utterances, evenly spaced, whose phones are compared: some two hours."""
MEANS = (
    "pnmi",
    "phone_purity",
    "cluster_purity",
    "speaker_purity",
    "speaker_nmi",
    "used_clusters",
    "perplexity",
    "mean_run_ms",
)


def measure_targets(store: TargetStore, corpus: Corpus) -> dict[str, Any]:
    """The facts of a label stage. None where a corpus has nothing to measure with.

    Phone measures are over all rows with an alignment; entropy, use of clusters, runs and speakers
    over split `train`, whose entropy is what a masked loss must fall below to have learnt more than
    how frequent each cluster is. With several codebooks the entropy is the sum over them, as the
    loss is; ABX is of all of them together; the other measures are means, and `codebooks` has those
    of each.
    """
    facts: dict[str, Any] = {"n_clusters": one_or_several(store.sizes)}
    each = [_measure_codebook(store, corpus, number) for number in range(len(store.sizes))]
    if len(each) == 1:
        facts |= each[0]
    else:
        facts |= {name: _mean([one[name] for one in each]) for name in MEANS}
        facts["unigram_entropy_nats"] = sum(one["unigram_entropy_nats"] for one in each)
        facts["codebooks"] = each
    facts["frames"] = int(store.offsets[-1])
    facts["mean_phone_ms"] = mean_phone_ms(corpus)
    return facts | _abx(store, corpus)


def _measure_codebook(store: TargetStore, corpus: Corpus, codebook: int) -> dict[str, Any]:
    train = count_ids(store, corpus.manifest.rows("train"), codebook)
    quality = phone_quality(
        count_phones(store, corpus, codebook)
        if corpus.alignments is not None
        else np.zeros((1, 1), np.int64)
    )
    speakers = phone_quality(count_speakers(store, corpus, codebook))
    lengths = train_run_lengths(store, corpus, codebook)
    return {
        "pnmi": quality.pnmi,
        "phone_purity": quality.phone_purity,
        "cluster_purity": quality.cluster_purity,
        "speaker_purity": speakers.phone_purity,
        "speaker_nmi": speakers.pnmi,
        "unigram_entropy_nats": entropy(train),
        "used_clusters": int((train > 0).sum()),
        "perplexity": perplexity(train),
        "mean_run_ms": 1000 * float(lengths.mean()) / store.grid.frames_per_second
        if len(lengths)
        else None,
    }


def _abx(store: TargetStore, corpus: Corpus) -> dict[str, float | None]:
    """Of the ids themselves: of phones in context, or without alignments of words, where utterances
    are single words.
    """
    if corpus.alignments is not None:
        items = phone_items(corpus, spread(corpus.alignments.rows(), ROWS_FOR_ABX), store.grid)
    else:
        items = word_items(corpus, store.grid, spread(corpus.manifest.rows(), ROWS_TO_LOOK_AT))
    score = abx.abx(
        items, lambda item: store.frames(item.row)[item.start : item.stop], distance="units"
    )
    return {"abx_within": score.within, "abx_across": score.across}


def count_ids(store: TargetStore, rows: NDArray[np.int64], codebook: int = 0) -> NDArray[np.int64]:
    """How often each cluster occurs in a range of neighbouring rows (a split): (K,)."""
    counts = np.zeros(store.sizes[codebook], dtype=np.int64)
    for ids in _stretches(store, rows):
        counts += np.bincount(ids[:, codebook], minlength=len(counts))
    return counts


def count_phones(store: TargetStore, corpus: Corpus, codebook: int = 0) -> NDArray[np.int64]:
    """Joint counts (K, P) of ids and the phones at the frames' centres, over all aligned rows. P >=
    1.
    """
    alignments = corpus.alignments
    assert alignments is not None
    size = store.sizes[codebook]
    n_phones = max(1, len(alignments.phones))
    joint = np.zeros((size, n_phones), dtype=np.int64)
    for row in map(int, alignments.rows()):
        ids = store.frames(row)[:, codebook]
        joint += count_pairs(
            ids, alignments.frame_phone_ids(row, len(ids), store.grid), size, n_phones
        )
    return joint


def count_speakers(store: TargetStore, corpus: Corpus, codebook: int = 0) -> NDArray[np.int64]:
    """Joint counts (K, speakers) of ids and who speaks, over `train`; of at most
    SPEAKERS_TO_LOOK_AT speakers. One column without names.
    """
    rows = spread(corpus.manifest.rows("train"), ROWS_TO_LOOK_AT)
    speakers = corpus.manifest.take("speaker", rows)
    numbers = speakers.indices.to_numpy()
    names = speakers.dictionary.to_pylist()
    joint = np.zeros(
        (store.sizes[codebook], max(1, min(len(names), SPEAKERS_TO_LOOK_AT))), dtype=np.int64
    )
    for row, number in zip(rows.tolist(), numbers.tolist(), strict=True):
        if names[number] and number < joint.shape[1]:
            joint[:, number] += np.bincount(store.frames(row)[:, codebook], minlength=len(joint))
    return joint


def count_both(
    store: TargetStore, other: TargetStore, codebook: int = 0, other_codebook: int = 0
) -> NDArray[np.int64]:
    """Joint counts (K, K') of the ids that two stores give the same frames. Raises ArtefactError
    when their frames are not the same.
    """
    if store.manifest_fingerprint != other.manifest_fingerprint or not np.array_equal(
        store.offsets, other.offsets
    ):
        raise ArtefactError(
            f"{other.folder}: targets of other utterances, or on another grid, than {store.folder}; label the same corpus"
        )
    shape = store.sizes[codebook], other.sizes[other_codebook]
    joint = np.zeros(shape[0] * shape[1], dtype=np.int64)
    rows = np.arange(len(store))
    for ids, others in zip(_stretches(store, rows), _stretches(other, rows), strict=True):
        joint += np.bincount(
            ids[:, codebook].astype(np.int64) * shape[1] + others[:, other_codebook],
            minlength=len(joint),
        )
    return joint.reshape(shape)


def stability(store: TargetStore, other: TargetStore) -> list[float]:
    """Adjusted mutual information of two stores of one corpus, codebook by codebook: 1 when they
    say the same, 0 when unrelated.

    Raises ArtefactError when they are not of the same frames, or have another number of codebooks.
    """
    if len(store.sizes) != len(other.sizes):
        raise ArtefactError(
            f"{other.folder}: has {len(other.sizes)} codebooks, {store.folder} has {len(store.sizes)}; compare like with like"
        )
    return [
        adjusted_mutual_information(count_both(store, other, number, number))
        for number in range(len(store.sizes))
    ]


def train_run_lengths(store: TargetStore, corpus: Corpus, codebook: int = 0) -> NDArray[np.int64]:
    """Frames of each run of equal ids in `train`: (runs,)."""
    rows = spread(corpus.manifest.rows("train"), ROWS_TO_LOOK_AT)
    return np.concatenate(
        [
            np.empty(0, np.int64),
            *(run_lengths(store.frames(int(row))[:, codebook])[1] for row in rows),
        ]
    )


def mean_phone_ms(corpus: Corpus) -> float | None:
    """Mean length of an aligned phone: what runs of units may be compared with."""
    if corpus.alignments is None:
        return None
    total = 0
    count = 0
    for row in map(int, spread(corpus.alignments.rows(), ROWS_TO_LOOK_AT)):
        phones, starts, ends = corpus.alignments.intervals(row)
        total = total + int((ends - starts).sum())
        count = count + len(phones)
    return 1000 * seconds(total) / count if count else None


def spread(rows: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """At most `count` of the rows, evenly spaced."""
    return (
        rows if len(rows) <= count else rows[np.linspace(0, len(rows) - 1, count).astype(np.int64)]
    )


def _stretches(store: TargetStore, rows: NDArray[np.int64]) -> Iterator[NDArray[np.uint16]]:
    """The ids (frames, N) of neighbouring rows, piece by piece."""
    start, stop = (
        (int(store.offsets[rows[0]]), int(store.offsets[rows[-1] + 1])) if len(rows) else (0, 0)
    )
    for position in range(start, stop, FRAMES_AT_ONCE):
        yield store.ids[position : min(position + FRAMES_AT_ONCE, stop)]


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None
