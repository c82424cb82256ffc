"""Checkpoints of a training whose weights are cut over the ranks: a folder, through torch's
distributed checkpoints (DCP).

    shard-*.safetensors   written by one rank each: its parts of the tensors, and where they belong
    rest.pt               everything else: step, schedule, counters (plain containers)
    checksums.json        sha256 of each file: written last, and without it the folder is no checkpoint

DCP's own format describes its files by a pickle (`.metadata`) that runs what it names when it is
read. With safetensors the shards describe themselves: nothing here is unpickled but `rest.pt`, by
torch's restricted reader.
"""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from hubert_pretrain.errors import ArtefactError
from hubert_pretrain.files import publish, read_json, sha256, write_json

REST = "rest.pt"
CHECKSUMS = "checksums.json"
_WEIGHTS = "weights"
_OPTIMIZER = "optimizer"
_BY_PARAMETER = ("average",)
"""Entries of a checkpoint that are {name of parameter: tensor} beside the weights:
training/ema.py.
"""


def is_cut(checkpoint: dict[str, Any]) -> bool:
    """Whether the weights of a checkpoint to be written are cut over the ranks."""
    return any(isinstance(tensor, DTensor) for tensor in checkpoint.get("state_dict", {}).values())


def optimizer_state(module: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """{"state": {name of parameter: {key: tensor}}, "param_groups": [{..., "params": [names]}]},
    tensors by reference.
    """
    names: dict[Tensor, str] = {parameter: name for name, parameter in module.named_parameters()}
    groups = [
        {**group, "params": [names[parameter] for parameter in group["params"]]}
        for group in optimizer.param_groups
    ]
    return {
        "state": {names[parameter]: dict(values) for parameter, values in optimizer.state.items()},
        "param_groups": groups,
    }


def save(checkpoint: dict[str, Any], path: Path, group: Any) -> None:
    """Writes the folder beside its final place, syncs it, renames it. Every rank must call it with
    its part of one checkpoint.

    Raises ArtefactError on every rank when any of them could not write; what was there before is
    intact.
    """
    from torch.distributed.checkpoint import HuggingFaceStorageWriter
    from torch.distributed.checkpoint import save as save_shards

    first = dist.get_rank() == 0
    temporary = path.with_name(f".{path.name}.tmp")
    tensors, rest = _split(checkpoint)
    try:
        _together(lambda: _prepare(temporary) if first else None, path, group)
        writer = HuggingFaceStorageWriter(str(temporary), save_distributed=True)
        _together(
            lambda: save_shards(tensors, storage_writer=writer, process_group=group), path, group
        )
        _together(lambda: _publish(rest, temporary, path) if first else None, path, group)
    finally:
        if first:
            shutil.rmtree(temporary, ignore_errors=True)


def load(
    path: Path, module: nn.Module, optimizers: Sequence[torch.optim.Optimizer], group: Any
) -> dict[str, Any]:
    """Fills this rank's part of the weights and of the optimisers' state; returns the rest. Every
    rank must call it.

    The number of ranks may be another than when it was written. Raises ArtefactError when the
    folder does not fit the network.
    """
    from torch.distributed.checkpoint import HuggingFaceStorageReader
    from torch.distributed.checkpoint import load as load_shards

    rest = _read_rest(path)
    found = _tensors_in(path)
    wanted: dict[str, Tensor] = {
        f"{_WEIGHTS}/{name}": tensor for name, tensor in module.state_dict().items()
    }
    if missing := [name for name in wanted if name not in found]:
        raise ArtefactError(
            f"{path}: does not fit the network: {missing[0]} is missing ({len(missing)} such tensors in all)"
        )
    for number, optimizer in enumerate(optimizers):
        wanted |= _room_for_state(found, number, module, optimizer)
    parameters = dict(module.named_parameters())
    beside = {name: name.split("/", 1) for name in found if name.startswith(_BY_PARAMETER)}
    wanted |= {
        name: torch.zeros_like(parameters[own].detach())
        for name, (_, own) in beside.items()
        if own in parameters
    }
    if unknown := [name for name in found if name not in wanted]:
        raise ArtefactError(
            f"{path}: does not fit the network: {unknown[0]} is unknown ({len(unknown)} such tensors in all)"
        )
    for name, tensor in wanted.items():
        if tuple(found[name].shape) != tuple(tensor.shape):
            raise ArtefactError(
                f"{path}: {name} has shape {tuple(found[name].shape)}, but the network's is {tuple(tensor.shape)}"
            )
    load_shards(wanted, storage_reader=HuggingFaceStorageReader(str(path)), process_group=group)
    for optimizer, saved in zip(optimizers, rest.pop("optimizer_groups"), strict=True):
        _set_groups(optimizer, saved)
    for name, (entry, own) in beside.items():
        rest.setdefault(entry, {})[own] = wanted[name]
    return rest


def load_whole(path: Path) -> dict[str, Any]:
    """The checkpoint as one process would have written it, on the CPU. Raises ArtefactError when it
    cannot be read.
    """
    from torch.distributed.checkpoint import HuggingFaceStorageReader
    from torch.distributed.checkpoint import load as load_shards

    rest = _read_rest(path)
    tensors = {
        name: torch.empty_like(tensor, device="cpu") for name, tensor in _tensors_in(path).items()
    }
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message="torch.distributed is disabled"
        )  # as it should be: one process reads all
        load_shards(tensors, storage_reader=HuggingFaceStorageReader(str(path)), no_dist=True)
    for entry, key in ((_WEIGHTS, "state_dict"), *((each, each) for each in _BY_PARAMETER)):
        if values := {
            name.split("/", 1)[1]: tensor
            for name, tensor in tensors.items()
            if name.startswith(f"{entry}/")
        }:
            rest[key] = values
    rest["optimizer_states"] = [
        _numbered(tensors, number, groups)
        for number, groups in enumerate(rest.pop("optimizer_groups"))
    ]
    return rest


