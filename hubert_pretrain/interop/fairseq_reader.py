"""fairseq's HuBERT checkpoints (`*.pt`, pretraining and CTC), and those that s3prl makes of them,
in; read without fairseq and without running code (see pickles.py).

| file | weights | configuration | dictionaries |
|---|---|---|---|
| pretraining | `model` | `cfg.model` (old: `args`), `cfg.task` | `task_state.dictionaries` |
| CTC | `model` | `cfg.model`, inside it `w2v_args` | `task_state.target_dictionary` |
| s3prl | `model_weight` | `model_cfg`, `task_cfg` | `dictionaries_symbols` |

In a CTC file the encoder's tensors have the prefix `w2v_encoder.w2v_model.`
"""

from __future__ import annotations

import ast
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hubert_pretrain.errors import ArtefactError
from hubert_pretrain.interop.assemble import (
    PRESERVED,
    ForeignCheckpoint,
    add_preserved_head,
    assemble,
    build_config,
    preserved_extra,
)
from hubert_pretrain.interop.fairseq_dictionary import (
    BLANK_SWAP,
    SPECIAL_SYMBOLS,
    check_symbols,
    cluster_dictionary,
    cluster_rows,
    read_dictionary,
    stored_dictionaries,
)
from hubert_pretrain.interop.pickles import plain, read_pickle
from hubert_pretrain.interop.tensor_names import FAIRSEQ_HEAD, fairseq_key_map, to_ours
from hubert_pretrain.model.checkpoint import LoadedModel
from hubert_pretrain.model.config import HubertConfig
from hubert_pretrain.model.heads import CodebookHead, CTCHead

CTC_PREFIX = "w2v_encoder.w2v_model."
CTC_HEAD_PREFIX = "w2v_encoder.proj."
HEAD_NAMES = ["final_proj.weight", "final_proj.bias", "label_embs_concat"]

FIELDS = {
    "conv_bias": "conv_bias",
    "conv_gradient_scale": "feature_grad_mult",
    "feat_proj_dropout": "dropout_input",
    "hidden_size": "encoder_embed_dim",
    "num_hidden_layers": "encoder_layers",
    "num_attention_heads": "encoder_attention_heads",
    "intermediate_size": "encoder_ffn_embed_dim",
    "hidden_dropout": "dropout",
    "attention_dropout": "attention_dropout",
    "activation_dropout": "activation_dropout",
    "layerdrop": "encoder_layerdrop",
    "do_stable_layer_norm": "layer_norm_first",
    "num_conv_pos_embeddings": "conv_pos",
    "num_conv_pos_embedding_groups": "conv_pos_groups",
    "conv_pos_batch_norm": "conv_pos_batch_norm",
    "projection_size": "final_dim",
}
"""Our field -> fairseq's field with the same meaning."""
ACTIVATIONS = {
    "gelu": "gelu",
    "relu": "relu",
    "gelu_accurate": "gelu_new",
    "gelu_fast": "gelu_new",
    "swish": "silu",
}
"""fairseq's name -> ours."""
_DEFAULTS: dict[str, Any] = {
    "extractor_mode": "default",
    "conv_feature_layers": "[(512,10,5)] + [(512,3,2)] * 4 + [(512,2,2)] * 2",
    "conv_bias": False,
    "feature_grad_mult": 1.0,
    "activation_fn": "gelu",
    "dropout_input": 0.0,
    "encoder_embed_dim": 768,
    "encoder_layers": 12,
    "encoder_attention_heads": 12,
    "encoder_ffn_embed_dim": 3072,
    "dropout": 0.1,
    "attention_dropout": 0.1,
    "activation_dropout": 0.0,
    "encoder_layerdrop": 0.0,
    "layer_norm_first": False,
    "conv_pos": 128,
    "conv_pos_groups": 16,
    "final_dim": 0,
    "logit_temp": 0.1,
    "conv_pos_batch_norm": False,
    "target_glu": False,
}
"""Defaults of fairseq's HubertConfig, for fields that an older file does not have."""
_FINETUNED = {
    "dropout": "dropout",
    "attention_dropout": "attention_dropout",
    "activation_dropout": "activation_dropout",
    "dropout_input": "dropout_input",
    "feature_grad_mult": "feature_grad_mult",
    "layerdrop": "encoder_layerdrop",
}
"""Fields of a fine-tuning (HubertAsrConfig) that replace those of the pretraining -> their names
there.
"""


