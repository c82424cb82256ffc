"""Reads fairseq's HuBERT checkpoints (`*.pt`), pretraining and CTC, and those that s3prl made of
them, without fairseq and without running anything that the file asks for (see pickles.py).

| file | weights | configuration | dictionaries |
|---|---|---|---|
| fairseq pretraining | `model` | `cfg.model` (old: `args`), `cfg.task` | `task_state.dictionaries`
|
| fairseq CTC | `model`: `w2v_encoder.w2v_model.*` | `cfg.model`, in it `w2v_args` |
`task_state.target_dictionary` |
| s3prl | `model_weight` | `model_cfg`, `task_cfg` | `dictionaries_symbols` |
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
    assemble,
    build_config,
    fitting,
    preserved_extra,
)
from hubert_pretrain.interop.fairseq_dictionary import (
    BLANK_SWAP,
    SPECIAL_SYMBOLS,
    cluster_dictionary,
    cluster_rows,
    read_dictionary,
    stored_dictionaries,
)
from hubert_pretrain.interop.pickles import plain, read_pickle
from hubert_pretrain.interop.tensor_names import FAIRSEQ_HEAD, fairseq_rules, to_ours
from hubert_pretrain.model.checkpoint import LoadedModel
from hubert_pretrain.model.config import HubertConfig
from hubert_pretrain.model.heads import HEADS

CTC_PREFIX = "w2v_encoder.w2v_model."
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
"""Our field -> fairseq's."""
ACTIVATIONS = {
    "gelu": "gelu",
    "relu": "relu",
    "gelu_accurate": "gelu_new",
    "gelu_fast": "gelu_new",
    "swish": "silu",
}
"""fairseq's name -> ours."""
_DEFAULTS: dict[str, Any] = {
    **{
        "extractor_mode": "default",
        "conv_feature_layers": "[(512,10,5)] + [(512,3,2)] * 4 + [(512,2,2)] * 2",
        "conv_bias": False,
    },
    **{
        "feature_grad_mult": 1.0,
        "activation_fn": "gelu",
        "dropout_input": 0.0,
        "encoder_embed_dim": 768,
        "encoder_layers": 12,
    },
    **{
        "encoder_attention_heads": 12,
        "encoder_ffn_embed_dim": 3072,
        "dropout": 0.1,
        "attention_dropout": 0.1,
        "activation_dropout": 0.0,
    },
    **{
        "encoder_layerdrop": 0.0,
        "layer_norm_first": False,
        "conv_pos": 128,
        "conv_pos_groups": 16,
        "final_dim": 0,
        "logit_temp": 0.1,
    },
    **{"conv_pos_batch_norm": False, "target_glu": False},
}
"""fairseq's defaults (its HubertConfig), for fields that an older file does not have."""
_FINE_TUNED = {
    **{
        name: name
        for name in (
            "dropout",
            "attention_dropout",
            "activation_dropout",
            "dropout_input",
            "feature_grad_mult",
        )
    },
    "layerdrop": "encoder_layerdrop",
}
"""Values that a fine-tuning (HubertAsrConfig) sets anew -> their names in the pretraining's
configuration.
"""


@dataclass
class _File:
    """The parts of a file, wherever its layout keeps them."""

    path: Path
    format: str
    weights: dict[str, Tensor]
    model: dict[str, Any]
    task: dict[str, Any]
    dictionaries: list[list[str]] | None
    carried: dict[str, Any] | None


def load_fairseq(
    path: str | Path, *, dictionary: str | Path | None = None, content: Any = None, **overrides: Any
) -> LoadedModel:
    """A checkpoint of fairseq or s3prl as a network and its head: CodebookHead over the clusters,
    or LetterHead.

    dictionary: `dict.km.txt` or `dict.ltr.txt`, for a file that does not hold its own. content:
    what `read_pickle` gave, if it was read. fairseq's rows for its four special symbols are kept in
    `extra["fairseq"]["special_embeddings"]`; its softmax runs over them too.
    Raises ArtefactError when the file is damaged, or is no HuBERT that was pretrained with one
    codebook or fine-tuned by CTC.
    """
    path = Path(path)
    file = _parts(read_pickle(path) if content is None else content, path)
    if dictionary is not None:
        file.dictionaries = [read_dictionary(dictionary)]
    fine_tuned = any(name.startswith(CTC_PREFIX) for name in file.weights)
    return assemble(
        _ctc_vocabulary(file, overrides) if fine_tuned else _pretrained(file, overrides)
    )