def distribute(
    content: dict[str, Any],
    path: Path,
    module: nn.Module,
    optimizers: Sequence[torch.optim.Optimizer],
) -> dict[str, Any]:
    """Fills this rank's part from a checkpoint that one process wrote, `content` of `path`; returns
    the rest.

    Raises ArtefactError when it does not fit the network.
    """
    weights = content.pop("state_dict")
    states = content.pop("optimizer_states")
    wanted = module.state_dict()
    if set(weights) != set(wanted):
        other = sorted(set(weights) ^ set(wanted))
        raise ArtefactError(
            f"{path}: does not fit the network: {other[0]} is in only one of them ({len(other)} such tensors in all)"
        )
    with torch.no_grad():
        for name, tensor in wanted.items():
            tensor.copy_(_like(weights[name], tensor))
        for optimizer, saved in zip(optimizers, states, strict=True):
            owners = [
                parameter for group in optimizer.param_groups for parameter in group["params"]
            ]
            for number, values in saved["state"].items():
                owner = owners[number]
                optimizer.state[owner] = {
                    key: _like(value, owner) if value.ndim else value.clone()
                    for key, value in values.items()
                }
            _set_groups(optimizer, saved["param_groups"])
    parameters = dict(module.named_parameters())
    for entry in _BY_PARAMETER:
        if entry in content:
            content[entry] = {
                name: _like(tensor, parameters[name].detach())
                for name, tensor in content[entry].items()
            }
    return content


def digests(folder: Path) -> dict[str, str] | None:
    """{file: sha256} of a folder as it was written; None when it was never finished, or shards were
    added.
    """
    listed = read_json(folder / CHECKSUMS)
    if not isinstance(listed, dict) or not {
        each.name for each in folder.glob("*.safetensors")
    } <= set(listed):
        return None
    return {str(name): str(digest) for name, digest in listed.items()}


def remove(folder: Path) -> None:
    """Removes a folder: the checksums first, so that a half-removed one no longer verifies."""
    (folder / CHECKSUMS).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


def _split(checkpoint: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A checkpoint -> (its large tensors under one name each, everything else)."""
    large = {"state_dict": _WEIGHTS, **{entry: entry for entry in _BY_PARAMETER}}
    rest = {
        key: value for key, value in checkpoint.items() if key not in (*large, "optimizer_states")
    }
    tensors: dict[str, Tensor] = {}
    for key, entry in large.items():
        tensors |= {
            f"{entry}/{name}": tensor.detach() for name, tensor in checkpoint.get(key, {}).items()
        }
    states = checkpoint["optimizer_states"]
    for number, saved in enumerate(states):
        for name, values in saved["state"].items():
            tensors |= {
                f"{_OPTIMIZER}{number}/{name}/{key}": value for key, value in values.items()
            }
    rest["optimizer_groups"] = [saved["param_groups"] for saved in states]
    return tensors, rest


def _together(work: Any, path: Path, group: Any) -> None:
    """Does this rank's work, then all learn whether any of them failed."""
    from torch.distributed.checkpoint.api import CheckpointException

    failed: dict[int, str] = {}
    try:
        work()
    except CheckpointException as error:  # what DCP raises on every rank; no subclass of Exception
        failed = {rank: str(reason) for rank, (reason, _) in error.failures.items()}
    except Exception as error:
        failed = {dist.get_rank(): str(error) or type(error).__name__}
    everyone: list[dict[int, str]] = [{}] * dist.get_world_size(group)
    dist.all_gather_object(everyone, failed, group=group)
    for rank, reason in sorted(item for each in everyone for item in each.items()):
        raise ArtefactError(
            f"{path}: rank {rank} could not write its part ({reason}); the previous checkpoint is intact"
        )


def _prepare(temporary: Path) -> None:
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)


