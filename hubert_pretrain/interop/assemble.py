"""What the readers of other projects' checkpoints share: their tensors and values -> a LoadedModel,
strictly.

A reader finds out what a file holds and says it as a `Source`; `assemble` checks it, fills the
network and reports.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hubert_pretrain.errors import ArtefactError, ConfigError, did_you_mean
from hubert_pretrain.interop.tensor_names import KeyMap, foreign_names, left_over, to_ours
from hubert_pretrain.model.checkpoint import LoadedModel, LoadReport, load_strictly
from hubert_pretrain.model.config import HubertConfig
from hubert_pretrain.model.heads import HEADS
from hubert_pretrain.model.hubert import Hubert

PRESERVED = "hubert_pretrain"
"""Key or name under which our exports keep what another format has no slot for: our config.json."""


@dataclass
class ForeignCheckpoint:
    """A checkpoint of another project, understood but not yet checked."""

    path: Path
    format: str
    kind: str
    weights: dict[str, Tensor]
    """The encoder's, under their names."""
    rules: KeyMap
    config: HubertConfig
    head: dict[str, Any] | None = None
    """Settings of the head, None when there is none."""
    head_state: dict[str, Tensor] = field(default_factory=dict)
    """Under our names."""
    head_names: list[str] = field(default_factory=list)
    """Under theirs, for the report."""
    ignored: list[str] = field(default_factory=list)
    """Tensors that are known and of no use here."""
    extra: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def assemble(source: ForeignCheckpoint) -> LoadedModel:
    """The network and the head's weights in fp32, on the CPU, in eval mode, with a report.

    Raises ArtefactError naming the file and the first tensors that are missing, misshapen, not
    finite, or without a place here.
    """
    if source.config.num_hidden_layers > len(
        source.weights
    ):  # a lying config must not make us build a billion layers
        found = f"{source.config.num_hidden_layers} layers, but {len(source.weights)} tensors"
        raise ArtefactError(f"{source.path}: has {found}; is it a HuBERT of this shape?")
    with torch.device("meta"):
        model = Hubert(source.config)
    wanted = list(model.state_dict())
    weights = dict(source.weights)
    missing = []
    mask_name = foreign_names("mask_embedding", source.rules)[0]
    if (
        mask_name not in weights
        # fine-tuned without masks, or a format without it: drawn as a new one is, the same each time
    ):
        weights[mask_name] = new_mask_embedding(source.config.hidden_size)
        missing.append(mask_name)
    _refuse_unknown(source, left_over(weights, wanted, source.rules))
    state = _clean(to_ours(weights, wanted, source.rules, str(source.path)), source)
    load_strictly(model, state, source.path, assign=True)
    head_state = _clean(source.head_state, source)
    if source.head is not None:
        try:
            with torch.device("meta"):
                head = HEADS[source.kind](**source.head)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ArtefactError(
                f"{source.path}: {source.head} makes no {source.kind!r} head: {error}"
            ) from error
        load_strictly(head, head_state, source.path, assign=True)
    report = LoadReport(
        path=str(source.path),
        format=source.format,
        taken=[name for name in weights if name not in {*missing, *source.ignored}]
        + source.head_names,
        missing=missing,
        unexpected=list(source.ignored),
        notes=list(source.notes),
    )
    description = {
        "model": dataclasses.asdict(source.config),
        "kind": source.kind,
        "head": source.head,
        "extra": source.extra,
    }
    return LoadedModel(
        model=model.eval(),
        kind=source.kind,
        head_state=head_state,
        config=description,
        report=report,
    )


def build_config(
    fields: dict[str, Any], *, carried: dict[str, Any] | None, overrides: dict[str, Any], path: Path
) -> HubertConfig:
    """What a file says of its network, over what one of our exports noted beside it, and under what
    the caller knows better.

    Raises ArtefactError when no network has these values, ConfigError for an override that does not
    exist.
    """
    known = [f.name for f in dataclasses.fields(HubertConfig)]
    for name in overrides:
        if name not in known:
            raise ConfigError(f"{name!r} is no field of the model{did_you_mean(name, known)}")
    noted = carried.get("model") if isinstance(carried, dict) else None
    noted = (
        {name: value for name, value in noted.items() if name in known}
        if isinstance(noted, dict)
        else {}
    )
    try:
        config = HubertConfig(**{**noted, **fields, **overrides})
        config.validate()
    except (ConfigError, TypeError, ValueError) as error:
        raise ArtefactError(f"{path}: its configuration makes no network: {error}") from error
    return config


def new_mask_embedding(width: int) -> Tensor:
    """(D,), the same each time."""
    return torch.rand(width, generator=torch.Generator().manual_seed(0))


def preserved_extra(carried: dict[str, Any] | None) -> dict[str, Any] | None:
    """The "extra" that one of our exports noted beside a model; None when the file is not one of
    ours.
    """
    extra = carried.get("extra") if isinstance(carried, dict) else None
    return dict(extra) if isinstance(extra, dict) else None


def fitting(symbols: list[str], rows: int, path: Path, what: str = "vocabulary") -> list[str]:
    """`symbols`, one for each row of a head. Raises ArtefactError when they are not."""
    if len(symbols) != rows or len(set(symbols)) != rows:
        found = f"{len(symbols)} symbols, {len(set(symbols))} of them distinct"
        raise ArtefactError(
            f"{path}: the {what} does not fit the head: {found}, where {rows} were expected, one per row of the head"
        )
    return symbols


def _refuse_unknown(source: ForeignCheckpoint, names: list[str]) -> None:
    unknown = sorted(set(names) - set(source.ignored))
    if unknown:
        raise ArtefactError(
            f"{source.path}: {len(unknown)} weights have no place in our network, first {unknown[0]}; its architecture is another"
        )


def _clean(state: dict[str, Tensor], source: ForeignCheckpoint) -> dict[str, Tensor]:
    """Finite fp32 tensors that share no memory with what they came from."""
    for name, tensor in state.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise ArtefactError(
                f"{source.path}: {name} holds numbers that are not finite; expected the weights of a healthy run"
            )
    return {
        name: tensor.detach().to(torch.float32, copy=True).contiguous()
        if tensor.is_floating_point()
        else tensor
        for name, tensor in state.items()
    }
