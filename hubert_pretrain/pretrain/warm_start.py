"""Warm start: pretraining that begins with the weights of a checkpoint (more data, another
language, the next iteration without starting over).

Shapes: K clusters of the new targets, J clusters of the old ones, d width of the unit embeddings.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hubert_pretrain.errors import ArtefactError, ConfigError
from hubert_pretrain.interop.load import load_checkpoint
from hubert_pretrain.model.config import HubertConfig
from hubert_pretrain.model.heads import CodebookHead, SoftmaxHead
from hubert_pretrain.model.hubert import Hubert
from hubert_pretrain.seeds import permute
from hubert_pretrain.targets.store import TargetStore

FREE_FIELDS = {
    "conv_gradient_scale",
    "feat_proj_dropout",
    "hidden_dropout",
    "attention_dropout",
    "activation_dropout",
    "layerdrop",
    "initializer_range",
    "projection_size",
    "chunk_frames",
    "left_context_frames",
}
"""Fields of the network that may differ from the checkpoint's: they do not show in the encoder's
weights.
"""
SAMPLE_FRAMES = 2_000_000
"""Frames of both targets by which clusters are matched: eleven hours; with K = 500 some thousand
frames of each cluster.
"""


def warm_start(
    model: Hubert,
    head: CodebookHead | SoftmaxHead,
    path: Path,
    targets: TargetStore,
    *,
    choice: str = "auto",
    seed: int = 0,
) -> str:
    """Load the encoder of a checkpoint into `model`, and into `head` what fits of its head.

    Args:
        model: the recipe's network, new.
        head: the recipe's, for the new targets, new.
        path: any checkpoint that interop/load.py reads.
        targets: targets of this training.
        choice: of the head: "keep", "new", "warm" (unit embeddings, or rows of a softmax head, of
            matching clusters; `path` must be a pretrain stage, whose targets lie beside it), or
            "auto": keep where number of clusters and codebook are the same, else new.
        seed: of the sample that clusters are matched on.

    Returns one line that describes the start.

    Raises ArtefactError when the checkpoint's network or head does not fit the recipe's, naming the
    fields.
    """
    loaded = load_checkpoint(path)
    _check_network(model.config, loaded.model.config, path)
    model.load_state_dict(loaded.model.state_dict())
    start = f"starts from {path}"
    fits = _fits(head, loaded.config)
    if choice == "auto":
        same_codebook = loaded.extra.get("codebook") == targets.codebook
        choice = "keep" if fits and same_codebook else "new"
    if choice == "new":
        return f"{start} with a new head"
    if choice == "keep":
        if not fits:
            raise ArtefactError(
                f"{path}: start_head=keep, but its head is {loaded.config.get('head')}, the "
                f"recipe's {head.settings}; take start_head=new"
            )
        head.load_state_dict(loaded.head_state)
        return f"{start}, head included"
    matched = _copy_matching(head, loaded.build_head(), path, targets, seed)
    total = sum(head.n_clusters)
    return f"{start}; {matched} of {total} clusters of the head from clusters that match"


def cooccurrence(
    new: TargetStore, old: TargetStore, *, seed: int, max_frames: int = SAMPLE_FRAMES
) -> NDArray[np.int64]:
    """(K, J) counts of frames by their new and their old id, over utterances drawn by the seed
    until `max_frames`.

    Raises ArtefactError when the targets are of different utterances.
    """
    if len(new) != len(old) or new.manifest_fingerprint != old.manifest_fingerprint:
        raise ArtefactError(
            f"{old.folder}: targets of other utterances than {new.folder}; start_head=warm needs "
            "both of one corpus"
        )
    size = _single_codebook(new)
    old_size = _single_codebook(old)
    counts = np.zeros(size * old_size, dtype=np.int64)
    frames = 0
    for row in permute(np.arange(len(new)), len(new), seed, "matched rows").tolist():
        ids = new.targets(row).astype(np.int64) * old_size + old.targets(row)
        counts += np.bincount(ids, minlength=len(counts))
        frames += len(ids)
        if frames >= max_frames:
            break
    return counts.reshape(size, old_size)


def match(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """(K, J) counts -> (K,): the old cluster of each new one, -1 for one that does not occur.

    First one to one, so that as many frames as possible keep their cluster (Hungarian method); new
    clusters that are left over get the old one with which they occur most.
    """
    from scipy.optimize import linear_sum_assignment

    partners = np.where(counts.sum(axis=1) > 0, counts.argmax(axis=1), -1)
    rows, columns = linear_sum_assignment(counts, maximize=True)
    together = counts[rows, columns] > 0
    partners[rows[together]] = columns[together]
    return np.asarray(partners, dtype=np.int64)


def _copy_matching(
    head: CodebookHead | SoftmaxHead, old: Any, path: Path, targets: TargetStore, seed: int
) -> int:
    """Copy what belongs to the clusters that match, and a projection that all share. Returns the
    number of these clusters.
    """
    if type(head) is not type(old) or _width(old) != _width(head):
        raise ArtefactError(
            f"{path}: start_head=warm needs two heads of one kind (loss.head) and width; take "
            "start_head=new"
        )
    folder = path.parent / "label"
    if not folder.is_dir():
        raise ConfigError(
            f"{path}: start_head=warm needs the targets it was trained on, but {folder} does not "
            "exist; start from a stage"
        )
    counts = cooccurrence(targets, TargetStore.open(folder), seed=seed)
    partners = torch.from_numpy(match(counts))
    matched = partners >= 0
    with torch.no_grad():
        if isinstance(head, CodebookHead):
            head.projection.load_state_dict(old.projection.state_dict())
        for ours, theirs in zip(_of_clusters(head), _of_clusters(old), strict=True):
            ours[matched] = theirs[partners[matched]]
    return int(matched.sum())


def _of_clusters(head: CodebookHead | SoftmaxHead) -> list[torch.Tensor]:
    """The parameters with a row for each cluster."""
    if isinstance(head, CodebookHead):
        return [head.unit_embeddings]
    return [head.projection.weight, head.projection.bias]


def _width(head: CodebookHead | SoftmaxHead) -> int:
    return _of_clusters(head)[0].shape[1]


def _check_network(expected: HubertConfig, found: HubertConfig, path: Path) -> None:
    ours = dataclasses.asdict(expected)
    theirs = dataclasses.asdict(found)
    differing = [
        f"model.{name} is {theirs[name]} there, {ours[name]} here"
        for name in ours
        if ours[name] != theirs[name] and name not in FREE_FIELDS
    ]
    if differing:
        raise ArtefactError(
            f"{path}: is another network than the recipe's: {'; '.join(differing)}; choose the "
            "model that it is"
        )


def _fits(head: CodebookHead | SoftmaxHead, stored: dict[str, Any]) -> bool:
    """True if a stored head has the parameters of this one. The temperature is no parameter."""
    if stored.get("kind") != head.kind:
        return False
    return {**(stored.get("head") or {}), "temperature": 0} == {**head.settings, "temperature": 0}


def _single_codebook(targets: TargetStore) -> int:
    """Number of clusters of the one codebook."""
    if len(targets.sizes) != 1:
        raise ArtefactError(
            f"{targets.folder}: ids of {len(targets.sizes)} codebooks; start_head=warm matches "
            "those of one"
        )
    return targets.sizes[0]
