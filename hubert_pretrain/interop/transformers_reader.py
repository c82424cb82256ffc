"""Folders of `transformers` 4.x and 5.x (HubertModel, HubertForCTC,
HubertForSequenceClassification), in; read without it.

| content | file |
|---|---|
| weights | `model.safetensors` or its shards, `pytorch_model.bin`, or the file that is named |
| configuration | `config.json` |
| normalisation | `do_normalize` in `processor_config.json` or `preprocessor_config.json` |
| CTC vocabulary | `vocab.json`, `added_tokens.json` |
| special symbols | `tokenizer_config.json`, `special_tokens_map.json` |
| pretraining head, in our own exports | `pretraining_head.safetensors` |
| head of a task that has no class there, in our own exports | `task_head.safetensors` |
| our config.json, in our own exports | `hubert_pretrain.json` |
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
    add_preserved_head,
    assemble,
    build_config,
    preserved_extra,
)
from hubert_pretrain.interop.fairseq_dictionary import BLANK, check_symbols, ctc_symbols
from hubert_pretrain.interop.pickles import read_pickle
from hubert_pretrain.interop.tensor_names import (
    FAIRSEQ_HEAD,
    TRANSFORMERS,
    TRANSFORMERS_CLASSES,
    TRANSFORMERS_CTC,
    foreign_names,
    to_ours,
)
from hubert_pretrain.model.checkpoint import WEIGHTS, LoadedModel, load_tensors, read_small_json
from hubert_pretrain.model.config import HubertConfig
from hubert_pretrain.model.heads import ClassificationHead, CodebookHead, CTCHead
from hubert_pretrain.model.spec_augment import SpecAugment

EXTRA_KEY = "transformers"
"""Key of a checkpoint's "extra" for fields of `transformers.HubertConfig` that are no part of our
network.
"""
EXTRA_FIELDS = [
    *vars(SpecAugment()),
    "ctc_loss_reduction",
    "ctc_zero_infinity",
    "final_dropout",
    "use_weighted_layer_sum",
    "classifier_proj_size",
]
"""Those fields. An export writes a setting of our head in place of the field with that meaning."""
PRETRAINING_HEAD = "pretraining_head.safetensors"
TASK_HEAD = "task_head.safetensors"
"""File beside the weights with a head for which `transformers` has no class."""
PROBLEM_KEY = "problem_type"
"""Key of a checkpoint's "extra" with the meaning of a classifier's outputs, and the field of
`transformers` that states it: single_label_classification, multi_label_classification,
regression.
"""
PRESERVED_FILE = f"{PRESERVED}.json"
_DEFAULTS: dict[str, Any] = {
    "feat_proj_dropout": 0.0,
    "activation_dropout": 0.1,
    "layerdrop": 0.1,
    "final_dropout": 0.1,
}
"""Defaults of `transformers.HubertConfig` that differ from ours, for fields that an old file does
not have.
"""
_SPECIAL_TOKENS = {"pad_token": "<pad>", "unk_token": "<unk>", "word_delimiter_token": "|"}
"""Key in `tokenizer_config.json` -> our name for that symbol, which is also its default there."""
TOKENIZER_KEY = "tokenizer"
"""Key of a checkpoint's "extra" for settings of its tokenizer."""
TOKENIZER_FIELDS = ["do_lower_case"]
"""Those settings: they change the text that is printed."""
BLANK_KEY = "blank"
"""Key of a checkpoint's "extra" for the row of CTC's blank in a head without a vocabulary."""
_ACTIVATIONS = {
    "gelu_python": "gelu",
    "gelu_fast": "gelu_new",
    "gelu_pytorch_tanh": "gelu_new",
    "gelu_accurate": "gelu_new",
    "swish": "silu",
}
"""Other names of `transformers` for functions that we have -> our name."""
_FIRST = "feature_extractor.conv_layers.0.conv.weight"
_HEADS = {"lm_head", "projector", "classifier", "layer_weights", "final_proj", "label_embs_concat"}
"""First parts of names of tensors beside the encoder, where the encoder has no prefix."""


