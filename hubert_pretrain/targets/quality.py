"""Quality of targets: the facts of a label stage, and the agreement of two stores of one corpus.

Everything is computed from the finished store, so the facts do not depend on interruptions.

Letters: T frames of an utterance, N codebooks, K clusters, P phones.
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
MAX_ROWS = 50_000
"""Runs, speakers and single words are measured on at most so many utterances, evenly spaced."""
MAX_SPEAKERS = 1000
MAX_ABX_ROWS = 2000
"""Aligned utterances, evenly spaced, whose phones are compared: about two hours."""
AVERAGED = [
    "pnmi",
    "phone_purity",
    "cluster_purity",
    "speaker_purity",
    "speaker_nmi",
    "used_clusters",
    "perplexity",
    "mean_run_ms",
]
"""Measures that are averaged over several codebooks."""


def measure_targets(store: TargetStore, corpus: Corpus) -> dict[str, Any]:
    """The facts of a label stage. A measure is None where the corpus lacks what it needs.

    Phone measures use all aligned rows; entropy, used clusters, runs and speakers use split
    `train`. The unigram entropy of `train` is the masked prediction loss of a model that knows only
    how frequent each cluster is, so a loss above it has learnt nothing more. With several codebooks
    the entropy is the sum over them, like the loss; ABX uses all of them together; the other
    measures are means, and `codebooks` lists those of each.
    """
    facts: dict[str, Any] = {"n_clusters": one_or_several(store.sizes)}
    of_codebooks = [_measure_codebook(store, corpus, number) for number in range(len(store.sizes))]
    if len(of_codebooks) == 1:
        facts |= of_codebooks[0]
    else:
        facts |= {name: _mean([each[name] for each in of_codebooks]) for name in AVERAGED}
        facts["unigram_entropy_nats"] = sum(each["unigram_entropy_nats"] for each in of_codebooks)
        facts["codebooks"] = of_codebooks
    facts["frames"] = int(store.offsets[-1])
    facts["mean_phone_ms"] = mean_phone_ms(corpus)
    return facts | _measure_abx(store, corpus)


def describe_targets(facts: dict[str, Any]) -> str:
    """One line for the log, from `measure_targets`; measures that are None are left out."""
    shown = {
        "frames": facts["frames"],
        "clusters used": facts["used_clusters"],
        "entropy (nats)": facts["unigram_entropy_nats"],
        "PNMI": facts["pnmi"],
        "phone purity": facts["phone_purity"],
        "mean run (ms)": facts["mean_run_ms"],
    }
    known = {name: value for name, value in shown.items() if value is not None}
    return "targets: " + ", ".join(
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in known.items()
    )


def _measure_codebook(store: TargetStore, corpus: Corpus, codebook: int) -> dict[str, Any]:
    by_phone = phone_quality(count_phones(store, corpus, codebook))
    by_speaker = phone_quality(count_speakers(store, corpus, codebook))
    id_counts = count_ids(store, corpus.manifest.rows("train"), codebook)
    lengths = train_run_lengths(store, corpus, codebook)
    mean_run_ms = None
    if len(lengths):
        mean_run_ms = 1000 * float(lengths.mean()) / store.grid.frames_per_second
    return {
        "pnmi": by_phone.pnmi,
        "phone_purity": by_phone.phone_purity,
        "cluster_purity": by_phone.cluster_purity,
        "speaker_purity": by_speaker.phone_purity,
        "speaker_nmi": by_speaker.pnmi,
        "unigram_entropy_nats": entropy(id_counts),
        "used_clusters": int((id_counts > 0).sum()),
        "perplexity": perplexity(id_counts),
        "mean_run_ms": mean_run_ms,
    }


def _measure_abx(store: TargetStore, corpus: Corpus) -> dict[str, float | None]:
    """ABX of the ids: of phones in context; without alignments, of utterances of one word."""
    if corpus.alignments is not None:
        rows = evenly_spaced(corpus.alignments.rows(), MAX_ABX_ROWS)
        items = phone_items(corpus, rows, store.grid)
    else:
        rows = evenly_spaced(corpus.manifest.rows(), MAX_ROWS)
        items = word_items(corpus, store.grid, rows)

    def values(item: abx.Item) -> NDArray[np.uint16]:
        return store.target_matrix(item.row)[item.start : item.stop]

    score = abx.abx(items, values, distance="units")
    return {"abx_within": score.within, "abx_across": score.across}


# -- counts


def count_ids(store: TargetStore, rows: NDArray[np.int64], codebook: int = 0) -> NDArray[np.int64]:
    """Frames of each cluster in consecutive rows (a split): (K,)."""
    counts = np.zeros(store.sizes[codebook], dtype=np.int64)
    for ids in _id_blocks(store, rows):
        counts += np.bincount(ids[:, codebook], minlength=len(counts))
    return counts


def count_phones(store: TargetStore, corpus: Corpus, codebook: int = 0) -> NDArray[np.int64]:
    """Joint counts (K, P) of ids and the phones at the frames' centres, over all aligned rows. P is
    at least 1.
    """
    size = store.sizes[codebook]
    alignments = corpus.alignments
    if alignments is None:
        return np.zeros((size, 1), dtype=np.int64)
    n_phones = max(1, len(alignments.phones))
    joint = np.zeros((size, n_phones), dtype=np.int64)
    for row in alignments.rows().tolist():
        ids = store.target_matrix(row)[:, codebook]
        phones = alignments.frame_phone_ids(row, len(ids), store.grid)
        joint += count_pairs(ids, phones, size, n_phones)
    return joint


def count_speakers(store: TargetStore, corpus: Corpus, codebook: int = 0) -> NDArray[np.int64]:
    """Joint counts (K, speakers) of ids and speakers in `train`, of at most MAX_SPEAKERS speakers;
    one column of zeros when no speaker is known.
    """
    rows = evenly_spaced(corpus.manifest.rows("train"), MAX_ROWS)
    speakers = corpus.manifest.take("speaker", rows)
    numbers = speakers.indices.to_numpy()
    names = speakers.dictionary.to_pylist()
    num_speakers = max(1, min(len(names), MAX_SPEAKERS))
    joint = np.zeros((store.sizes[codebook], num_speakers), dtype=np.int64)
    for row, number in zip(rows.tolist(), numbers.tolist(), strict=True):
        if names[number] and number < num_speakers:
            ids = store.target_matrix(row)[:, codebook]
            joint[:, number] += np.bincount(ids, minlength=len(joint))
    return joint


def count_joint(
    store: TargetStore, other: TargetStore, codebook: int = 0, other_codebook: int = 0
) -> NDArray[np.int64]:
    """Joint counts (K, K') of the ids of the same frames in two stores.

    Raises ArtefactError when their frames are not the same.
    """
    same_rows = store.manifest_fingerprint == other.manifest_fingerprint
    if not same_rows or not np.array_equal(store.offsets, other.offsets):
        raise ArtefactError(
            f"{other.folder}: targets of other utterances, or on another grid, than "
            f"{store.folder}; label the same corpus"
        )
    size = store.sizes[codebook]
    other_size = other.sizes[other_codebook]
    joint = np.zeros(size * other_size, dtype=np.int64)
    rows = np.arange(len(store))
    for ids, other_ids in zip(_id_blocks(store, rows), _id_blocks(other, rows), strict=True):
        pairs = ids[:, codebook].astype(np.int64) * other_size + other_ids[:, other_codebook]
        joint += np.bincount(pairs, minlength=len(joint))
    return joint.reshape(size, other_size)


def stability(store: TargetStore, other: TargetStore) -> list[float]:
    """Adjusted mutual information of two stores of one corpus, codebook by codebook: 1 when they
    agree up to a renumbering, about 0 when they are independent.

    Raises ArtefactError when their frames or their numbers of codebooks differ.
    """
    if len(store.sizes) != len(other.sizes):
        raise ArtefactError(
            f"{other.folder}: has {len(other.sizes)} codebooks, {store.folder} has "
            f"{len(store.sizes)}; compare stores with the same number"
        )
    return [
        adjusted_mutual_information(count_joint(store, other, number, number))
        for number in range(len(store.sizes))
    ]


# -- durations


def train_run_lengths(store: TargetStore, corpus: Corpus, codebook: int = 0) -> NDArray[np.int64]:
    """Frames of each run of equal ids in `train`: (runs,)."""
    lengths = [np.empty(0, np.int64)]
    for row in evenly_spaced(corpus.manifest.rows("train"), MAX_ROWS).tolist():
        _, of_row = run_lengths(store.target_matrix(row)[:, codebook])
        lengths.append(of_row)
    return np.concatenate(lengths)


def mean_phone_ms(corpus: Corpus) -> float | None:
    """Mean duration of an aligned phone, for comparison with the runs of units."""
    if corpus.alignments is None:
        return None
    num_samples = 0
    num_phones = 0
    for row in evenly_spaced(corpus.alignments.rows(), MAX_ROWS).tolist():
        phones, starts, ends = corpus.alignments.intervals(row)
        num_samples += int((ends - starts).sum())
        num_phones += len(phones)
    return 1000 * seconds(num_samples) / num_phones if num_phones else None


def evenly_spaced(rows: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """At most `count` of the rows, evenly spaced."""
    if len(rows) <= count:
        return rows
    return rows[np.linspace(0, len(rows) - 1, count).astype(np.int64)]


def _id_blocks(store: TargetStore, rows: NDArray[np.int64]) -> Iterator[NDArray[np.uint16]]:
    """The ids (frames, N) of consecutive rows, in blocks of bounded size."""
    if len(rows) == 0:
        return
    start = int(store.offsets[rows[0]])
    stop = int(store.offsets[rows[-1] + 1])
    for position in range(start, stop, FRAMES_AT_ONCE):
        yield store.ids[position : min(position + FRAMES_AT_ONCE, stop)]


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None
