"""FSDP checkpoints: a folder that all ranks write, by torch's distributed checkpoints (DCP).

| file | content |
|---|---|
| shard-*.safetensors | of one rank each: its parts of the tensors, and their places |
| rest.pt | everything else: step, schedule, counters (plain containers) |
| checksums.json | sha256 of what was written to each file; without it the folder is no checkpoint |

DCP's own format describes its files by a pickle (`.metadata`), which can run code when it is read.
With safetensors the shards describe themselves: only `rest.pt` is unpickled, by torch's restricted
reader.

Tensors have one name each: `weights/<parameter>`, `optimizer<n>/<parameter>/<key>`, and
`average/<parameter>` for the EMA.
"""

from __future__ import annotations

import shutil
from collections import ChainMap
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from hubert_pretrain.errors import ArtefactError
from hubert_pretrain.files import HashedFile, publish, read_json, write_json
from hubert_pretrain.model.sharded import REST, by_entry, read_rest, read_tensors, tensors_in

Result = TypeVar("Result")
CHECKSUMS = "checksums.json"
_WEIGHTS = "weights"
_OPTIMIZER = "optimizer"
_BY_PARAMETER = ("average",)
"""Entries of a checkpoint, beside the weights, that are {name of parameter: tensor}: the EMA."""


def is_sharded(checkpoint: dict[str, Any]) -> bool:
    """True if the weights of a checkpoint to be written are sharded over the ranks."""
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
    """Write the folder beside its final place, sync it, rename it. Every rank must call it with its
    part of the checkpoint.

    Raises ArtefactError on every rank when any of them could not write; the previous checkpoint is
    intact.
    """
    from torch.distributed.checkpoint import HuggingFaceStorageWriter
    from torch.distributed.checkpoint import save as save_shards

    first = dist.get_rank() == 0
    temporary = path.with_name(f".{path.name}.tmp")
    tensors, rest = _split(checkpoint)
    try:
        # Three phases; after each one all ranks know whether any of them failed.
        _together(lambda: _prepare(temporary) if first else None, path, group)
        writer = HuggingFaceStorageWriter(str(temporary), save_distributed=True)
        mine = _hashed(writer)

        def write() -> dict[str, str]:
            save_shards(tensors, storage_writer=writer, process_group=group)
            return mine

        shards = dict(ChainMap(*_together(write, path, group)))
        _together(lambda: _publish(rest, shards, temporary, path) if first else None, path, group)
    finally:
        if first:
            shutil.rmtree(temporary, ignore_errors=True)


def load(
    path: Path, module: nn.Module, optimizers: Sequence[torch.optim.Optimizer], group: Any
) -> dict[str, Any]:
    """Load this rank's part of the weights and of the optimisers' state; returns the rest. Every
    rank must call it.

    The number of ranks may differ from that of the writers. Raises ArtefactError when the folder
    does not fit the network.
    """
    from torch.distributed.checkpoint import HuggingFaceStorageReader
    from torch.distributed.checkpoint import load as load_shards

    rest = read_rest(path)
    stored = tensors_in(path)

    # The tensors to fill, by their names in the folder: weights first.
    targets: dict[str, Tensor] = {
        f"{_WEIGHTS}/{name}": tensor for name, tensor in module.state_dict().items()
    }
    missing = [name for name in targets if name not in stored]
    if missing:
        raise ArtefactError(
            f"{path}: does not fit the network: {missing[0]} is missing ({len(missing)} such "
            "tensors in all)"
        )

    # Then the optimisers' state and the entries by parameter, which are created here.
    for number, optimizer in enumerate(optimizers):
        targets |= _new_optimizer_state(stored, number, module, optimizer)
    parameters = dict(module.named_parameters())
    entries = {name: name.split("/", 1) for name in stored if name.startswith(_BY_PARAMETER)}
    for name, (_, owner) in entries.items():
        if owner in parameters:
            targets[name] = torch.zeros_like(parameters[owner].detach())

    # Everything stored must have a place of the same shape.
    unknown = [name for name in stored if name not in targets]
    if unknown:
        raise ArtefactError(
            f"{path}: does not fit the network: {unknown[0]} is unknown ({len(unknown)} such "
            "tensors in all)"
        )
    for name, tensor in targets.items():
        if tuple(stored[name].shape) != tuple(tensor.shape):
            raise ArtefactError(
                f"{path}: {name} has shape {tuple(stored[name].shape)}, but the network's is "
                f"{tuple(tensor.shape)}"
            )

    load_shards(targets, storage_reader=HuggingFaceStorageReader(str(path)), process_group=group)
    for optimizer, groups in zip(optimizers, rest.pop("optimizer_groups"), strict=True):
        _set_groups(optimizer, groups)
    for name, (entry, owner) in entries.items():
        rest.setdefault(entry, {})[owner] = targets[name]
    return rest