@dataclass
class _Parts:
    """The parts of a file, independent of its layout."""

    path: Path
    format: str
    weights: dict[str, Tensor]
    model: dict[str, Any]
    task: dict[str, Any]
    dictionaries: list[list[str]] | None
    dictionary: str | None
    """The file of the dictionary, where the caller gave one."""
    preserved: dict[str, Any] | None
    """Our config.json, when the file is an export of ours."""


def load_fairseq(
    path: str | Path, *, dictionary: str | Path | None = None, content: Any = None, **overrides: Any
) -> LoadedModel:
    """A checkpoint of fairseq or s3prl as a network and its head: CodebookHead or CTCHead.

    The rows of fairseq's four special symbols, over which its softmax runs too, are kept in
    `extra["fairseq"]["special_embeddings"]`.

    Args:
        path: of the file.
        dictionary: `dict.km.txt` or `dict.ltr.txt`, for a file without its symbols.
        content: result of `read_pickle`, if the file has been read.
        overrides: fields of HubertConfig.

    Raises:
        ArtefactError: the file is damaged, or neither a pretrained HuBERT nor one with a CTC head.
    """
    path = Path(path)
    parts = _parts(read_pickle(path) if content is None else content, path)
    if dictionary is not None:
        parts.dictionaries = [read_dictionary(dictionary)]
        parts.dictionary = str(dictionary)
    fine_tuned = any(name.startswith(CTC_PREFIX) for name in parts.weights)
    return assemble(_ctc(parts, overrides) if fine_tuned else _pretrained(parts, overrides))


def is_fairseq(content: Any) -> bool:
    """True for the content of a checkpoint of fairseq or s3prl, of any architecture."""
    if not isinstance(content, dict):
        return False
    return "model_weight" in content or (
        "model" in content and ("cfg" in content or "args" in content)
    )


def conv_layers(expression: str, path: Path) -> list[tuple[int, int, int]]:
    """(channels, kernel, stride) of each conv layer from fairseq's expression, without evaluating
    code: `"[(512,10,5)] + [(512,3,2)] * 2"` -> [(512, 10, 5), (512, 3, 2), (512, 3, 2)].
    """
    try:
        value = _list_of(ast.parse(expression.strip(), mode="eval").body)
        return [(int(channels), int(kernel), int(stride)) for channels, kernel, stride in value]
    except (SyntaxError, ValueError, TypeError) as error:
        raise ArtefactError(
            f"{path}: conv_feature_layers is {expression[:80]!r}; "
            "expected a list such as [(512,10,5)] + [(512,3,2)] * 4"
        ) from error


def _list_of(node: ast.expr) -> list[tuple[int, int, int]]:
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return _list_of(node.left) + _list_of(node.right)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult):
        return _list_of(node.left) * min(100, int(ast.literal_eval(node.right)))
    return list(ast.literal_eval(node))


# -- pretraining checkpoints


def _pretrained(parts: _Parts, overrides: dict[str, Any]) -> ForeignCheckpoint:
    weights = dict(parts.weights)
    head_weights = {name: weights.pop(name) for name in HEAD_NAMES if name in weights}
    if "mask_emb" not in weights or not head_weights:
        found = ", ".join(list(parts.weights)[:2]) or "no tensors"
        missing = "label_embs_concat" if "mask_emb" in weights else "mask_emb"
        raise ArtefactError(
            f'{parts.path}: not a fairseq HuBERT checkpoint: no "{missing}" among its weights '
            f"(found {found})"
        )
    config = _config(parts, {**_DEFAULTS, **parts.model}, weights, overrides)
    source = ForeignCheckpoint(
        path=parts.path,
        format=parts.format,
        kind=CodebookHead.kind,
        weights=weights,
        key_map=fairseq_key_map(config.feat_extract_norm),
        config=config,
        extra=preserved_extra(parts.preserved) or {},
    )
    if set(HEAD_NAMES) <= head_weights.keys():
        _add_codebooks(source, parts, head_weights)
    else:  # an encoder alone
        source.ignored = list(head_weights)
        source.weights |= head_weights
        _add_preserved_head(source, parts.preserved)
    return source