def load_huggingface(
    folder: str | Path,
    *,
    weights: tuple[Path, dict[str, Tensor]] | None = None,
    dictionary: str | Path | None = None,
    **overrides: Any,
) -> LoadedModel:
    """A folder of `transformers` as a network and its head.

    Args:
        folder: with config.json and weights.
        weights: a file and its tensors, in place of the weights of the folder.
        dictionary: `dict.ltr.txt` of fairseq, in place of the vocabulary of the folder.
        overrides: fields of HubertConfig that change no shape.

    Raises:
        ArtefactError: the folder is damaged, no HuBERT, or its vocabulary does not fit its head.
    """
    folder = Path(folder)
    stored = read_small_json(folder / "config.json")
    preserved = read_small_json(folder / PRESERVED_FILE)
    preserved = preserved if isinstance(preserved, dict) else None
    # An export with languages is a Wav2Vec2ForCTC; others of that class are no HuBERT.
    known = ("hubert", "wav2vec2") if preserved else ("hubert",)
    if not isinstance(stored, dict) or stored.get("model_type") not in known:
        found = stored.get("model_type") if isinstance(stored, dict) else type(stored).__name__
        raise ArtefactError(
            f"{folder / 'config.json'}: model_type is {found!r}, expected 'hubert'; "
            "its architecture is another"
        )
    path, tensors = weights or read_weights(folder)
    encoder, head = _split(tensors, path)
    notes: list[str] = []
    fields = _fields(stored) | {"normalize_waveform": _normalizes(folder, stored, notes)}
    _drop_ignored_adapters(fields, encoder, notes)
    source = ForeignCheckpoint(
        path=path,
        format="transformers HubertModel",
        kind=CodebookHead.kind,
        weights=encoder,
        key_map=TRANSFORMERS,
        config=build_config(
            fields, preserved=preserved, overrides=overrides, path=folder / "config.json"
        ),
        extra=preserved_extra(preserved) or {},
        notes=notes,
    )
    if preserved is None:
        extra_fields = {name: stored[name] for name in EXTRA_FIELDS if name in stored}
        if extra_fields:
            source.extra[EXTRA_KEY] = extra_fields
    if {"lm_head.weight", "lm_head.bias"} <= head.keys():
        _add_ctc_head(source, folder, stored, head, dictionary)
    elif {"classifier.weight", "projector.weight"} <= head.keys():
        _add_classes(source, folder, stored, head)
    elif weights is None and (folder / PRETRAINING_HEAD).is_file():
        _add_codebook(source, folder, preserved)
    elif weights is None and preserved is not None and (folder / TASK_HEAD).is_file():
        add_preserved_head(source, preserved, load_tensors(folder / TASK_HEAD), f"{TASK_HEAD}: ")
    beside = [name for name in head if name not in source.head_names]
    source.ignored += beside
    if beside:
        notes.append(f"{len(beside)} tensors beside the encoder are of no head known here")
    return assemble(source)


# -- configuration and weights


def _fields(stored: dict[str, Any]) -> dict[str, Any]:
    """The values of our fields, which have the same names in `transformers`."""
    known = {f.name for f in dataclasses.fields(HubertConfig)}
    fields = {name: value for name, value in {**_DEFAULTS, **stored}.items() if name in known}
    for name in ("hidden_act", "feat_extract_activation"):
        if isinstance(fields.get(name), str):
            fields[name] = _ACTIVATIONS.get(fields[name], fields[name])
    return fields