def is_fairseq(content: Any) -> bool:
    """Whether this is the content of a checkpoint of fairseq or s3prl, of any architecture."""
    return isinstance(content, dict) and (
        "model_weight" in content
        or ("model" in content and ("cfg" in content or "args" in content))
    )


# -- the two kinds
# ----------------------------------------------------------------------------------------------------------------


def _pretrained(file: _File, overrides: dict[str, Any]) -> ForeignCheckpoint:
    weights = dict(file.weights)
    carried = preserved_extra(file.carried)
    head_weights = {name: weights.pop(name) for name in HEAD_NAMES if name in weights}
    if "mask_emb" not in weights or not head_weights:
        found = ", ".join(list(file.weights)[:2]) or "no tensors"
        wanted = "label_embs_concat" if "mask_emb" in weights else "mask_emb"
        raise ArtefactError(
            f'{file.path}: not a fairseq HuBERT checkpoint: no "{wanted}" among its weights (found {found})'
        )
    config = _config(file, {**_DEFAULTS, **file.model}, weights, overrides)
    source = ForeignCheckpoint(
        file.path,
        file.format,
        "pretrain",
        weights,
        fairseq_rules(config.feat_extract_norm),
        config,
        extra=carried or {},
    )
    if set(HEAD_NAMES) <= head_weights.keys():
        _codebooks(source, file, head_weights)
    else:  # an encoder alone
        source.ignored = list(head_weights)
        source.weights |= head_weights
        _carry_head(source, file.carried)
    return source


def _codebooks(source: ForeignCheckpoint, file: _File, weights: dict[str, Tensor]) -> None:
    """The CodebookHead, without the rows of special symbols, each cluster in the row of its
    number.
    """
    embeddings = weights["label_embs_concat"]
    path = file.path
    dictionaries = file.dictionaries or [cluster_dictionary(len(embeddings) - SPECIAL_SYMBOLS)]
    fitting(
        [f"{index} {symbol}" for index, symbols in enumerate(dictionaries) for symbol in symbols],
        len(embeddings),
        path,
        "dictionary",
    )
    sizes = [len(symbols) for symbols in dictionaries]
    parts = embeddings.split(sizes)
    units = [
        part[SPECIAL_SYMBOLS:][torch.tensor(cluster_rows(symbols))]
        for part, symbols in zip(parts, dictionaries, strict=True)
    ]
    rows = len(weights["final_proj.weight"])
    width = embeddings.shape[1]
    if rows not in (width, width * len(sizes)):
        expected = f"{width}, or that for each of {len(sizes)} codebooks"
        raise ArtefactError(
            f"{path}: final_proj has {rows} rows for unit embeddings of width {width}, expected {expected}"
        )
    counts = [size - SPECIAL_SYMBOLS for size in sizes]
    source.head = {
        "hidden_size": source.config.hidden_size,
        "projection_size": width,
        "n_clusters": counts if len(counts) > 1 else counts[0],
        "temperature": float(file.model.get("logit_temp", _DEFAULTS["logit_temp"])),
        "tie_projections": len(sizes) > 1 and rows == width,
    }
    theirs = {**weights, "label_embs_concat": torch.cat(units)}
    source.head_state = to_ours(
        theirs, ("projection.weight", "projection.bias", "unit_embeddings"), FAIRSEQ_HEAD, str(path)
    )
    source.head_names = list(weights)
    if preserved_extra(file.carried) is None:
        special = torch.cat([part[:SPECIAL_SYMBOLS] for part in parts])
        source.extra = {"fairseq": {"special_embeddings": special.float().tolist()}}
        if dictionaries != [cluster_dictionary(count) for count in counts]:
            source.extra["fairseq"]["dictionaries"] = dictionaries


