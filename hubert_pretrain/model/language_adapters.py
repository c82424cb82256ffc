"""One network, many languages: a set of adapters and a CTC head per language, exchanged in place
(arXiv:2305.13516, section 4.2).

A language is one file, `adapter.<language>.safetensors`, beside the checkpoint whose other weights
it shares: the adapters of all layers, the head, and the vocabulary in its metadata.

`transformers` follows half of the way. It builds adapters for HuBERT only with
`do_stable_layer_norm=True` (otherwise it ignores `adapter_attn_dim` without a word; here both kinds
have them), and cannot exchange them: `HubertForCTC.from_pretrained(target_lang=...)` fails, only
Wav2Vec2 can. So load the language first and export then: the exported folder holds that language.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from hubert_pretrain.errors import ArtefactError, ConfigError, did_you_mean
from hubert_pretrain.model.checkpoint import load_strictly, load_tensors, save_tensors
from hubert_pretrain.model.heads import CTCHead
from hubert_pretrain.model.hubert import Hubert


@dataclass
class Language:
    """What a language adds to the network beside its adapters."""

    name: str
    head: CTCHead
    vocabulary: list[str]
    """A symbol per row of the head, the blank first."""


def save_language(folder: str | Path, language: Language, model: Hubert) -> Path:
    """Writes the adapters that `model` holds now, with the head and its vocabulary. Returns the
    file.
    """
    if len(language.vocabulary) != language.head.linear.out_features:
        found = f"{len(language.vocabulary)} symbols for a head of {language.head.linear.out_features} rows"
        raise ConfigError(
            f"the vocabulary of language {language.name!r} has {found}; give one symbol per row"
        )
    path = _path(Path(folder), language.name)
    tensors = {f"adapters.{name}": tensor for name, tensor in _adapters(model).state_dict().items()}
    tensors |= {f"head.{name}": tensor for name, tensor in language.head.state_dict().items()}
    about = {"head": language.head.settings, "vocabulary": language.vocabulary}
    save_tensors(
        path, tensors, {"format": "pt", **{key: json.dumps(value) for key, value in about.items()}}
    )
    return path


def load_language(folder: str | Path, name: str, model: Hubert) -> Language:
    """Puts the adapters of a language into `model` and returns its head, in eval mode.

    Raises ArtefactError when the folder has no such language, naming the nearest, or when the file
    does not fit the network; the network is
    then as it was.
    """
    path = _path(Path(folder), name)
    if not path.exists():
        known = languages(folder)
        raise ArtefactError(
            f"{path}: no such language{did_you_mean(name, known)}; the folder has {', '.join(known) or 'none'}"
        )
    tensors = load_tensors(path)
    about = _metadata(path)
    head = CTCHead(**about["head"])
    load_strictly(
        head, {key[5:]: tensor for key, tensor in tensors.items() if key.startswith("head.")}, path
    )
    load_strictly(
        _adapters(model),
        {key[9:]: tensor for key, tensor in tensors.items() if key.startswith("adapters.")},
        path,
    )
    return Language(name, head.eval(), about["vocabulary"])


def languages(folder: str | Path) -> list[str]:
    """Names of the languages that lie in a folder."""
    return sorted(
        path.name.removeprefix("adapter.").removesuffix(".safetensors")
        for path in Path(folder).glob("adapter.*.safetensors")
    )


def adapters_only(model: Hubert) -> None:
    """Freezes everything but the adapters: a new language is trained without a change to the
    others.
    """
    model.requires_grad_(False)
    _adapters(model).requires_grad_(True)


def _adapters(model: Hubert) -> nn.ModuleList:
    """The adapters of all layers: the network's own, not copies."""
    if model.config.adapter_attn_dim is None:
        raise ConfigError(
            "this network has no adapters to hold a language; build it with model.adapter_attn_dim, e.g. 16"
        )
    return nn.ModuleList(layer.adapter for layer in model.context_encoder.layers)  # type: ignore[union-attr, misc]


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
            f"{path}: says nothing of its head and vocabulary; it was not written by save_language"
        )
    return {key: json.loads(stored[key]) for key in ("head", "vocabulary")}
