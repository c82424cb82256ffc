"""Unit extractor of a run, from the folder of its cluster stage: codebooks and the features that
they were fitted on.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import torch

from hubert_pretrain import features
from hubert_pretrain.clustering.codebook_set import CodebookSet
from hubert_pretrain.errors import ArtefactError
from hubert_pretrain.pipeline.workspace import open_artefact
from hubert_pretrain.targets.units import UnitExtractor

FEATURES = f"{features.__name__}."
"""Only classes from this package are made: an artefact of someone else runs no other code."""


def load_units(
    folder: str | Path, *, checkpoint: str | Path | None = None, device: torch.device | str = "cpu"
) -> UnitExtractor:
    """The extractor of the units that the label stage after this cluster stage writes.

    Args:
        folder: of a cluster stage, such as runs/demo/it2/cluster.
        checkpoint: path of the features' checkpoint; None: as in the recipe, beside the folder.
        device: computes the frames.

    Raises:
        ArtefactError: the folder is no finished cluster stage, the checkpoint is not found, or its
            hash is not that of the checkpoint that the codebooks were fitted on.
    """
    folder = Path(folder).absolute()
    codebooks = CodebookSet.load(folder)
    node = open_artefact(folder).meta["config"]["features"]
    extractor = _build(node, folder, codebooks.features, checkpoint).to(device)
    return UnitExtractor(extractor, codebooks, device)


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
