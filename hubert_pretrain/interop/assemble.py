"""Assembly of a foreign checkpoint: tensors and settings of another project -> LoadedModel, checked
strictly.

A reader finds out what a file holds and returns it as a `ForeignCheckpoint`; `assemble` checks it,
fills the network and writes the report.
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
from hubert_pretrain.model.shapes import shapes_only

PRESERVED = "hubert_pretrain"
"""Key or name under which our exports keep our config.json, with all that another format has no
field for.
"""


@dataclass
class ForeignCheckpoint:
    """A checkpoint of another project after parsing, before any check."""

    path: Path
    format: str
    kind: str
    weights: dict[str, Tensor]
    """Of the encoder, under their names."""
    key_map: KeyMap
    config: HubertConfig
    head: dict[str, Any] | None = None
    """Settings of the head; None without one."""
    head_state: dict[str, Tensor] = field(default_factory=dict)
    """The head's tensors under our names."""
    head_names: list[str] = field(default_factory=list)
    """Their names of the head's tensors, for the report."""
    ignored: list[str] = field(default_factory=list)
    """Tensors that are known and have no use here."""
    extra: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    dictionary: str | None = None
    """The dictionary that named the symbols, where the caller gave one."""


def assemble(source: ForeignCheckpoint) -> LoadedModel:
    """The network and the head's weights in fp32, on the CPU, in eval mode, with a report.

    Raises ArtefactError naming the file and the first tensors that are missing, misshapen, not
    finite, or unknown here.
    """
    # A damaged config must not make us build a billion layers.
    if source.config.num_hidden_layers > len(source.weights):
        found = f"{source.config.num_hidden_layers} layers, but {len(source.weights)} tensors"
        raise ArtefactError(f"{source.path}: has {found}; is it a HuBERT of this shape?")
    with shapes_only():
        model = Hubert(source.config)
    names = list(model.state_dict())
    weights = dict(source.weights)
    missing = []
    # A network that was fine-tuned without masks, or a format without the tensor, gets a new mask
    # embedding, the same each time.
    mask_name = foreign_names("mask_embedding", source.key_map)[0]
    if mask_name not in weights:
        weights[mask_name] = new_mask_embedding(source.config.hidden_size)
        missing.append(mask_name)
    _refuse_unknown(source, left_over(weights, names, source.key_map))
    state = _clean(to_ours(weights, names, source.key_map, str(source.path)), source.path)
    load_strictly(model, state, source.path, assign=True)
    head_state = _clean(source.head_state, source.path)
    _check_head(source, head_state)
    read = [name for name in weights if name not in {*missing, *source.ignored}]
    report = LoadReport(
        path=str(source.path),
        format=source.format,
        taken=read + source.head_names,
        missing=missing,
        unexpected=list(source.ignored),
        notes=list(source.notes),
        dictionary=source.dictionary,
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
    fields: dict[str, Any],
    *,
    preserved: dict[str, Any] | None,
    overrides: dict[str, Any],
    path: Path,
) -> HubertConfig:
    """The configuration of a foreign network.

    Args:
        fields: those that the file tells; they replace those of `preserved`.
        preserved: our own config.json beside or inside one of our exports, or None.
        overrides: by the caller; they replace both.
        path: of the file, for messages.

    Raises:
        ArtefactError: no network has these values.
        ConfigError: an override that is no field.
    """
    known = [f.name for f in dataclasses.fields(HubertConfig)]
    for name in overrides:
        if name not in known:
            raise ConfigError(f"{name!r} is no field of the model{did_you_mean(name, known)}")
    model = preserved.get("model") if isinstance(preserved, dict) else None
    stored = model if isinstance(model, dict) else {}
    stored = {name: value for name, value in stored.items() if name in known}
    try:
        config = HubertConfig(**{**stored, **fields, **overrides})
        config.validate()
    except (ConfigError, TypeError, ValueError) as error:
        raise ArtefactError(f"{path}: its configuration makes no network: {error}") from error
    return config


def new_mask_embedding(width: int) -> Tensor:
    """(D,), the same values on each call."""
    return torch.rand(width, generator=torch.Generator().manual_seed(0))


def preserved_extra(preserved: dict[str, Any] | None) -> dict[str, Any] | None:
    """The "extra" that one of our exports preserved; None when the file is no export of ours."""
    extra = preserved.get("extra") if isinstance(preserved, dict) else None
    return dict(extra) if isinstance(extra, dict) else None


def add_preserved_head(
    source: ForeignCheckpoint, preserved: dict[str, Any], state: dict[str, Tensor], place: str
) -> None:
    """Adds a head that our export had to put beside the weights.

    Args:
        source: gets the head.
        preserved: our config.json, from the export.
        state: the head's tensors under our names.
        place: of those tensors, before their names in the report.

    Raises ArtefactError for a head that no module has registered.
    """
    kind = preserved.get("kind")
    if kind not in HEADS:
        raise ArtefactError(
            f"{source.path}: its head is of kind {kind!r}, which is not one of "
            f"{', '.join(HEADS)}; import the module that registers it first"
        )
    source.kind = str(kind)
    source.head = preserved.get("head")
    source.head_state = state
    source.head_names = [f"{place}{name}" for name in state]


def _check_head(source: ForeignCheckpoint, head_state: dict[str, Tensor]) -> None:
    if source.head is None:
        return
    try:
        with shapes_only():
            head = HEADS[source.kind](**source.head)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ArtefactError(
            f"{source.path}: {source.head} makes no {source.kind!r} head: {error}"
        ) from error
    load_strictly(head, head_state, source.path, assign=True)


def _refuse_unknown(source: ForeignCheckpoint, names: list[str]) -> None:
    unknown = sorted(set(names) - set(source.ignored))
    if unknown:
        raise ArtefactError(
            f"{source.path}: {len(unknown)} weights have no place in our network, "
            f"first {unknown[0]}; its architecture is another"
        )


def _clean(state: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Finite fp32 copies, which share no memory with `state`. Integers stay as they are."""
    clean = {}
    for name, tensor in state.items():
        if not tensor.is_floating_point():
            clean[name] = tensor
            continue
        if not bool(torch.isfinite(tensor).all()):
            raise ArtefactError(
                f"{path}: {name} holds numbers that are not finite; "
                "expected the weights of a healthy run"
            )
        clean[name] = tensor.detach().to(torch.float32, copy=True).contiguous()
    return clean