def load_whole(path: Path) -> dict[str, Any]:
    """The checkpoint as one process would have written it, on the CPU.

    Raises ArtefactError when it cannot be read.
    """
    rest = read_rest(path)
    tensors = read_tensors(path)
    rest |= by_entry(tensors)
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
    """Load this rank's part from a checkpoint that one process wrote, `content` of `path`; returns
    the rest.

    Raises ArtefactError when it does not fit the network.
    """
    weights = content.pop("state_dict")
    states = content.pop("optimizer_states")
    targets = module.state_dict()
    differing = sorted(set(weights) ^ set(targets))
    if differing:
        raise ArtefactError(
            f"{path}: does not fit the network: {differing[0]} is in only one of them "
            f"({len(differing)} such tensors in all)"
        )
    with torch.no_grad():
        for name, tensor in targets.items():
            tensor.copy_(_like(weights[name], tensor))
        for optimizer, saved in zip(optimizers, states, strict=True):
            # A file numbers the parameters in the order of the groups.
            owners = [owner for group in optimizer.param_groups for owner in group["params"]]
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
    """{file: sha256} of a folder; None when it was not finished, or has unlisted shards."""
    listed = read_json(folder / CHECKSUMS)
    shards = {each.name for each in folder.glob("*.safetensors")}
    if not isinstance(listed, dict) or not shards <= set(listed):
        return None
    return {str(name): str(digest) for name, digest in listed.items()}


def remove(folder: Path) -> None:
    """Remove a folder: the checksums first, so that a half-removed one no longer verifies."""
    (folder / CHECKSUMS).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


def _split(checkpoint: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A checkpoint -> (its large tensors by their names, everything else)."""
    entries = {"state_dict": _WEIGHTS} | {entry: entry for entry in _BY_PARAMETER}
    rest = {
        key: value
        for key, value in checkpoint.items()
        if key not in entries and key != "optimizer_states"
    }
    tensors: dict[str, Tensor] = {}
    for key, entry in entries.items():
        for name, tensor in checkpoint.get(key, {}).items():
            tensors[f"{entry}/{name}"] = tensor.detach()
    states = checkpoint["optimizer_states"]
    for number, saved in enumerate(states):
        for name, values in saved["state"].items():
            for key, value in values.items():
                tensors[f"{_OPTIMIZER}{number}/{name}/{key}"] = value
    rest["optimizer_groups"] = [saved["param_groups"] for saved in states]
    return tensors, rest


def _hashed(writer: Any) -> dict[str, str]:
    """Let one of DCP's writers hash each file while it writes it. Returns the growing
    {file: sha256}.
    """
    digests: dict[str, str] = {}
    create_stream = writer.fs.create_stream

    @contextmanager
    def create_hashed(path: Any, mode: str) -> Iterator[HashedFile]:
        with create_stream(path, mode) as stream:
            file = HashedFile(stream)
            yield file
        digests[Path(path).name] = file.sha256

    writer.fs.create_stream = create_hashed
    return digests


def _together(work: Callable[[], Result], path: Path, group: Any) -> list[Result]:
    """Do this rank's work, then tell all ranks whether any of them failed. Returns the results of
    all ranks.
    """
    from torch.distributed.checkpoint.api import CheckpointException

    result: Any = None
    failed: dict[int, str] = {}
    try:
        result = work()
    except CheckpointException as error:  # what DCP raises on every rank; no subclass of Exception
        failed = {rank: str(reason) for rank, (reason, _) in error.failures.items()}
    except Exception as error:
        failed = {dist.get_rank(): str(error) or type(error).__name__}
    everyone: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(everyone, (failed, result), group=group)
    failures = sorted(item for each, _ in everyone for item in each.items())
    if failures:
        rank, reason = failures[0]
        raise ArtefactError(
            f"{path}: rank {rank} could not write its part ({reason}); the previous checkpoint is "
            "intact"
        )
    return [each for _, each in everyone]


def _prepare(temporary: Path) -> None:
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)


def _publish(rest: dict[str, Any], shards: dict[str, str], temporary: Path, path: Path) -> None:
    """When all shards are on disk: describe them, and rename the folder to its final name."""
    with open(temporary / REST, "wb") as file:
        hashed = HashedFile(file)
        torch.save(rest, hashed)  # type: ignore[arg-type]
    write_json(temporary / CHECKSUMS, {**shards, REST: hashed.sha256})
    if path.exists():  # a damaged one, of the same step
        remove(path)
    publish(temporary, path)


def _new_optimizer_state(
    stored: dict[str, Tensor], number: int, module: nn.Module, optimizer: torch.optim.Optimizer
) -> dict[str, Tensor]:
    """Create the state of an optimiser, which has none before its first step, for the tensors that
    a folder holds; returns it by their names there.
    """
    parameters = dict(module.named_parameters())
    prefix = f"{_OPTIMIZER}{number}/"
    created = {}
    for name, tensor in stored.items():
        if not name.startswith(prefix):
            continue
        owner, key = name.removeprefix(prefix).rsplit("/", 1)
        if owner not in parameters:
            continue
        parameter = parameters[owner]
        if tensor.ndim:
            value = torch.zeros_like(parameter.detach())
        else:
            value = torch.zeros((), dtype=tensor.dtype)
        if key == "step" and optimizer.defaults.get("fused"):
            value = value.to(parameter.device)  # a fused optimiser counts steps on the device
        optimizer.state[parameter][key] = value
        created[name] = value
    return created


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
    """`value`, which is not sharded, on the device of `other` and sharded like it, without
    communication.
    """
    value = value.to(other.device, other.dtype)
    if not isinstance(other, DTensor):
        return value
    return distribute_tensor(value, other.device_mesh, other.placements, src_data_rank=None)