def _add_codebooks(source: ForeignCheckpoint, parts: _Parts, weights: dict[str, Tensor]) -> None:
    """Adds the CodebookHead: cluster k in row k, without the rows of special symbols."""
    path = parts.path
    embeddings = weights["label_embs_concat"]  # (rows of all dictionaries, d)
    dictionaries = parts.dictionaries or [cluster_dictionary(len(embeddings) - SPECIAL_SYMBOLS)]
    check_symbols(
        [f"{index} {symbol}" for index, symbols in enumerate(dictionaries) for symbol in symbols],
        len(embeddings),
        path,
        "dictionary",
    )
    source.dictionary = parts.dictionary
    sizes = [len(symbols) for symbols in dictionaries]
    blocks = embeddings.split(sizes)  # one per codebook: (4 + K, d)
    units = [
        block[SPECIAL_SYMBOLS:][torch.tensor(cluster_rows(symbols))]
        for block, symbols in zip(blocks, dictionaries, strict=True)
    ]
    rows = len(weights["final_proj.weight"])
    width = embeddings.shape[1]
    if rows not in (width, width * len(sizes)):
        raise ArtefactError(
            f"{path}: final_proj has {rows} rows for unit embeddings of width {width}, expected "
            f"{width}, or that for each of {len(sizes)} codebooks"
        )
    counts = [size - SPECIAL_SYMBOLS for size in sizes]
    source.head = {
        "hidden_size": source.config.hidden_size,
        "projection_size": width,
        "n_clusters": counts if len(counts) > 1 else counts[0],
        "temperature": float(parts.model.get("logit_temp", _DEFAULTS["logit_temp"])),
        "tie_projections": len(sizes) > 1 and rows == width,
    }
    source.head_state = to_ours(
        {**weights, "label_embs_concat": torch.cat(units)},
        ["projection.weight", "projection.bias", "unit_embeddings"],
        FAIRSEQ_HEAD,
        str(path),
    )
    source.head_names = list(weights)
    if preserved_extra(parts.preserved) is None:
        special = torch.cat([block[:SPECIAL_SYMBOLS] for block in blocks])
        source.extra = {"fairseq": {"special_embeddings": special.float().tolist()}}
        if dictionaries != [cluster_dictionary(count) for count in counts]:
            source.extra["fairseq"]["dictionaries"] = dictionaries


def _add_preserved_head(source: ForeignCheckpoint, preserved: dict[str, Any] | None) -> None:
    """Adds a head that our export had to put beside the weights, as it does for s3prl."""
    state = preserved.get("head_state") if isinstance(preserved, dict) else None
    if not isinstance(state, dict) or not isinstance(preserved, dict):
        return
    tensors = {name: tensor for name, tensor in state.items() if isinstance(tensor, Tensor)}
    add_preserved_head(source, preserved, tensors, f"{PRESERVED}.head_state.")


# -- CTC checkpoints


def _ctc(parts: _Parts, overrides: dict[str, Any]) -> ForeignCheckpoint:
    weights = {}
    head_state = {}
    others = []
    for name, tensor in parts.weights.items():
        if name.startswith(CTC_PREFIX):
            weights[name.removeprefix(CTC_PREFIX)] = tensor
        elif name in (CTC_HEAD_PREFIX + "weight", CTC_HEAD_PREFIX + "bias"):
            head_state["linear." + name.removeprefix(CTC_HEAD_PREFIX)] = tensor
        else:
            others.append(name)
    if len(head_state) < 2 or others:
        found = "no w2v_encoder.proj" if len(head_state) < 2 else min(others)
        raise ArtefactError(
            f"{parts.path}: not a fairseq HuBERT CTC checkpoint: found {found}; "
            "expected w2v_encoder.w2v_model and w2v_encoder.proj"
        )
    pretraining = parts.model.get("w2v_args") or {}
    pretraining = pretraining.get("model", pretraining) if isinstance(pretraining, dict) else {}
    replaced = {
        theirs: parts.model[name] for name, theirs in _FINETUNED.items() if name in parts.model
    }
    config = _config(parts, {**_DEFAULTS, **pretraining, **replaced}, weights, overrides)
    source = ForeignCheckpoint(
        path=parts.path,
        format=parts.format,
        kind=CTCHead.kind,
        weights=weights,
        key_map=fairseq_key_map(config.feat_extract_norm),
        config=config,
        head_state=head_state,
        head_names=[CTC_HEAD_PREFIX + "weight", CTC_HEAD_PREFIX + "bias"],
        ignored=[name for name in HEAD_NAMES if name in weights],
    )
    _add_vocabulary(source, parts)
    source.head = {
        "hidden_size": config.hidden_size,
        "vocabulary_size": len(source.head_state["linear.weight"]),
        "dropout": float(parts.model.get("final_dropout") or 0.0),
    }
    return source


