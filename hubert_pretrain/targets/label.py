"""Corpus x codebook -> targets, and what they are worth. T frames, D width, K clusters, P phones."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hubert_pretrain.clustering.codebook import Codebook
from hubert_pretrain.clustering.quality import count_pairs, entropy, perplexity, phone_quality
from hubert_pretrain.data.corpus import Corpus
from hubert_pretrain.features.extractor import Extractor
from hubert_pretrain.features.stream import map_frames
from hubert_pretrain.targets.store import DTYPE, TargetStore, TargetWriter

IDS_AT_ONCE = 1 << 24
"""Ids per pass of `count_ids`."""


def label(
    corpus: Corpus, writer: TargetWriter, extractor: Extractor, codebook: Codebook, *, device: torch.device | str = "cpu", workers: int = 1
) -> None:
    """Fills the blocks of a store that are not done: each utterance is read, made into frames, assigned and forgotten.

    Raises:
        ArtefactError: the codebook was fitted on other features than the extractor's.
        DataError: audio cannot be read or gives NaN; the message names the utterance. Blocks before it stay done.
    """
    codebook.check_features(extractor)
    codebook = codebook.to(device)
    pending = writer.pending()
    rows = np.concatenate([writer.rows(int(block)) for block in pending]) if len(pending) else np.empty(0, dtype=np.int64)

    def assign(frames: Tensor) -> NDArray[np.uint16]:
        return np.asarray(codebook.assign(frames).cpu().numpy(), dtype=DTYPE)

    ids: Iterator[NDArray[np.uint16]] = map_frames(corpus, rows, extractor, assign, device=device, workers=workers, what="labelling")
    for block in pending:
        writer.write(int(block), list(islice(ids, len(writer.rows(int(block))))))


def measure(store: TargetStore, corpus: Corpus) -> dict[str, Any]:
    """The facts of a label stage, from the finished store (so that they do not depend on how often it was interrupted).

    Phone measures are over all rows with an alignment, None without any; entropy and use of clusters are over split `train`, whose
    entropy is what a masked loss must fall below to have learnt more than how frequent each cluster is.
    """
    train = count_ids(store, corpus.manifest.rows("train"))
    quality = phone_quality(count_phones(store, corpus)) if corpus.alignments is not None else phone_quality(np.zeros((1, 1), np.int64))
    return {
        "n_clusters": store.num_clusters,
        "pnmi": quality.pnmi,
        "phone_purity": quality.phone_purity,
        "cluster_purity": quality.cluster_purity,
        "unigram_entropy_nats": entropy(train),
        "frames": int(store.offsets[-1]),
        "used_clusters": int((train > 0).sum()),
        "perplexity": perplexity(train),
    }


def count_ids(store: TargetStore, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """How often each cluster occurs in a range of neighbouring rows (a split): (K,)."""
    counts = np.zeros(store.num_clusters, dtype=np.int64)
    if len(rows) == 0:
        return counts
    start, stop = int(store.offsets[rows[0]]), int(store.offsets[rows[-1] + 1])
    for position in range(start, stop, IDS_AT_ONCE):
        counts += np.bincount(store.ids[position : min(position + IDS_AT_ONCE, stop)], minlength=store.num_clusters)
    return counts


def count_phones(store: TargetStore, corpus: Corpus) -> NDArray[np.int64]:
    """Joint counts (K, P) of ids and the phones at the frames' centres, over all aligned rows. P >= 1."""
    alignments = corpus.alignments
    assert alignments is not None
    n_phones = max(1, len(alignments.phones))
    joint = np.zeros((store.num_clusters, n_phones), dtype=np.int64)
    for row in map(int, alignments.rows()):
        ids = store.targets(row)
        joint += count_pairs(ids, alignments.frame_phone_ids(row, len(ids), store.grid), store.num_clusters, n_phones)
    return joint
