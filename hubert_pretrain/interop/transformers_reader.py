"""Reads folders of `transformers` (HubertModel, HubertForCTC, HubertForSequenceClassification),
written by 4.x or 5.x, without it.

| what | where |
|---|---|
| weights | `model.safetensors` or its shards, `pytorch_model.bin` |
| configuration | `config.json` |
| normalisation | `processor_config.json` or `preprocessor_config.json`: `do_normalize` |
| CTC vocabulary | `vocab.json`, `added_tokens.json`, `tokenizer_config.json` |
| pretraining head, and what `transformers` has no field for | `pretraining_head.safetensors`,
`hubert_pretrain.json`, of our own export |
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hubert_pretrain.errors import ArtefactError
from hubert_pretrain.frames import SAMPLE_RATE
from hubert_pretrain.interop.assemble import (
    PRESERVED,
    ForeignCheckpoint,
    assemble,
    build_config,
    fitting,
    preserved_extra,
)
from hubert_pretrain.interop.pickles import read_pickle
from hubert_pretrain.interop.tensor_names import (
    FAIRSEQ_HEAD,
    TRANSFORMERS,
    TRANSFORMERS_CLASSES,
    TRANSFORMERS_CTC,
    to_ours,
)
from hubert_pretrain.model.checkpoint import WEIGHTS, LoadedModel, load_tensors, read_small_json
from hubert_pretrain.model.config import HubertConfig
from hubert_pretrain.model.spec_augment import SpecAugment

ELSEWHERE = "transformers"
"""Key of a checkpoint's "extra" under which fields of `transformers.HubertConfig` are kept that are
no part of our network.
"""
KEPT = [
    *vars(SpecAugment()),
    *(
        "ctc_loss_reduction",
        "ctc_zero_infinity",
        "final_dropout",
        "use_weighted_layer_sum",
        "classifier_proj_size",
    ),
]
"""Those fields. Where a head of ours has a setting of that meaning, the head's is what an export
says.
"""
PRETRAINING_HEAD = "pretraining_head.safetensors"
PRESERVED_FILE = f"{PRESERVED}.json"
_DEFAULTS: dict[str, Any] = {
    "feat_proj_dropout": 0.0,
    "activation_dropout": 0.1,
    "layerdrop": 0.1,
    "final_dropout": 0.1,
}
"""Defaults of `transformers.HubertConfig` that differ from ours, for a field that an old file does
not have.
"""
_SPECIAL = {"pad_token": "<pad>", "unk_token": "<unk>", "word_delimiter_token": "|"}
"""Key of `tokenizer_config.json` -> what we call that symbol, and its default."""


def load_huggingface(folder: str | Path, **overrides: Any) -> LoadedModel:
    """A folder of `transformers` as a network and its head; `overrides` replace fields of
    HubertConfig that change no shape.

    Raises ArtefactError when it is damaged, no HuBERT, or its vocabulary does not fit its head.
    """
    folder = Path(folder)
    stored = read_small_json(folder / "config.json")
    carried = read_small_json(folder / PRESERVED_FILE)
    if not isinstance(stored, dict) or stored.get("model_type") != "hubert":
        found = stored.get("model_type") if isinstance(stored, dict) else type(stored).__name__
        raise ArtefactError(
            f"{folder / 'config.json'}: model_type is {found!r}, expected 'hubert'; its architecture is another"
        )
    everything, path = _weights(folder)
    prefix = "hubert." if any(name.startswith("hubert.") for name in everything) else ""
    weights = {
        name.removeprefix(prefix): tensor
        for name, tensor in everything.items()
        if name.startswith(prefix)
    }
    head_weights = {
        name: tensor for name, tensor in everything.items() if not name.startswith(prefix)
    }
    notes: list[str] = []
    fields = _fields(stored) | {"normalize_waveform": _normalises(folder, stored, notes)}
    post_norm = not fields.get("do_stable_layer_norm", False)
    adapters = any(".adapter_layer." in name for name in weights)
    if fields.get("adapter_attn_dim") is not None and post_norm and not adapters:
        notes.append(
            f"adapter_attn_dim is {fields['adapter_attn_dim']}, which transformers ignores in a post-norm model: no adapters"
        )
        fields["adapter_attn_dim"] = None
    carried = carried if isinstance(carried, dict) else None
    config = build_config(fields, carried=carried, overrides=overrides, path=folder / "config.json")
    source = ForeignCheckpoint(
        path, "transformers HubertModel", "pretrain", weights, TRANSFORMERS, config, notes=notes
    )
    source.extra = preserved_extra(carried) or {}
    kept = {name: stored[name] for name in KEPT if name in stored}
    source.extra |= (
        {ELSEWHERE: {**source.extra.get(ELSEWHERE, {}), **kept}} if kept and carried is None else {}
    )
    if "lm_head.weight" in head_weights:
        _ctc_vocabulary(source, folder, stored, head_weights)
    elif "classifier.weight" in head_weights:
        _classes(source, stored, head_weights)
    elif (folder / PRETRAINING_HEAD).is_file():
        _codebook(source, folder, carried)
    unknown = [name for name in head_weights if name not in source.head_names]
    source.weights |= {name: head_weights[name] for name in unknown}  # refused by name
    return assemble(source)


def _fields(stored: dict[str, Any]) -> dict[str, Any]:
    """The values of our fields: `transformers` calls them the same."""
    known = {f.name for f in dataclasses.fields(HubertConfig)}
    return {name: value for name, value in {**_DEFAULTS, **stored}.items() if name in known}


def _weights(folder: Path) -> tuple[dict[str, Tensor], Path]:
    """All tensors of a folder and the file that holds them, or lists the files that do."""
    index = folder / f"{WEIGHTS}.index.json"
    if (folder / WEIGHTS).is_file():
        return load_tensors(folder / WEIGHTS), folder / WEIGHTS
    if index.is_file():
        listed = read_small_json(index)
        shards = (
            sorted(set(listed.get("weight_map", {}).values())) if isinstance(listed, dict) else []
        )
        if not shards or any(Path(shard).name != shard for shard in shards):
            raise ArtefactError(
                f"{index}: weight_map lists no files of this folder; expected names such as model-00001-of-00002.safetensors"
            )
        return {
            name: tensor
            for shard in shards
            for name, tensor in load_tensors(folder / shard).items()
        }, index
    if (folder / "pytorch_model.bin").is_file():
        content = read_pickle(folder / "pytorch_model.bin")
        items = content.items() if isinstance(content, dict) else ()
        return {
            name: tensor
            for name, tensor in items
            if isinstance(name, str) and isinstance(tensor, Tensor)
        }, folder / "pytorch_model.bin"
    raise ArtefactError(
        f"{folder}: has a config.json but no weights; expected {WEIGHTS} or pytorch_model.bin"
    )


def _normalises(folder: Path, stored: dict[str, Any], notes: list[str]) -> bool:
    processor = read_small_json(folder / "processor_config.json")
    extractor = read_small_json(folder / "preprocessor_config.json")
    nested = processor.get("feature_extractor") if isinstance(processor, dict) else None
    for found in (nested, extractor):
        if isinstance(found, dict) and isinstance(found.get("do_normalize"), bool):
            if found.get("sampling_rate", SAMPLE_RATE) != SAMPLE_RATE:
                raise ArtefactError(
                    f"{folder}: its processor wants {found['sampling_rate']} samples per second, expected {SAMPLE_RATE}"
                )
            return found["do_normalize"]
    guess = stored.get("feat_extract_norm") == "layer"
    notes.append(
        f"no processor file says whether waveforms are normalised: taken as {guess}, as the published model of this kind"
    )
    return guess


# -- heads
# ------------------------------------------------------------------------------------------------------------------------


def _codebook(source: ForeignCheckpoint, folder: Path, carried: dict[str, Any] | None) -> None:
    """The pretraining head beside the weights: unit embeddings, or a plain softmax."""
    from safetensors import safe_open

    path = folder / PRETRAINING_HEAD
    stored = load_tensors(path)
    with safe_open(path, "pt") as file:
        temperature = float((file.metadata() or {}).get("temperature", "0.1"))
    cosine = "label_embs_concat" in stored
    names = ["projection.weight", "projection.bias", *(["unit_embeddings"] if cosine else [])]
    source.head_state = to_ours(stored, names, FAIRSEQ_HEAD, str(path))
    source.head_names = list(stored)
    source.head = carried.get("head") if carried is not None else None
    if source.head is None:
        clusters, width = stored["label_embs_concat" if cosine else "final_proj.weight"].shape
        source.head = {"hidden_size": source.config.hidden_size, "n_clusters": clusters}
        source.head |= {"projection_size": width, "temperature": temperature} if cosine else {}
        source.config = dataclasses.replace(source.config, projection_size=width)


def _ctc_vocabulary(
    source: ForeignCheckpoint, folder: Path, stored: dict[str, Any], weights: dict[str, Tensor]
) -> None:
    state = to_ours(weights, ("linear.weight", "linear.bias"), TRANSFORMERS_CTC, str(source.path))
    rows = state["linear.weight"].shape[0]
    source.kind = "ctc"
    source.format = "transformers HubertForCTC"
    source.head_names = ["lm_head.weight", "lm_head.bias"]
    source.head = {
        "hidden_size": source.config.hidden_size,
        "vocabulary_size": rows,
        "dropout": stored.get("final_dropout", 0.1),
    }
    symbols = _vocabulary(folder, rows)
    blank = stored.get("pad_token_id")
    blank = 0 if blank is None else blank
    if not isinstance(blank, int) or not 0 <= blank < rows:
        raise ArtefactError(
            f"{folder / 'config.json'}: pad_token_id, CTC's blank, is {blank}, expected one of the {rows} rows of the head"
        )
    order = [blank, *(row for row in range(rows) if row != blank)]  # here the blank comes first
    source.head_state = {name: tensor[torch.tensor(order)] for name, tensor in state.items()}
    if symbols is None:
        source.notes.append(f"no vocab.json names its {rows} characters")
    else:
        source.extra["vocabulary"] = [symbols[row] for row in order]


def _vocabulary(folder: Path, rows: int) -> list[str] | None:
    """The symbol of each row, under our names for the blank, the unknown symbol and the gap between
    words.
    """
    stored, added, tokenizer = (
        read_small_json(folder / name)
        for name in ("vocab.json", "added_tokens.json", "tokenizer_config.json")
    )
    if not isinstance(stored, dict):
        return None
    tokenizer = tokenizer if isinstance(tokenizer, dict) else {}
    if any(isinstance(value, dict) for value in stored.values()):  # one vocabulary per language
        language = tokenizer.get("target_lang")
        if language not in stored:
            raise ArtefactError(
                f"{folder / 'vocab.json'}: target_lang is {language!r}, expected one of {', '.join(stored)}"
            )
        stored = stored[language]
    later = tokenizer.get("added_tokens_decoder", {})
    found = {
        int(row): str(item["content"])
        for row, item in later.items()
        if isinstance(item, dict) and "content" in item
    }
    found |= {
        row: symbol
        for symbol, row in {**(added if isinstance(added, dict) else {}), **stored}.items()
    }
    symbols = [found[row] for row in range(rows) if row in found]
    fitting(symbols if len(stored) <= rows else list(stored), rows, folder / "vocab.json")
    ours = {_content(tokenizer.get(key), default): default for key, default in _SPECIAL.items()}
    return fitting([ours.get(symbol, symbol) for symbol in symbols], rows, folder / "vocab.json")


def _content(token: Any, default: str) -> str:
    """A special token's text: newer files keep it in a table of its properties."""
    token = token.get("content") if isinstance(token, dict) else token
    return token if isinstance(token, str) else default


def _classes(source: ForeignCheckpoint, stored: dict[str, Any], weights: dict[str, Tensor]) -> None:
    weighted = "layer_weights" in weights
    names = [
        "projection.weight",
        "projection.bias",
        "linear.weight",
        "linear.bias",
        *(["layer_weights"] if weighted else []),
    ]
    source.head_state = to_ours(weights, names, TRANSFORMERS_CLASSES, str(source.path))
    rows, width = source.head_state["linear.weight"].shape
    source.kind = "classify"
    source.format = "transformers HubertForSequenceClassification"
    source.head_names = list(weights)
    source.head = {
        **{
            "hidden_size": source.config.hidden_size,
            "n_classes": rows,
            "projection_size": width,
            "weighted_layers": weighted,
        },
        "n_layers": source.config.num_hidden_layers if weighted else 0,
    }
    labels = stored.get("id2label") or {index: f"LABEL_{index}" for index in range(rows)}
    names = (
        [str(labels[key]) for key in sorted(labels, key=int)] if isinstance(labels, dict) else []
    )
    source.extra["classes"] = fitting(
        names, rows, source.path.parent / "config.json", "table id2label"
    )
