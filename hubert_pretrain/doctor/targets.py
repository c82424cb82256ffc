"""Rows about targets: do they join the manifest and the codebook, and can anything be learnt from them? K clusters."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from hubert_pretrain.clustering.codebooks import CodebookSet
from hubert_pretrain.data.corpus import Corpus
from hubert_pretrain.data.manifest import Manifest
from hubert_pretrain.doctor.corpus import blocks
from hubert_pretrain.doctor.row import Row, error, of_error, ok, warning
from hubert_pretrain.errors import HubertPretrainError
from hubert_pretrain.frames import FrameGrid
from hubert_pretrain.targets.store import TargetStore

LOW_ENTROPY = 0.5
"""Targets below this share of ln K are dominated by few clusters."""
FEW_USED = 0.9
"""A smaller share of the clusters that occur is a warning."""


def joined(name: str, folder: Path, corpus: Corpus, grid: FrameGrid, cluster: Path | None) -> Row:
    """Targets of these utterances, one for each frame, of this codebook. `cluster`: the folder of the codebook; None: it is not here."""
    try:
        store = TargetStore.open(folder)
        store.check(corpus.manifest, grid)
        codebook = CodebookSet.load(cluster) if cluster is not None else None
    except HubertPretrainError as failure:
        return of_error(name, failure)
    row = _first_misfit(store, corpus.manifest, grid)
    if row is not None:
        utterance, count = corpus.manifest[row], int(store.offsets[row + 1] - store.offsets[row])
        what = f"{utterance.id!r} has {count} targets for {grid.num_frames(utterance.num_samples)} frames"
        return error(name, what, f"delete {folder} and label again")
    made_by = store.codebook.get("sha256", "")
    if codebook is not None and codebook.fingerprint != made_by:
        found = f"labelled with codebook {made_by[:12]}, but {cluster} holds {codebook.fingerprint[:12]}"
        return error(name, found, f"delete {folder} and label again")
    return ok(name, f"{len(store)} utterances, {int(store.offsets[-1])} frames, codebook {made_by[:12]}")


def _first_misfit(store: TargetStore, manifest: Manifest, grid: FrameGrid) -> int | None:
    """The first row that has another number of targets than frames."""
    for part in blocks(len(manifest)):
        found = np.diff(store.offsets[part.start : part.stop + 1])
        differ = np.flatnonzero(found != grid.num_frames(manifest.num_samples[part]))  # type: ignore[arg-type]
        if len(differ):
            return int(part.start + differ[0])
    return None


def worth(name: str, facts: dict[str, Any]) -> Row:
    """Entropy and use of the clusters, from the facts of the label stage."""
    sizes = facts.get("n_clusters") or 0
    each = sizes if isinstance(sizes, list) else [sizes]
    entropy, used = facts.get("unigram_entropy_nats"), facts.get("used_clusters")
    if entropy is None or used is None or not all(each):
        return ok(name, "not measured")
    most, mean_size = sum(map(math.log, each)), sum(each) / len(each)
    found = f"K {' + '.join(map(str, each))}, {used:g} used, entropy {entropy:.2f} of at most {most:.2f} nats"
    if most > 0 and entropy < LOW_ENTROPY * most:
        return warning(name, f"{found}: a few clusters are most frames", "look for silence or noise in the corpus, or cluster again")
    if used < FEW_USED * mean_size:
        return warning(name, f"{found}: {mean_size - used:g} clusters never occur", "choose fewer, or more audio (clustering.fraction)")
    return ok(name, found)
