"""Reads fairseq's HuBERT pretraining checkpoints (`*.pt`) without fairseq, and without running anything that the file asks for.

Such a file is a pickle: a program that may name any function of any installed package. Here every name but those of plain containers and
of tensors becomes an inert object that remembers what it was given, so a hostile file builds a harmless heap of them.
"""

from __future__ import annotations

import ast
import collections
import dataclasses
import pickle
import types
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from hubert_pretrain.errors import ArtefactError
from hubert_pretrain.model.checkpoint import LoadedModel, load_strictly
from hubert_pretrain.model.config import HubertConfig
from hubert_pretrain.model.heads import CodebookHead
from hubert_pretrain.model.hubert import Hubert
from hubert_pretrain.model.naming import FAIRSEQ_HEAD, fairseq_rules, left_over, rename_in

SPECIAL_SYMBOLS = 4
"""Rows that fairseq's dictionary puts before the clusters (<s>, <pad>, </s>, <unk>); they are never a target."""

_FIELDS = {
    "conv_bias": "conv_bias",
    "conv_gradient_scale": "feature_grad_mult",
    "feat_proj_dropout": "dropout_input",
    "hidden_size": "encoder_embed_dim",
    "num_hidden_layers": "encoder_layers",
    "num_attention_heads": "encoder_attention_heads",
    "intermediate_size": "encoder_ffn_embed_dim",
    "hidden_act": "activation_fn",
    "hidden_dropout": "dropout",
    "attention_dropout": "attention_dropout",
    "activation_dropout": "activation_dropout",
    "layerdrop": "encoder_layerdrop",
    "do_stable_layer_norm": "layer_norm_first",
    "num_conv_pos_embeddings": "conv_pos",
    "num_conv_pos_embedding_groups": "conv_pos_groups",
    "projection_size": "final_dim",
}
"""Our field -> fairseq's."""
_DEFAULTS: dict[str, Any] = {
    **{"extractor_mode": "default", "conv_feature_layers": "[(512,10,5)] + [(512,3,2)] * 4 + [(512,2,2)] * 2", "conv_bias": False},
    **{"feature_grad_mult": 1.0, "activation_fn": "gelu", "dropout_input": 0.0, "encoder_embed_dim": 768, "encoder_layers": 12},
    **{"encoder_attention_heads": 12, "encoder_ffn_embed_dim": 3072, "dropout": 0.1, "attention_dropout": 0.1, "activation_dropout": 0.0},
    **{"encoder_layerdrop": 0.0, "layer_norm_first": False, "conv_pos": 128, "conv_pos_groups": 16, "final_dim": 0, "logit_temp": 0.1},
}
"""fairseq's defaults (its HubertConfig), for fields that an older file does not have."""


def load_fairseq(path: str | Path) -> LoadedModel:
    """A pretraining checkpoint as a network and its CodebookHead over the clusters.

    fairseq's rows for its four special symbols are kept in `extra["fairseq"]["special_embeddings"]`; its softmax runs over them too.
    Raises ArtefactError when the file is damaged, or is no HuBERT that was pretrained with one codebook.
    """
    path = Path(path)
    checkpoint = read_pickle(path)
    weights = _tensors(checkpoint)
    if "label_embs_concat" not in weights:
        found = ", ".join(list(weights)[:2]) or "no tensors"
        raise ArtefactError(
            f'{path}: not a fairseq HuBERT pretraining checkpoint: no "label_embs_concat" among its weights (found {found})'
        )
    settings = _model_settings(checkpoint)
    config = _config(settings, checkpoint, weights, path)
    model, rules = Hubert(config), fairseq_rules(config.feat_extract_norm)
    load_strictly(model, rename_in(weights, model.state_dict(), rules, str(path)), path)
    special = weights["label_embs_concat"][:SPECIAL_SYMBOLS]
    n_clusters = len(weights["label_embs_concat"]) - SPECIAL_SYMBOLS
    head = CodebookHead(config.hidden_size, config.projection_size, n_clusters, float(settings["logit_temp"]))
    state = rename_in(weights, head.state_dict(), FAIRSEQ_HEAD, str(path))
    state["unit_embeddings"] = state["unit_embeddings"][SPECIAL_SYMBOLS:]
    load_strictly(head, state, path)
    unknown = set(left_over(weights, model.state_dict(), rules)) - {"final_proj.weight", "final_proj.bias", "label_embs_concat"}
    if unknown:
        raise ArtefactError(
            f"{path}: {len(unknown)} weights have no place in our network, first {min(unknown)}; its architecture is another"
        )
    extra = {"fairseq": {"special_embeddings": special.tolist()}}
    description = {"model": dataclasses.asdict(config), "kind": head.kind, "head": head.settings, "extra": extra}
    return LoadedModel(model=model.eval(), kind=head.kind, head_state=head.state_dict(), config=description)