def _add_vocabulary(source: ForeignCheckpoint, parts: _Parts) -> None:
    """Adds the symbol of each row of the head, if it is known."""
    rows = len(source.head_state["linear.weight"])
    extra = preserved_extra(parts.preserved)
    source.extra = extra or {}
    exported_rows = (parts.preserved or {}).get("rows")
    if extra is not None and exported_rows:
        # Our export added rows that fairseq's dictionary needs; they are left out again.
        source.head_state = {
            name: tensor[torch.tensor(exported_rows)] for name, tensor in source.head_state.items()
        }
    elif parts.dictionaries is not None:
        symbols = check_symbols(parts.dictionaries[0], rows, parts.path, "dictionary")
        source.extra = {"vocabulary": [BLANK_SWAP.get(symbol, symbol) for symbol in symbols]}
        source.dictionary = parts.dictionary
    else:
        source.notes = [f"it names none of its {rows} characters: give its dict.ltr.txt"]


# -- parts and configuration of a file


def _parts(content: Any, path: Path) -> _Parts:
    if not is_fairseq(content) and not (isinstance(content, dict) and "model" in content):
        found = type(content).__name__
        if isinstance(content, dict):
            found = ", ".join(map(str, list(content)[:4]))
        raise ArtefactError(
            f'{path}: not a checkpoint of fairseq or s3prl: expected the key "model" or '
            f'"model_weight", found {found}'
        )
    if "model_weight" in content:
        layout = "s3prl"
        stored = content["model_weight"]
        model = content.get("model_cfg")
        task = content.get("task_cfg")
    else:
        layout = "fairseq"
        stored = content["model"]
        cfg = plain(content.get("cfg")) or {}
        args = plain(content.get("args")) or {}  # files of 2021 and before
        model = task = args
        if isinstance(cfg, dict):
            model = cfg.get("model") or args
            task = cfg.get("task") or args
    model = _as_dict(model)
    task = _as_dict(task)
    name = model.get("_name") or model.get("arch") or "hubert"
    if name not in ("hubert", "hubert_ctc"):
        raise ArtefactError(
            f"{path}: holds a {name!r} network, expected fairseq's 'hubert' or 'hubert_ctc'; "
            "its architecture is another"
        )
    items = stored.items() if isinstance(stored, dict) else ()
    weights = {
        key: tensor for key, tensor in items if isinstance(key, str) and isinstance(tensor, Tensor)
    }
    preserved = content.get(PRESERVED)
    return _Parts(
        path=path,
        format=f"{layout} {'CTC' if name == 'hubert_ctc' else 'pretraining'}",
        weights=weights,
        model=model,
        task=task,
        dictionaries=stored_dictionaries(content),
        dictionary=None,
        preserved=preserved if isinstance(preserved, dict) else None,
    )


def _as_dict(value: Any) -> dict[str, Any]:
    value = plain(value)
    return {**value, "w2v_args": plain(value.get("w2v_args"))} if isinstance(value, dict) else {}


def _config(
    parts: _Parts, settings: dict[str, Any], weights: dict[str, Tensor], overrides: dict[str, Any]
) -> HubertConfig:
    """Our configuration from fairseq's settings; adds a projection to `weights` where fairseq
    leaves it out.
    """
    path = parts.path
    width = settings["encoder_embed_dim"]
    settings = {**settings, "final_dim": settings["final_dim"] or width}
    if settings["target_glu"]:
        raise ArtefactError(f"{path}: target_glu is set, which our network does not have")
    if settings["activation_fn"] not in ACTIVATIONS:
        raise ArtefactError(
            f"{path}: activation_fn is {settings['activation_fn']!r}, "
            f"expected one of {', '.join(ACTIVATIONS)}"
        )
    layers = conv_layers(str(settings["conv_feature_layers"]), path)
    channels = layers[-1][0]
    if "post_extract_proj.weight" not in weights and channels == width:
        # fairseq has no projection between equal widths.
        weights["post_extract_proj.weight"] = torch.eye(width)
        weights["post_extract_proj.bias"] = torch.zeros(width)
    layer_norm = settings["extractor_mode"] == "layer_norm"
    normalize = parts.task.get("normalize", parts.model.get("normalize"))
    fields = {
        "conv_dim": [layer[0] for layer in layers],
        "conv_kernel": [layer[1] for layer in layers],
        "conv_stride": [layer[2] for layer in layers],
        "feat_extract_norm": "layer" if layer_norm else "group",
        "normalize_waveform": normalize if isinstance(normalize, bool) else layer_norm,
        "hidden_act": ACTIVATIONS[settings["activation_fn"]],
        **{ours: settings[theirs] for ours, theirs in FIELDS.items()},
    }
    if parts.preserved is not None:
        # Here final_dim is the head's; the network's own value is in our config.json.
        del fields["projection_size"]
    return build_config(fields, preserved=parts.preserved, overrides=overrides, path=path)