def _ctc_vocabulary(file: _File, overrides: dict[str, Any]) -> ForeignCheckpoint:
    weights = {
        name.removeprefix(CTC_PREFIX): tensor
        for name, tensor in file.weights.items()
        if name.startswith(CTC_PREFIX)
    }
    others = {
        name: tensor for name, tensor in file.weights.items() if not name.startswith(CTC_PREFIX)
    }
    proj = {
        ours: others.pop(f"w2v_encoder.proj.{ours.removeprefix('linear.')}", None)
        for ours in ("linear.weight", "linear.bias")
    }
    missing = [name for name, tensor in proj.items() if tensor is None]
    if missing or others:
        found = "no w2v_encoder.proj" if missing else min(others)
        raise ArtefactError(
            f"{file.path}: not a fairseq HuBERT CTC checkpoint: found {found}; expected w2v_encoder.w2v_model and w2v_encoder.proj"
        )
    inner = file.model.get("w2v_args") or {}
    inner = inner.get("model", inner) if isinstance(inner, dict) else {}
    anew = {theirs: file.model[name] for name, theirs in _FINE_TUNED.items() if name in file.model}
    config = _config(file, {**_DEFAULTS, **inner, **anew}, weights, overrides)
    head_state = {name: tensor for name, tensor in proj.items() if tensor is not None}
    rows = head_state["linear.weight"].shape[0]
    carried = preserved_extra(file.carried)
    extra = carried or {}
    notes = []
    if carried is not None and (
        taken := (file.carried or {}).get("rows")
    ):  # rows that our export added for fairseq's sake
        head_state = {name: tensor[torch.tensor(taken)] for name, tensor in head_state.items()}
        rows = len(taken)
    elif file.dictionaries is not None:
        extra = {
            "vocabulary": [
                BLANK_SWAP.get(symbol, symbol)
                for symbol in fitting(file.dictionaries[0], rows, file.path, "dictionary")
            ]
        }
    else:
        notes = [f"it names none of its {rows} characters: give its dict.ltr.txt"]
    return ForeignCheckpoint(
        file.path,
        file.format,
        "ctc",
        weights,
        fairseq_rules(config.feat_extract_norm),
        config,
        head={
            "hidden_size": config.hidden_size,
            "vocabulary_size": rows,
            "dropout": float(file.model.get("final_dropout") or 0.0),
        },
        head_state=head_state,
        head_names=["w2v_encoder.proj.weight", "w2v_encoder.proj.bias"],
        ignored=[name for name in HEAD_NAMES if name in weights],
        extra=extra,
        notes=notes,
    )


def _carry_head(source: ForeignCheckpoint, carried: dict[str, Any] | None) -> None:
    """Restores a head that our export had to put beside the weights, as it does for s3prl."""
    if (
        isinstance(carried, dict)
        and isinstance(carried.get("head_state"), dict)
        and carried.get("kind") in HEADS
    ):
        source.kind = carried["kind"]
        source.head = carried.get("head")
        source.head_state = {
            name: tensor
            for name, tensor in carried["head_state"].items()
            if isinstance(tensor, Tensor)
        }
        source.head_names = [f"{PRESERVED}.head_state.{name}" for name in source.head_state]


# -- the parts of a file
# --------------------------------------------------------------------------------------------------------------