def _tensors(checkpoint: Any) -> dict[str, Tensor]:
    """The weights in a checkpoint, without what else a file put there."""
    stored = checkpoint.get("model") if isinstance(checkpoint, dict) else None
    items = stored.items() if isinstance(stored, dict) else ()
    return {name: tensor for name, tensor in items if isinstance(name, str) and isinstance(tensor, Tensor)}


# -- configuration ----------------------------------------------------------------------------------------------------------------


def _model_settings(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """fairseq's model configuration: `cfg.model` of newer files, `args` of older ones."""
    stored = plain(checkpoint.get("cfg")) or {}
    found = stored.get("model") if isinstance(stored, dict) else None
    found = found or plain(checkpoint.get("args")) or {}
    return {**_DEFAULTS, **(found if isinstance(found, dict) else {})}


def _config(settings: dict[str, Any], checkpoint: dict[str, Any], weights: dict[str, Tensor], path: Path) -> HubertConfig:
    projection = weights.get("final_proj.weight")
    settings = {**settings, "final_dim": settings["final_dim"] or settings["encoder_embed_dim"]}
    if projection is None or projection.shape[0] != settings["final_dim"]:
        raise ArtefactError(f"{path}: a head over several codebooks cannot be read; expected one projection to {settings['final_dim']}")
    for name in ("conv_pos_batch_norm", "target_glu"):
        if settings.get(name):
            raise ArtefactError(f"{path}: {name} is set, which our network does not have")
    layers = conv_layers(str(settings["conv_feature_layers"]), path)
    task = plain(checkpoint.get("cfg")) or {}
    return HubertConfig(
        conv_dim=[layer[0] for layer in layers],
        conv_kernel=[layer[1] for layer in layers],
        conv_stride=[layer[2] for layer in layers],
        feat_extract_norm="layer" if settings["extractor_mode"] == "layer_norm" else "group",
        normalize_waveform=bool((task.get("task") or {}).get("normalize", settings["extractor_mode"] == "layer_norm")),
        **{ours: settings[theirs] for ours, theirs in _FIELDS.items()},
    )


def conv_layers(expression: str, path: Path) -> list[tuple[int, int, int]]:
    """`"[(512,10,5)] + [(512,3,2)] * 2"` -> [(512, 10, 5), (512, 3, 2), (512, 3, 2)]: (width, kernel, stride), without evaluating code."""
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


# -- reading a pickle without running it --------------------------------------------------------------------------------------------


class Inert:
    """Stands for any object of a class that we do not trust: it remembers its name and what it was given, and does nothing."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Inert:  # noqa: D102
        instance = super().__new__(cls)
        instance.__dict__["arguments"] = args
        return instance

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        self.__dict__.update(state if isinstance(state, dict) else {"state": state})

    def __setitem__(self, key: Any, value: Any) -> None:
        self.__dict__.setdefault("items", {})[key] = value

    def append(self, value: Any) -> None:
        """Called for pickled subclasses of list."""
        self.__dict__.setdefault("values", []).append(value)


def read_pickle(path: Path) -> Any:
    """The content of a file of `torch.save`: containers, numbers and tensors as they are, everything else as `Inert`.

    Raises ArtefactError when it is missing, truncated or of another kind.
    """
    try:
        return torch.load(path, map_location="cpu", pickle_module=_INERT_PICKLE, weights_only=False)
    except (
        OSError,
        EOFError,
        RuntimeError,
        ValueError,
        TypeError,
        KeyError,
        AttributeError,
        pickle.UnpicklingError,
        zipfile.BadZipFile,
    ) as error:
        raise ArtefactError(f"{path}: cannot be read as a PyTorch checkpoint ({type(error).__name__}: {error})".split("\n")[0]) from error


def plain(value: Any) -> Any:
    """OmegaConf nodes and argparse namespaces, read as `Inert`, back to dicts, lists and values."""
    if isinstance(value, Inert):
        state = vars(value)
        for key in ("_content", "_val"):
            if key in state:
                return plain(state[key])
        return {key: plain(item) for key, item in state.items() if key != "arguments"}
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list) else value


_BUILTINS: dict[str, Any] = {
    kind.__name__: kind for kind in (dict, list, set, frozenset, tuple, int, float, complex, bool, str, bytes, bytearray)
} | {"long": int, "unicode": str}
_TRUSTED: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("collections", "defaultdict"): collections.defaultdict,
    ("torch", "Size"): torch.Size,
    ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,
    ("torch._utils", "_rebuild_parameter"): lambda data, requires_grad, hooks: data,
    **{("torch", name): getattr(torch, name) for name in ("float32", "float16", "bfloat16", "float64", "int64", "int32", "bool")},
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if module in ("builtins", "__builtin__") and name in _BUILTINS:
            return _BUILTINS[name]
        return _TRUSTED.get((module, name)) or type(f"{module}.{name}", (Inert,), {})


def _load(file: BinaryIO, **kwargs: Any) -> Any:
    return _Unpickler(file, **kwargs).load()


_INERT_PICKLE = types.SimpleNamespace(Unpickler=_Unpickler, load=_load, UnpicklingError=pickle.UnpicklingError, __name__="inert pickle")