def _publish(rest: dict[str, Any], temporary: Path, path: Path) -> None:
    """All shards are on disk: describes them, and gives the folder its name."""
    torch.save(rest, temporary / REST)
    write_json(
        temporary / CHECKSUMS,
        {each.name: sha256(each) for each in sorted(temporary.iterdir()) if each.name != CHECKSUMS},
    )
    if path.exists():  # a damaged one, of the same step
        remove(path)
    publish(temporary, path)


def _read_rest(path: Path) -> dict[str, Any]:
    try:
        return dict(torch.load(path / REST, map_location="cpu", weights_only=True))
    except Exception as error:
        what = f"not readable as plain containers ({type(error).__name__})"
        raise ArtefactError(
            f"{path / REST}: {what}; delete {path} to resume from the checkpoint before"
        ) from error


def _tensors_in(path: Path) -> dict[str, Tensor]:
    """What the shards of a folder hold, as tensors without content."""
    from torch.distributed.checkpoint import HuggingFaceStorageReader
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata

    try:
        found = HuggingFaceStorageReader(str(path)).read_metadata().state_dict_metadata
    except Exception as error:
        raise ArtefactError(
            f"{path}: its shards cannot be read ({error}); delete it to resume from the checkpoint before"
        ) from error
    return {
        name: torch.empty(each.size, dtype=each.properties.dtype, device="meta")
        for name, each in found.items()
        if isinstance(each, TensorStorageMetadata)
    }


def _room_for_state(
    found: dict[str, Tensor], number: int, module: nn.Module, optimizer: torch.optim.Optimizer
) -> dict[str, Tensor]:
    """Gives an optimiser, which has no state before its first step, tensors for what a folder
    holds; returns them by their names there.
    """
    parameters = dict(module.named_parameters())
    prefix = f"{_OPTIMIZER}{number}/"
    room = {}
    for name, tensor in found.items():
        if name.startswith(prefix):
            owner, key = name.removeprefix(prefix).rsplit("/", 1)
            if owner not in parameters:
                continue
            parameter = parameters[owner]
            value = (
                torch.zeros_like(parameter.detach())
                if tensor.ndim
                else torch.zeros((), dtype=tensor.dtype)
            )
            optimizer.state[parameter][key] = room[name] = (
                value if key != "step" else _step(value, parameter, optimizer)
            )
    return room


def _step(value: Tensor, parameter: Tensor, optimizer: torch.optim.Optimizer) -> Tensor:
    """Where an optimiser counts the steps of a parameter: on its device if it is fused."""
    return value.to(parameter.device) if optimizer.defaults.get("fused") else value


def _numbered(
    tensors: dict[str, Tensor], number: int, groups: list[dict[str, Any]]
) -> dict[str, Any]:
    """An optimiser's state as torch writes it: parameters by number."""
    names = [name for group in groups for name in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for index, name in enumerate(names):
        prefix = f"{_OPTIMIZER}{number}/{name}/"
        values = {
            key.removeprefix(prefix): tensor
            for key, tensor in tensors.items()
            if key.startswith(prefix)
        }
        if values:
            state[index] = values
    numbers = iter(range(len(names)))
    return {
        "state": state,
        "param_groups": [
            {**group, "params": [next(numbers) for _ in group["params"]]} for group in groups
        ],
    }


def _set_groups(optimizer: torch.optim.Optimizer, saved: list[dict[str, Any]]) -> None:
    for group, values in zip(optimizer.param_groups, saved, strict=True):
        group.update({key: value for key, value in values.items() if key != "params"})


def _like(value: Tensor, other: Tensor) -> Tensor:
    """`value`, whole, on the device of `other` and cut as it is. No rank talks to another."""
    value = value.to(other.device, other.dtype)
    if not isinstance(other, DTensor):
        return value
    return distribute_tensor(value, other.device_mesh, other.placements, src_data_rank=None)
