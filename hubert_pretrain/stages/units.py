"""Codebooks outside a run: the unit extractor of the folder of a cluster stage, which holds
codebooks and the features that they were fitted on; or of the folder of a speaker-invariant stage,
which holds its network too; and such folders for imported codebooks.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import torch

from hubert_pretrain import features
from hubert_pretrain.clustering.codebook_io import CENTROIDS, DESCRIPTION
from hubert_pretrain.clustering.codebook_set import CodebookSet
from hubert_pretrain.errors import ArtefactError
from hubert_pretrain.files import read_json, refuse_other_content, write_json
from hubert_pretrain.pipeline.fingerprint import digest
from hubert_pretrain.pipeline.workspace import FORMAT, META, open_artefact
from hubert_pretrain.targets.store import one_or_several
from hubert_pretrain.targets.units import UnitExtractor

FEATURES = f"{features.__name__}."
"""Only classes from this package are made: an artefact of someone else runs no other code."""
IMPORTED = "import-kmeans"
"""Stands for the name of a stage in the `meta.json` of an imported codebook."""


def load_units(
    folder: str | Path, *, checkpoint: str | Path | None = None, device: torch.device | str = "cpu"
) -> UnitExtractor:
    """The extractor of the units that the label stage after this cluster stage writes, before
    `switch_penalty` smooths them (`UnitExtractor.smooth` does the same).

    Args:
        folder: of a cluster stage, such as runs/demo/it2/cluster, or of a spin stage.
        checkpoint: path of the features' checkpoint; None: as in the recipe, beside the folder.
        device: computes the frames.

    Raises:
        ArtefactError: the folder is no finished cluster stage, the checkpoint is not found, or its
            hash is not that of the checkpoint that the codebooks were fitted on.
    """
    folder = Path(folder).absolute()
    codebooks = CodebookSet.load(folder)
    if not (folder / META).is_file():
        raise ArtefactError(
            f"{folder}: has no {META}, which says how the features of its codebook are made; name "
            "the folder of a finished cluster stage, or import the codebook (import-kmeans)"
        )
    config = open_artefact(folder).meta["config"]
    node = config.get("features") or _of_spin(folder, codebooks.features)
    extractor = _build(node, folder, codebooks.features, checkpoint).to(device)
    return UnitExtractor(extractor, codebooks, device)


def build_features(node: dict[str, Any]) -> Any:
    """The extractor of a `_target_` node, whose paths start from the current folder."""
    return _build(node, Path.cwd(), {}, None)


# -- imported codebooks


def save_imported(codebooks: CodebookSet, node: dict[str, Any], folder: Path) -> None:
    """Writes codebooks that no stage made, with the node of their features, in the form of a
    finished cluster stage.
    """
    codebooks.save(folder)
    made = {"codebooks": codebooks.fingerprint, "features": codebooks.features}
    meta = {
        "format": FORMAT,
        "stage": IMPORTED,
        "fingerprint": digest(made),
        "config": {"features": node},
        "inputs": {},
        "facts": {"n_clusters": one_or_several(codebooks.sizes), "dim": codebooks.dim},
    }
    write_json(folder / META, meta)


def check_free(folder: Path) -> None:
    """Raises ArtefactError when an imported codebook would be written over anything but another
    one.
    """
    if (read_json(folder / META) or {}).get("stage", IMPORTED) != IMPORTED:
        raise ArtefactError(f"{folder}: is a finished stage of a run; name an empty or new folder")
    refuse_other_content(folder, (CENTROIDS, DESCRIPTION, META))


# -- features


def _of_spin(folder: Path, features: dict[str, Any]) -> dict[str, Any]:
    """The features of a speaker-invariant stage: a layer of its own network."""
    kind = f"{FEATURES}hubert_layer.HubertLayer"
    return {"_target_": kind, "checkpoint": str(folder), "layer": features["layer"]}


def _build(node: Any, folder: Path, features: dict[str, Any], checkpoint: str | Path | None) -> Any:
    """A `_target_` node of features, and those inside it."""
    if isinstance(node, list):
        return [_build(each, folder, features, checkpoint) for each in node]
    if not isinstance(node, dict) or "_target_" not in node:
        return node
    arguments = {
        name: _build(value, folder, features, checkpoint)
        for name, value in node.items()
        if name != "_target_"
    }
    if "checkpoint" in arguments:
        arguments["checkpoint"] = str(
            checkpoint or _checkpoint(str(arguments["checkpoint"]), folder)
        )
    if arguments.get("layer") == "auto":
        arguments["layer"] = features["layer"]
    module, _, name = str(node["_target_"]).rpartition(".")
    if not module.startswith(FEATURES):
        raise ArtefactError(
            f"{folder}: its features are {node['_target_']}, not a class of "
            f"{FEATURES.rstrip('.')}; make a UnitExtractor with it yourself"
        )
    return getattr(importlib.import_module(module), name)(**arguments)


def _checkpoint(reference: str, folder: Path) -> Path:
    """A stage of the run that the folder (<run>/it2/cluster) is part of, or a path."""
    for path in (folder.parent.parent / reference, Path(reference).expanduser()):
        if path.exists():
            return path
    raise ArtefactError(
        f"{folder}: its features come from {reference!r}, which is not beside it any more; say "
        "where it is (--checkpoint)"
    )
