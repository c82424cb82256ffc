"""Languages of one network: a set of adapters and a CTC head per language, exchanged in place
(arXiv:2305.13516, section 4.2).

A language is one file, `adapter.<language>.safetensors`, beside the checkpoint with the weights
that all languages share. It holds the adapters of all layers and the head, under the names that
they have in `model.safetensors`, and in its metadata the settings of the head and "extra"
(vocabulary, rules of texts). `model.safetensors` holds one of the languages too, the first choice.

interop/languages.py reads the files of `transformers`, and chooses between both.
"""

from __future__ import annotations

import dataclasses
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hubert_pretrain.errors import ArtefactError, ConfigError
from hubert_pretrain.model.checkpoint import (
    LoadedModel,
    load_tensors,
    refuse_other_tensors,
    save_tensors,
    with_prefix,
)
from hubert_pretrain.model.heads import CTCHead
from hubert_pretrain.model.hubert import Hubert

TARGET_LANG = "target_lang"
"""Key of a checkpoint's "extra" for the language that its adapters and its head are of."""
_PARTS = ("head", "extra")


@dataclass(frozen=True)
class Language:
    """The weights of a language, and what they mean."""

    name: str
    adapters: dict[str, Tensor]
    """Of all layers, under their names in the network."""
    head: dict[str, Any]
    """Settings of its CTCHead."""
    head_state: dict[str, Tensor]
    extra: dict[str, Any]
    """Of a checkpoint of this language: vocabulary, rules of its texts, origin."""

    def __post_init__(self) -> None:
        symbols = self.extra.get(CTCHead.names) or []
        rows = int(self.head["vocabulary_size"])
        if len(symbols) != rows:
            raise ConfigError(
                f"the vocabulary of language {self.name!r} has {len(symbols)} symbols for a head "
                f"of {rows} rows; give one symbol per row"
            )


def language_of(name: str, model: Hubert, head: CTCHead, extra: dict[str, Any]) -> Language:
    """The language that a network and a head hold now."""
    return Language(
        name, adapters_of(model), head.settings, head.state_dict(), {**extra, TARGET_LANG: name}
    )


def save_language(folder: str | Path, language: Language) -> Path:
    """Writes `adapter.<language>.safetensors`; returns its path."""
    path = language_file(folder, language.name)
    tensors = {f"hubert.{name}": tensor for name, tensor in language.adapters.items()}
    tensors |= {f"head.{name}": tensor for name, tensor in language.head_state.items()}
    save_tensors(path, tensors, metadata_of(language))
    return path


def read_language(path: Path) -> Language:
    """The language of a file of `save_language`. Raises ArtefactError for any other file."""
    stored = read_metadata(path)
    if stored is None:
        raise ArtefactError(
            f"{path}: has no head and vocabulary in its metadata; it is no language of this project"
        )
    tensors = load_tensors(path)
    return Language(
        name_of(path),
        with_prefix(tensors, "hubert."),
        head_state=with_prefix(tensors, "head."),
        **stored,
    )


def metadata_of(language: Language) -> dict[str, str]:
    """The metadata of its file."""
    return {"format": "pt", **{name: json.dumps(getattr(language, name)) for name in _PARTS}}


def read_metadata(path: Path) -> dict[str, Any] | None:
    """Settings of the head and "extra" of a file; None for a file that has none."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            stored = file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise ArtefactError(f"{path}: cannot be read as safetensors ({error})") from error
    if not stored.keys() >= set(_PARTS):
        return None
    return {name: json.loads(stored[name]) for name in _PARTS}


def with_language(loaded: LoadedModel, language: Language, source: Path) -> LoadedModel:
    """The checkpoint in this language: its adapters are copied into the network of `loaded`, the
    head and "extra" are its own.

    Raises ArtefactError, naming `source`, when the file does not fit the network, which is then
    unchanged.
    """
    refuse_other_tensors(adapters_of(loaded.model), language.adapters, source)
    loaded.model.load_state_dict(language.adapters, strict=False)
    return dataclasses.replace(
        loaded,
        kind=CTCHead.kind,
        head_state=language.head_state,
        config={
            **loaded.config,
            "kind": CTCHead.kind,
            "head": language.head,
            "extra": {**language.extra, TARGET_LANG: language.name},
        },
    )


def languages(folder: str | Path) -> list[str]:
    """Names of the languages in a folder."""
    return sorted(map(name_of, Path(folder).glob("adapter.*.safetensors")))


def with_new_adapters(model: Hubert, width: int, seed: int) -> Hubert:
    """A network of the same weights with new adapters in all layers, which change nothing yet."""
    torch.manual_seed(seed)
    found = Hubert(dataclasses.replace(model.config, adapter_attn_dim=width))
    shared = {name: each for name, each in model.state_dict().items() if not _is_adapter(name)}
    found.load_state_dict(shared, strict=False)
    return found.train(model.training)


def adapters_only(model: Hubert) -> None:
    """Freezes all weights but the adapters, to train a new language without a change to others."""
    model.requires_grad_(False)
    adapters_of(model)  # refuses a network without
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(_is_adapter(name))


def adapters_of(model: Hubert) -> dict[str, Tensor]:
    """The tensors of the adapters of all layers. Raises ConfigError where there are none."""
    if model.config.adapter_attn_dim is None:
        raise ConfigError(
            "this network has no adapters to hold a language; "
            "build it with model.adapter_attn_dim, e.g. 16"
        )
    return {name: tensor for name, tensor in model.state_dict().items() if _is_adapter(name)}


def language_file(folder: str | Path, name: str) -> Path:
    """Path of a language in a folder. Raises ConfigError for a name that cannot be."""
    if not re.fullmatch(r"[\w-]+", name):
        raise ConfigError(
            f"{name!r} cannot name a language; use letters, digits, _ and -, e.g. 'deu'"
        )
    return Path(folder) / f"adapter.{name}.safetensors"


def name_of(path: Path) -> str:
    """The language of a file."""
    return path.name.removeprefix("adapter.").removesuffix(".safetensors")


def _is_adapter(name: str) -> bool:
    return ".adapter." in name