def _parts(content: Any, path: Path) -> _File:
    if not is_fairseq(content) and not (isinstance(content, dict) and "model" in content):
        found = (
            ", ".join(map(str, list(content)[:4]))
            if isinstance(content, dict)
            else type(content).__name__
        )
        raise ArtefactError(
            f'{path}: not a checkpoint of fairseq or s3prl: expected the key "model" or "model_weight", found {found}'
        )
    if "model_weight" in content:
        model = content.get("model_cfg")
        task = content.get("task_cfg")
        stored = content["model_weight"]
        layout = "s3prl"
    else:
        cfg = plain(content.get("cfg")) or {}
        args = plain(content.get("args")) or {}
        model, task = (
            (cfg.get("model") or args, cfg.get("task") or args)
            if isinstance(cfg, dict)
            else (args, args)
        )
        stored = content["model"]
        layout = "fairseq"
    model = _dict(model)
    task = _dict(task)
    carried = content.get(PRESERVED)
    name = model.get("_name") or model.get("arch") or "hubert"
    if name not in ("hubert", "hubert_ctc"):
        raise ArtefactError(
            f"{path}: holds a {name!r} network, expected fairseq's 'hubert' or 'hubert_ctc'; its architecture is another"
        )
    items = stored.items() if isinstance(stored, dict) else ()
    weights = {
        key: tensor for key, tensor in items if isinstance(key, str) and isinstance(tensor, Tensor)
    }
    kind = "CTC" if name == "hubert_ctc" else "pretraining"
    carried = carried if isinstance(carried, dict) else None
    return _File(
        path, f"{layout} {kind}", weights, model, task, stored_dictionaries(content), carried
    )


def _dict(value: Any) -> dict[str, Any]:
    value = plain(value)
    return {**value, "w2v_args": plain(value.get("w2v_args"))} if isinstance(value, dict) else {}


def _config(
    file: _File, settings: dict[str, Any], weights: dict[str, Tensor], overrides: dict[str, Any]
) -> HubertConfig:
    path = file.path
    settings = {**settings, "final_dim": settings["final_dim"] or settings["encoder_embed_dim"]}
    if settings["target_glu"]:
        raise ArtefactError(f"{path}: target_glu is set, which our network does not have")
    if settings["activation_fn"] not in ACTIVATIONS:
        raise ArtefactError(
            f"{path}: activation_fn is {settings['activation_fn']!r}, expected one of {', '.join(ACTIVATIONS)}"
        )
    layers = conv_layers(str(settings["conv_feature_layers"]), path)
    if "post_extract_proj.weight" not in weights and layers[-1][0] == settings["encoder_embed_dim"]:
        weights["post_extract_proj.weight"] = torch.eye(
            layers[-1][0]
        )  # fairseq leaves it out where it would change no width
        weights["post_extract_proj.bias"] = torch.zeros(layers[-1][0])
    normalize = file.task.get("normalize", file.model.get("normalize"))
    fields = {
        "conv_dim": [layer[0] for layer in layers],
        "conv_kernel": [layer[1] for layer in layers],
        "conv_stride": [layer[2] for layer in layers],
        "feat_extract_norm": "layer" if settings["extractor_mode"] == "layer_norm" else "group",
        "normalize_waveform": normalize
        if isinstance(normalize, bool)
        else settings["extractor_mode"] == "layer_norm",
        "hidden_act": ACTIVATIONS[settings["activation_fn"]],
        **{ours: settings[theirs] for ours, theirs in FIELDS.items()},
    }
    if file.carried is not None:
        del fields[
            "projection_size"
        ]  # of the head that was meant for the network, which need not be the one it has
    return build_config(fields, carried=file.carried, overrides=overrides, path=path)


def conv_layers(expression: str, path: Path) -> list[tuple[int, int, int]]:
    """`"[(512,10,5)] + [(512,3,2)] * 2"` -> [(512, 10, 5), (512, 3, 2), (512, 3, 2)]: (width,
    kernel, stride), without evaluating code.
    """
    try:
        value = _list_of(ast.parse(expression.strip(), mode="eval").body)
        return [(int(width), int(kernel), int(stride)) for width, kernel, stride in value]
    except (SyntaxError, ValueError, TypeError) as error:
        raise ArtefactError(
            f"{path}: conv_feature_layers is {expression[:80]!r}; expected a list such as [(512,10,5)] + [(512,3,2)] * 4"
        ) from error


def _list_of(node: ast.expr) -> list[tuple[int, int, int]]:
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return _list_of(node.left) + _list_of(node.right)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult):
        return _list_of(node.left) * min(100, int(ast.literal_eval(node.right)))
    return list(ast.literal_eval(node))
