"""Checkpoints of a training that several ranks wrote in parts (`trainer.strategy=fsdp`), read by
one process. training/resilience/sharded_checkpoint.py writes them, and describes the folder.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hubert_pretrain.errors import ArtefactError

REST = "rest.pt"
"""File of everything that is no tensor of a parameter."""
ENTRIES = {"weights": "state_dict", "average": "average"}
"""First part of the names of tensors -> key of a checkpoint that holds them by the rest of the
name: weights, and their EMA."""


def is_sharded_folder(path: Path) -> bool:
    """True for the folder of such a checkpoint."""
    return (path / REST).is_file()


def read_rest(path: Path) -> dict[str, Any]:
    """Step, schedule, counters and the description of the network.

    Raises ArtefactError unless the file holds plain containers.
    """
    try:
        return dict(torch.load(path / REST, map_location="cpu", weights_only=True))
    except Exception as error:
        what = f"not readable as plain containers ({type(error).__name__})"
        raise ArtefactError(
            f"{path / REST}: {what}; delete {path} to resume from the checkpoint before"
        ) from error


def tensors_in(path: Path) -> dict[str, Tensor]:
    """The tensors that the shards of a folder hold, on the meta device (without content).

    Raises ArtefactError when a shard cannot be read.
    """
    from torch.distributed.checkpoint import HuggingFaceStorageReader
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata

    try:
        found = HuggingFaceStorageReader(str(path)).read_metadata().state_dict_metadata
    except Exception as error:
        raise ArtefactError(
            f"{path}: its shards cannot be read ({error}); delete it to resume from the checkpoint "
            "before"
        ) from error
    return {
        name: torch.empty(each.size, dtype=each.properties.dtype, device="meta")
        for name, each in found.items()
        if isinstance(each, TensorStorageMetadata)
    }


def read_tensors(path: Path, *first_parts: str) -> dict[str, Tensor]:
    """The whole tensors whose names begin with one of `first_parts` (none: all), on the CPU."""
    from torch.distributed.checkpoint import HuggingFaceStorageReader
    from torch.distributed.checkpoint import load as load_shards

    tensors = {
        name: torch.empty_like(tensor, device="cpu")
        for name, tensor in tensors_in(path).items()
        if not first_parts or name.split("/", 1)[0] in first_parts
    }
    with warnings.catch_warnings():
        # Intended: one process reads everything.
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        load_shards(tensors, storage_reader=HuggingFaceStorageReader(str(path)), no_dist=True)
    return tensors


def by_entry(tensors: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Weights and their average under the keys of a whole checkpoint."""
    found: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        entry, _, owner = name.partition("/")
        if entry in ENTRIES:
            found.setdefault(ENTRIES[entry], {})[owner] = tensor
    return found


def read_weights(path: Path) -> dict[str, Any]:
    """The checkpoint as one process would have written it, without the optimiser's state."""
    return {**read_rest(path), **by_entry(read_tensors(path, *ENTRIES))}