def _split(tensors: dict[str, Tensor], path: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The tensors of the encoder, without their prefix, and those beside it.

    HubertModel has no prefix, the classes with a head have `hubert.`, and a network inside another
    one has more, such as `model.hubert.`.
    """
    prefixes = [name.removesuffix(_FIRST) for name in tensors if name.endswith(_FIRST)]
    if len(prefixes) != 1:
        found = f"{len(prefixes)} networks ({', '.join(prefixes)})"
        if not prefixes:
            found = ", ".join(list(tensors)[:3]) or "no tensors"
        raise ArtefactError(
            f"{path}: holds {found}; expected the weights of one HuBERT, with one tensor {_FIRST}"
        )
    prefix = prefixes[0]
    outer = prefix.removesuffix("hubert.")
    encoder = {}
    beside = {}
    for name, tensor in tensors.items():
        inside = name.startswith(prefix) if prefix else name.split(".")[0] not in _HEADS
        if inside:
            encoder[name.removeprefix(prefix)] = tensor
        else:
            beside[name.removeprefix(outer)] = tensor
    return encoder, beside


def _normalizes(folder: Path, stored: dict[str, Any], notes: list[str]) -> bool:
    """True when the folder's processor normalises waveforms."""
    processor = read_small_json(folder / "processor_config.json")
    extractor = read_small_json(folder / "preprocessor_config.json")
    nested = processor.get("feature_extractor") if isinstance(processor, dict) else None
    for found in (nested, extractor):
        if isinstance(found, dict) and isinstance(found.get("do_normalize"), bool):
            if found.get("sampling_rate", SAMPLE_RATE) != SAMPLE_RATE:
                raise ArtefactError(
                    f"{folder}: its processor wants {found['sampling_rate']} samples per second, "
                    f"expected {SAMPLE_RATE}"
                )
            return found["do_normalize"]
    published = stored.get("feat_extract_norm") == "layer"
    notes.append(
        f"no processor file says whether waveforms are normalised: taken as {published}, "
        "as the published model of this kind"
    )
    return published


def _drop_ignored_adapters(
    fields: dict[str, Any], weights: dict[str, Tensor], notes: list[str]
) -> None:
    """Removes adapters from a post-norm network: `transformers` builds none there, whatever the
    configuration says.
    """
    post_norm = not fields.get("do_stable_layer_norm", False)
    stored = any(".adapter_layer." in name for name in weights)
    if fields.get("adapter_attn_dim") is not None and post_norm and not stored:
        notes.append(
            f"adapter_attn_dim is {fields['adapter_attn_dim']}, which transformers ignores in a "
            "post-norm model: no adapters"
        )
        fields["adapter_attn_dim"] = None


def read_weights(folder: Path) -> tuple[Path, dict[str, Tensor]]:
    """The file that holds the tensors of a folder, or lists the files that do, and its tensors."""
    index = folder / f"{WEIGHTS}.index.json"
    pickle_file = folder / "pytorch_model.bin"
    if (folder / WEIGHTS).is_file():
        return folder / WEIGHTS, load_tensors(folder / WEIGHTS)
    if index.is_file():
        tensors: dict[str, Tensor] = {}
        for shard in _shards(index):
            tensors |= load_tensors(folder / shard)
        return index, tensors
    if pickle_file.is_file():
        return pickle_file, named_tensors(read_pickle(pickle_file))
    raise ArtefactError(
        f"{folder}: has a config.json but no weights; expected {WEIGHTS} or pytorch_model.bin, or "
        "the path of the file of weights in it"
    )


def is_shard(path: Path) -> bool:
    """True for one of several files that hold the weights of a folder together."""
    index = path.with_name(f"{WEIGHTS}.index.json")
    return index.is_file() and path.name in _shards(index)


def named_tensors(content: Any) -> dict[str, Tensor]:
    """The tensors of a state dict, also of one inside the checkpoint of a training."""
    for key in ("state_dict", "model_state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    items = content.items() if isinstance(content, dict) else ()
    return {
        name: tensor
        for name, tensor in items
        if isinstance(name, str) and isinstance(tensor, Tensor)
    }


def _shards(index: Path) -> list[str]:
    """Names of the files that an index lists, all of its own folder."""
    listed = read_small_json(index)
    names = listed.get("weight_map", {}).values() if isinstance(listed, dict) else ()
    shards = sorted(set(names))
    if not shards or any(Path(shard).name != shard for shard in shards):
        raise ArtefactError(
            f"{index}: weight_map lists no files of this folder; "
            "expected names such as model-00001-of-00002.safetensors"
        )
    return shards


# -- heads


def _add_codebook(
    source: ForeignCheckpoint, folder: Path, preserved: dict[str, Any] | None
) -> None:
    """Adds the pretraining head beside the weights: unit embeddings, or a plain softmax."""
    from safetensors import safe_open

    path = folder / PRETRAINING_HEAD
    stored = load_tensors(path)
    cosine = "label_embs_concat" in stored
    names = ["projection.weight", "projection.bias"]
    if cosine:
        names.append("unit_embeddings")
    source.head_state = to_ours(stored, names, FAIRSEQ_HEAD, str(path))
    source.head_names = list(stored)
    source.head = preserved.get("head") if preserved is not None else None
    if source.head is not None:
        return
    # Without our config.json the settings follow from the shapes.
    clusters, width = stored["label_embs_concat" if cosine else "final_proj.weight"].shape
    source.head = {"hidden_size": source.config.hidden_size, "n_clusters": clusters}
    if cosine:
        with safe_open(path, "pt") as file:
            temperature = float((file.metadata() or {}).get("temperature", "0.1"))
        source.head |= {"projection_size": width, "temperature": temperature}
        source.config = dataclasses.replace(source.config, projection_size=width)


def _add_ctc_head(
    source: ForeignCheckpoint,
    folder: Path,
    stored: dict[str, Any],
    weights: dict[str, Tensor],
    dictionary: str | Path | None,
) -> None:
    state = to_ours(weights, ("linear.weight", "linear.bias"), TRANSFORMERS_CTC, str(source.path))
    rows = state["linear.weight"].shape[0]
    source.kind = CTCHead.kind
    source.format = "transformers HubertForCTC"
    source.head_names = ["lm_head.weight", "lm_head.bias"]
    source.head = {
        "hidden_size": source.config.hidden_size,
        "vocabulary_size": rows,
        "dropout": stored.get("final_dropout", 0.1),
    }
    source.head_state = state
    tokenizer = _tokenizer(folder)
    name = tokenizer.get("tokenizer_class", "Wav2Vec2CTCTokenizer")
    is_ours = {"merges", "phones"} & source.extra.keys()
    if name != "Wav2Vec2CTCTokenizer" and not is_ours:
        source.notes.append(f"its tokenizer is {name}, which may join symbols in another way")
    if dictionary is None:
        symbols = _vocabulary(folder, tokenizer, rows, source.notes)
        symbols = symbols or source.extra.get("vocabulary")
    else:
        symbols = ctc_symbols(dictionary, rows)
        source.dictionary = str(dictionary)
    if symbols is None:
        source.notes.append(
            f"no vocab.json names its {rows} characters: copy vocab.json and tokenizer_config.json "
            "of the model that it was made from, or give its dict.ltr.txt"
        )
        if blank := _configured_blank(folder, stored, rows):
            source.extra[BLANK_KEY] = blank
        return
    source.extra.pop(BLANK_KEY, None)
    if BLANK in symbols:
        blank = symbols.index(BLANK)
        configured = stored.get("pad_token_id")
        if configured is not None and configured != blank:
            source.notes.append(
                f"config.json says that CTC's blank is row {configured}, the vocabulary that it is "
                f"row {blank}: decoded by the vocabulary, as transformers does"
            )
    else:
        blank = _configured_blank(folder, stored, rows)
        source.notes.append(
            f"its vocabulary names no {BLANK}: CTC's blank is row {blank}, {symbols[blank]!r}, "
            "as config.json says"
        )
        symbols[blank] = BLANK
    order = [blank, *(row for row in range(rows) if row != blank)]  # our blank is the first row
    source.head_state = {name: tensor[torch.tensor(order)] for name, tensor in state.items()}
    source.extra["vocabulary"] = [symbols[row] for row in order]
    settings = {name: tokenizer[name] for name in TOKENIZER_FIELDS if tokenizer.get(name)}
    if settings:
        source.extra[TOKENIZER_KEY] = settings


def _configured_blank(folder: Path, stored: dict[str, Any], rows: int) -> int:
    """The row of CTC's blank by config.json."""
    blank = stored.get("pad_token_id")
    blank = 0 if blank is None else blank
    if not isinstance(blank, int) or not 0 <= blank < rows:
        raise ArtefactError(
            f"{folder / 'config.json'}: pad_token_id, CTC's blank, is {blank}, "
            f"expected one of the {rows} rows of the head"
        )
    return blank


def _tokenizer(folder: Path) -> dict[str, Any]:
    """The settings of the tokenizer; older folders keep its special tokens in a file of their
    own.
    """
    found: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        stored = read_small_json(folder / name)
        found |= stored if isinstance(stored, dict) else {}
    return found


def _vocabulary(
    folder: Path, tokenizer: dict[str, Any], rows: int, notes: list[str]
) -> list[str] | None:
    """The symbol of each row, with our names for the blank, the unknown symbol and the word
    delimiter; None when the folder has no vocabulary. Rows without a symbol are called `<row 32>`.
    """
    path = folder / "vocab.json"
    stored = read_small_json(path)
    if not isinstance(stored, dict):
        return None
    added = read_small_json(folder / "added_tokens.json")
    if any(isinstance(value, dict) for value in stored.values()):  # one vocabulary per language
        language = tokenizer.get("target_lang")
        if language not in stored:
            raise ArtefactError(
                f"{path}: target_lang is {language!r}, expected one of {', '.join(stored)}"
            )
        stored = stored[language]
    # Three places name symbols: the tokenizer's table, then added tokens, then the vocabulary.
    by_row = {
        int(row): str(item["content"])
        for row, item in tokenizer.get("added_tokens_decoder", {}).items()
        if isinstance(item, dict) and "content" in item
    }
    named_rows = {**(added if isinstance(added, dict) else {}), **stored}
    by_row |= {row: symbol for symbol, row in named_rows.items()}
    if len(stored) > rows:
        check_symbols(list(stored), rows, path)
    symbols = [by_row.get(row, f"<row {row}>") for row in range(rows)]
    unnamed = sum(row not in by_row for row in range(rows))
    if unnamed:
        notes.append(f"{unnamed} of the {rows} rows of its head have no symbol: called <row N>")
    ours = {
        _token_text(tokenizer.get(key), default): default
        for key, default in _SPECIAL_TOKENS.items()
    }
    return check_symbols([ours.get(symbol, symbol) for symbol in symbols], rows, path)


def _token_text(token: Any, default: str) -> str:
    """The text of a special token; newer files keep it in a table of the token's properties."""
    token = token.get("content") if isinstance(token, dict) else token
    return token if isinstance(token, str) else default


def _add_classes(
    source: ForeignCheckpoint, folder: Path, stored: dict[str, Any], weights: dict[str, Tensor]
) -> None:
    weighted = "layer_weights" in weights
    names = ["projection.weight", "projection.bias", "linear.weight", "linear.bias"]
    if weighted:
        names.append("layer_weights")
    source.head_state = to_ours(weights, names, TRANSFORMERS_CLASSES, str(source.path))
    rows, width = source.head_state["linear.weight"].shape
    source.kind = ClassificationHead.kind
    source.format = "transformers HubertForSequenceClassification"
    source.head_names = [name for key in names for name in foreign_names(key, TRANSFORMERS_CLASSES)]
    source.head = {
        "hidden_size": source.config.hidden_size,
        "n_classes": rows,
        "projection_size": width,
        "weighted_layers": weighted,
        "n_layers": source.config.num_hidden_layers if weighted else 0,
    }
    if stored.get(PROBLEM_KEY):
        source.extra[PROBLEM_KEY] = stored[PROBLEM_KEY]
    labels = stored.get("id2label") or {index: f"LABEL_{index}" for index in range(rows)}
    classes = []
    if isinstance(labels, dict):
        classes = [str(labels[key]) for key in sorted(labels, key=int)]
    source.extra["classes"] = check_symbols(classes, rows, folder / "config.json", "table id2label")
