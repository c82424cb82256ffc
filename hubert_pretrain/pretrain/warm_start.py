"""Pretraining that begins with the weights of another: more data, another language, the next
iteration without starting over.

Shapes: K clusters of the new targets, J clusters of the old ones, d width of the unit embeddings.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
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

_FREE = {
    *(
        "conv_gradient_scale",
        "feat_proj_dropout",
        "hidden_dropout",
        "attention_dropout",
        "activation_dropout",
        "layerdrop",
    ),
    *("initializer_range", "projection_size"),
}
"""Fields of the network that a continued pretraining may have its own of: what is not in the
encoder's weights.
"""
SAMPLE_FRAMES = 2_000_000
"""Of both targets, to match clusters by: eleven hours; with K = 500 some thousand frames of each
cluster.
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
    """Gives `model` the encoder of a checkpoint, and `head` what fits of its head. Returns one line
    that says what was done.

    Args:
        model: the recipe's network, new. head: the recipe's, for the new targets, new. path: any
        checkpoint that interop/load.py reads. targets: what will be trained on. choice: of the
        head: keep, new, warm (unit embeddings of matching clusters; `path` must be a pretrain
        stage, whose targets lie
            beside it), or auto: kept where number of clusters and codebook are the same, else new.
        seed: of the sample that clusters are matched on.

    Raises ArtefactError when the checkpoint's network or head does not fit the recipe's, naming the
    fields.
    """
    loaded = load_checkpoint(path)
    _check_network(model.config, loaded.model.config, path)
    model.load_state_dict(loaded.model.state_dict())
    done = f"starts from {path}"
    if choice == "new" or (
        choice == "auto"
        and not (_fits(head, loaded.config) and loaded.extra.get("codebook") == targets.codebook)
    ):
        return f"{done} with a new head"
    if choice in ("auto", "keep"):
        if not _fits(head, loaded.config):
            raise ArtefactError(
                f"{path}: start_head=keep, but its head is {loaded.config.get('head')}, the recipe's {head.settings}; take start_head=new"
            )
        head.load_state_dict(loaded.head_state)
        return f"{done}, head included"
    matched = _copy_weights(head, loaded.build_head(), path, targets, seed)
    return f"{done}; {matched} of {sum(head.n_clusters)} unit embeddings from clusters that match"


def cooccurrence(
    new: TargetStore, old: TargetStore, *, seed: int, max_frames: int = SAMPLE_FRAMES
) -> NDArray[np.int64]:
    """(K, J): how many frames have this new and that old id, counted over utterances drawn by the
    seed until `max_frames`.

    Raises ArtefactError when the targets are of different utterances.
    """
    if len(new) != len(old) or new.manifest_fingerprint != old.manifest_fingerprint:
        raise ArtefactError(
            f"{old.folder}: targets of other utterances than {new.folder}; start_head=warm needs both of one corpus"
        )
    (size,), (old_size,) = _one_codebook(new), _one_codebook(old)
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
    """(K, J) counts -> (K,): the old cluster of each new one, -1 for one that was not seen.

    First one to one, so that as many frames as possible keep their cluster (Hungarian method); new
    clusters that are left over go to the old one that they meet most.
    """
    from scipy.optimize import linear_sum_assignment

    partners = np.where(counts.sum(axis=1) > 0, counts.argmax(axis=1), -1)
    rows, columns = linear_sum_assignment(counts, maximize=True)
    met = counts[rows, columns] > 0
    partners[rows[met]] = columns[met]
    return np.asarray(partners, dtype=np.int64)


def _copy_weights(
    head: CodebookHead | SoftmaxHead, old: Any, path: Path, targets: TargetStore, seed: int
) -> int:
    if (
        not isinstance(head, CodebookHead)
        or not isinstance(old, CodebookHead)
        or _width(old) != _width(head)
    ):
        raise ArtefactError(
            f"{path}: start_head=warm needs unit embeddings of one width in both heads; take start_head=new"
        )
    folder = path.parent / "label"
    if not folder.is_dir():
        raise ConfigError(
            f"{path}: start_head=warm needs the targets it was trained on, but {folder} does not exist; start from a stage"
        )
    partners = torch.from_numpy(match(cooccurrence(targets, TargetStore.open(folder), seed=seed)))
    known = partners >= 0
    with torch.no_grad():
        head.load_state_dict(
            {
                **head.state_dict(),
                **{f"projection.{name}": w for name, w in old.projection.state_dict().items()},
            }
        )
        head.unit_embeddings[known] = old.unit_embeddings[partners[known]]
    return int(known.sum())


def _width(head: CodebookHead) -> int:
    return head.unit_embeddings.shape[1]


def _check_network(wanted: HubertConfig, found: HubertConfig, path: Path) -> None:
    ours = dataclasses.asdict(wanted)
    theirs = dataclasses.asdict(found)
    differing = [
        f"model.{name} is {theirs[name]} there, {ours[name]} here"
        for name in ours
        if ours[name] != theirs[name]
    ]
    differing = [
        each for each in differing if each.split(" ")[0].removeprefix("model.") not in _FREE
    ]
    if differing:
        raise ArtefactError(
            f"{path}: is another network than the recipe's: {'; '.join(differing)}; choose the model that it is"
        )


def _fits(head: CodebookHead | SoftmaxHead, stored: dict[str, Any]) -> bool:
    """Whether a stored head has the parameters of this one; the temperature is none."""
    return stored.get("kind") == head.kind and {**(stored.get("head") or {}), "temperature": 0} == {
        **head.settings,
        "temperature": 0,
    }


def _one_codebook(targets: TargetStore) -> Sequence[int]:
    if len(targets.sizes) != 1:
        raise ArtefactError(
            f"{targets.folder}: ids of {len(targets.sizes)} codebooks; start_head=warm matches those of one"
        )
    return targets.sizes
