"""Languages of one network: a set of adapters and a CTC head per language, exchanged in place
(arXiv:2305.13516, section 4.2).

A language is one file, `adapter.<language>.safetensors`, beside the checkpoint with the weights
that all languages share. It holds the adapters of all layers and the head, and in its metadata the
vocabulary.

`transformers` supports only half of this. It builds adapters for HuBERT only with
`do_stable_layer_norm=True` (otherwise it ignores `adapter_attn_dim` without a message; here both
kinds have them), and cannot exchange them: `HubertForCTC.from_pretrained(target_lang=...)` fails,
only Wav2Vec2 can. So load the language first and export then: the exported folder holds that
language.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from hubert_pretrain.errors import ArtefactError, ConfigError, did_you_mean
from hubert_pretrain.model.checkpoint import load_strictly, load_tensors, save_tensors, with_prefix
from hubert_pretrain.model.heads import CTCHead
from hubert_pretrain.model.hubert import Hubert


@dataclass
class Language:
    """The head and the vocabulary of a language; its adapters are in the network."""

    name: str
    head: CTCHead
    vocabulary: list[str]
    """A symbol per row of the head, the blank first."""


def save_language(folder: str | Path, language: Language, model: Hubert) -> Path:
    """Writes the adapters that `model` holds now, the head and its vocabulary; returns the file."""
    if len(language.vocabulary) != language.head.linear.out_features:
        raise ConfigError(
            f"the vocabulary of language {language.name!r} has {len(language.vocabulary)} symbols "
            f"for a head of {language.head.linear.out_features} rows; give one symbol per row"
        )
    path = _path(Path(folder), language.name)
    tensors = {f"adapters.{name}": tensor for name, tensor in _adapters(model).state_dict().items()}
    tensors |= {f"head.{name}": tensor for name, tensor in language.head.state_dict().items()}
    metadata = {
        "format": "pt",
        "head": json.dumps(language.head.settings),
        "vocabulary": json.dumps(language.vocabulary),
    }
    save_tensors(path, tensors, metadata)
    return path


def load_language(folder: str | Path, name: str, model: Hubert) -> Language:
    """Puts the adapters of a language into `model` and returns its head, in eval mode.

    Raises ArtefactError when the folder has no such language, naming the nearest, or when the file
    does not fit the network, which is then unchanged.
    """
    path = _path(Path(folder), name)
    if not path.exists():
        known = languages(folder)
        raise ArtefactError(
            f"{path}: no such language{did_you_mean(name, known)}; "
            f"the folder has {', '.join(known) or 'none'}"
        )
    tensors = load_tensors(path)
    metadata = _metadata(path)
    head = CTCHead(**metadata["head"])
    load_strictly(head, with_prefix(tensors, "head."), path)
    load_strictly(_adapters(model), with_prefix(tensors, "adapters."), path)
    return Language(name, head.eval(), metadata["vocabulary"])


def languages(folder: str | Path) -> list[str]:
    """Names of the languages in a folder."""
    return sorted(
        path.name.removeprefix("adapter.").removesuffix(".safetensors")
        for path in Path(folder).glob("adapter.*.safetensors")
    )


def adapters_only(model: Hubert) -> None:
    """Freezes all weights but the adapters, to train a new language without a change to others."""
    model.requires_grad_(False)
    _adapters(model).requires_grad_(True)


def _adapters(model: Hubert) -> nn.ModuleList:
    """The adapters of all layers: the network's own, not copies."""
    if model.config.adapter_attn_dim is None:
        raise ConfigError(
            "this network has no adapters to hold a language; "
            "build it with model.adapter_attn_dim, e.g. 16"
        )
    layers: Any = model.context_encoder.layers
    return nn.ModuleList(layer.adapter for layer in layers)


def _path(folder: Path, name: str) -> Path:
    if not re.fullmatch(r"[\w-]+", name):
        raise ConfigError(
            f"{name!r} cannot name a language; use letters, digits, _ and -, e.g. 'deu'"
        )
    return folder / f"adapter.{name}.safetensors"


def _metadata(path: Path) -> dict[str, Any]:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        stored = file.metadata() or {}
    if not {"head", "vocabulary"} <= stored.keys():
        raise ArtefactError(
            f"{path}: has no head and vocabulary in its metadata; "
            "it was not written by save_language"
        )
    return {key: json.loads(stored[key]) for key in ("head", "vocabulary")}
