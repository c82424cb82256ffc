"""Export of fairseq and s3prl checkpoints."""

from __future__ import annotations

import pickle
import types
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from hubert_pretrain.errors import ArtefactError
from hubert_pretrain.files import replacing
from hubert_pretrain.frames import SAMPLE_RATE
from hubert_pretrain.interop.assemble import PRESERVED
from hubert_pretrain.interop.fairseq_dictionary import (
    BLANK_SWAP,
    SPECIAL_NAMES,
    SPECIAL_SYMBOLS,
    cluster_dictionary,
    cluster_rows,
)
from hubert_pretrain.interop.fairseq_reader import ACTIVATIONS, CTC_PREFIX, FIELDS
from hubert_pretrain.interop.tensor_names import FAIRSEQ_CTC, FAIRSEQ_HEAD, fairseq_rules, to_theirs
from hubert_pretrain.model.checkpoint import LoadedModel
from hubert_pretrain.model.config import HubertConfig


def export_fairseq(path: str | Path, loaded: LoadedModel) -> None:
    """Writes a pretraining checkpoint, or for a fine-tuned model a CTC one. Raises ArtefactError for
    what fairseq's HuBERT cannot compute.
    """
    if loaded.kind == "classify":
        raise ArtefactError(
            "fairseq has no HuBERT that classifies utterances; export to huggingface, torchaudio, s3prl or onnx"
        )
    model = model_settings(loaded)
    task = task_settings(loaded.model.config)
    weights = encoder_weights(loaded)
    dictionaries = [None]
    carried: dict[str, Any] = dict(loaded.config)
    fine_tuned = loaded.kind == "ctc"
    if fine_tuned:
        weights = {CTC_PREFIX + name: tensor for name, tensor in weights.items()}
        state, symbols, carried["rows"] = ctc_rows(loaded)
        weights |= to_theirs(state, FAIRSEQ_CTC)
        model = _ctc_settings(loaded, model, task)
        task = {**task, "fine_tuning": True, "labels": ["ltr"]}
        task_state: dict[str, Any] = {
            "target_dictionary": Dictionary(symbols),
            "dictionaries": dictionaries,
        }
    else:
        head, symbols_of = codebook_rows(loaded)
        weights |= head
        task_state = {
            "dictionaries": [Dictionary(symbols) for symbols in symbols_of] or dictionaries
        }
    content = {
        "args": None,
        "cfg": {
            "common": {},
            "task": task,
            "model": model,
            "criterion": {"_name": "ctc" if fine_tuned else "hubert"},
        },
        "model": weights,
        "criterion": None,
        "optimizer_history": [
            {"criterion_name": "", "optimizer_name": "", "lr_scheduler_state": {}, "num_updates": 0}
        ],
        "task_state": task_state,
        "extra_state": {"train_iterator": {"epoch": 1}},
        "last_optimizer_state": None,
        PRESERVED: carried,
    }
    save_pickle(Path(path), content)


# -- weights
# ----------------------------------------------------------------------------------------------------------------------


def encoder_weights(loaded: LoadedModel) -> dict[str, Tensor]:
    """The encoder under fairseq's names. Raises ArtefactError for a network that fairseq cannot
    build, naming the field.
    """
    config = loaded.model.config
    fixed = {
        "feat_proj_layer_norm": True,
        "feat_extract_activation": "gelu",
        "layer_norm_eps": 1e-5,
        "adapter_attn_dim": None,
    }
    for name, value in fixed.items():
        if getattr(config, name) != value:
            raise ArtefactError(
                f"fairseq's HuBERT has {name} {value!r} only, found {getattr(config, name)!r}; export to huggingface"
            )
    weights = to_theirs(loaded.model.state_dict(), fairseq_rules(config.feat_extract_norm))
    if config.conv_dim[-1] == config.hidden_size:
        projection = weights.pop("post_extract_proj.weight")
        bias = weights.pop("post_extract_proj.bias")
        if not torch.equal(projection, torch.eye(config.hidden_size)) or bias.any():
            found = f"{config.hidden_size} conv channels and hidden_size {config.hidden_size}"
            raise ArtefactError(
                f"fairseq's HuBERT has no projection between equal widths, found one ({found}); export to huggingface"
            )
    return weights


def codebook_rows(loaded: LoadedModel) -> tuple[dict[str, Tensor], list[list[str]]]:
    """The pretraining head under fairseq's names and the symbols of its rows, codebook by codebook;
    without a head a projection of zeros, which fairseq and s3prl expect, and no symbols."""
    config = loaded.model.config
    if not loaded.head_state or loaded.kind != "pretrain":
        zeros = torch.zeros(config.projection_size, config.hidden_size)
        return {"final_proj.weight": zeros, "final_proj.bias": zeros[:, 0].clone()}, []
    if "unit_embeddings" not in loaded.head_state:
        raise ArtefactError(
            "fairseq's HuBERT has no plain softmax head, only unit embeddings; export to huggingface or torchaudio"
        )
    counts = loaded.config["head"]["n_clusters"]
    counts = [counts] if isinstance(counts, int) else list(counts)
    origin = loaded.extra.get("fairseq", {})
    dictionaries = origin.get("dictionaries") or [cluster_dictionary(count) for count in counts]
    parts = loaded.head_state["unit_embeddings"].split(counts)
    special = origin.get("special_embeddings")
    before = (
        torch.tensor(special).split(SPECIAL_SYMBOLS)
        if special
        else [_unattractive(part) for part in parts]
    )
    rows = []
    for part, symbols, first in zip(parts, dictionaries, before, strict=True):
        places = torch.tensor(cluster_rows(symbols))
        rows += [first, torch.empty_like(part).index_copy(0, places, part)]
    return to_theirs(
        {**loaded.head_state, "unit_embeddings": torch.cat(rows)}, FAIRSEQ_HEAD
    ), dictionaries


def _unattractive(units: Tensor) -> Tensor:
    """Rows for the special symbols, which no frame ever is: opposite to the clusters, where they
    take the least of fairseq's softmax.
    """
    return (
        -torch.nn.functional.normalize(units, dim=-1)
        .mean(0, keepdim=True)
        .expand(SPECIAL_SYMBOLS, -1)
    )


def ctc_rows(loaded: LoadedModel) -> tuple[dict[str, Tensor], list[str], list[int]]:
    """The CTC head with a row for every symbol of a fairseq dictionary, the symbols, and of each
    of our rows its place among them.

    fairseq's dictionary begins with <s> (the blank), <pad>, </s>, <unk>. Those that our vocabulary
    lacks get a row that is never the highest.
    """
    vocabulary = [str(symbol) for symbol in loaded.extra.get("vocabulary") or ()]
    rows = loaded.head_state["linear.weight"].shape[0]
    if len(vocabulary) != rows or len(set(vocabulary)) != rows:
        raise ArtefactError(
            f'a CTC model must list one distinct symbol per row in extra["vocabulary"]: {rows} rows, {len(vocabulary)} symbols'
        )
    theirs = [BLANK_SWAP.get(symbol, symbol) for symbol in vocabulary]
    if theirs[0] != SPECIAL_NAMES[0]:
        raise ArtefactError(
            f"the vocabulary begins with {vocabulary[0]!r}, expected the blank {BLANK_SWAP[SPECIAL_NAMES[0]]!r}"
        )
    symbols = [*SPECIAL_NAMES, *(symbol for symbol in theirs if symbol not in SPECIAL_NAMES)]
    places = [symbols.index(symbol) for symbol in theirs]
    weight = loaded.head_state["linear.weight"]
    bias = loaded.head_state["linear.bias"]
    state = {
        "linear.weight": weight.new_zeros(len(symbols), weight.shape[1]).index_copy(
            0, torch.tensor(places), weight
        ),
        "linear.bias": bias.new_full((len(symbols),), -1e4).index_copy(
            0, torch.tensor(places), bias
        ),
    }
    return state, symbols, places


# -- configuration
# ----------------------------------------------------------------------------------------------------------------


def model_settings(loaded: LoadedModel) -> dict[str, Any]:
    """The fields of fairseq's HubertConfig. Mask settings, which belong to a training and not to a
    network, are those of the paper.
    """
    config = loaded.model.config
    activation = {ours: theirs for theirs, ours in reversed(ACTIVATIONS.items())}.get(
        config.hidden_act
    )
    if activation is None:
        raise ArtefactError(
            f"fairseq has no hidden_act {config.hidden_act!r}, expected one of {', '.join(ACTIVATIONS.values())}"
        )
    head = loaded.config.get("head") or {}
    layers = zip(config.conv_dim, config.conv_kernel, config.conv_stride, strict=True)
    return {
        "_name": "hubert",
        "label_rate": config.grid.frames_per_second,
        "extractor_mode": "layer_norm" if config.feat_extract_norm == "layer" else "default",
        "conv_feature_layers": str([tuple(layer) for layer in layers]),
        "activation_fn": activation,
        "logit_temp": head.get("temperature", 0.1) if loaded.kind == "pretrain" else 0.1,
        "untie_final_proj": loaded.kind == "pretrain" and not head.get("tie_projections", False),
        **{"mask_length": 10, "mask_prob": 0.8, "mask_selection": "static", "mask_other": 0.0},
        **{theirs: getattr(config, ours) for ours, theirs in FIELDS.items()},
        "final_dim": head.get("projection_size", config.projection_size)
        if loaded.kind == "pretrain"
        else config.projection_size,
    }


def task_settings(config: HubertConfig) -> dict[str, Any]:
    """The fields of fairseq's HubertPretrainingConfig."""
    return {
        "_name": "hubert_pretraining",
        **{
            "data": "",
            "labels": ["km"],
            "label_rate": config.grid.frames_per_second,
            "fine_tuning": False,
        },
        **{"sample_rate": SAMPLE_RATE, "normalize": config.normalize_waveform},
    }


def _ctc_settings(
    loaded: LoadedModel, model: dict[str, Any], task: dict[str, Any]
) -> dict[str, Any]:
    """The fields of fairseq's HubertCtcConfig, with the pretraining's inside."""
    same = (
        "dropout",
        "attention_dropout",
        "activation_dropout",
        "dropout_input",
        "feature_grad_mult",
        "mask_length",
        "mask_prob",
    )
    return {
        **{
            "_name": "hubert_ctc",
            "w2v_path": "",
            "w2v_args": {"model": model, "task": task},
            "data": "",
        },
        **{
            "apply_mask": True,
            "normalize": task["normalize"],
            "layerdrop": model["encoder_layerdrop"],
        },
        **{
            "final_dropout": loaded.config["head"]["dropout"],
            "freeze_finetune_updates": 0,
            "autoregressive": False,
        },
        **{name: model[name] for name in same},
    }


# -- pickles of classes that are not installed
# ----------------------------------------------------------------------------------------


class Dictionary:
    """Stands for fairseq's Dictionary of these symbols, and is written as one."""

    def __init__(self, symbols: list[str]) -> None:
        names = dict(zip(("bos", "pad", "eos", "unk"), SPECIAL_NAMES, strict=True))
        self.__dict__ |= {f"{key}_word": name for key, name in names.items()}
        self.__dict__ |= {f"{key}_index": symbols.index(name) for key, name in names.items()}
        self.symbols = symbols
        self.count = [1] * len(symbols)
        self.nspecial = SPECIAL_SYMBOLS
        self.indices = {symbol: index for index, symbol in enumerate(symbols)}


_PYTHON_PICKLER: Any = pickle._Pickler  # type: ignore[attr-defined]  # the one whose way of naming a class can be changed


class _Pickler(_PYTHON_PICKLER):
    def save_global(self, obj: Any, name: str | None = None) -> None:
        if obj is not Dictionary:
            return super().save_global(obj, name)
        self.write(pickle.GLOBAL + b"fairseq.data.dictionary\nDictionary\n")
        self.memoize(obj)

    dispatch: ClassVar[dict[Any, Any]] = {**_PYTHON_PICKLER.dispatch, type: save_global}


def save_pickle(path: Path, content: dict[str, Any]) -> None:
    """`torch.save`, atomically, with `Dictionary` under fairseq's name, and tensors without the
    memory that they are views of.
    """
    with replacing(path) as temporary:
        torch.save(
            _apart(content),
            temporary,
            pickle_module=types.SimpleNamespace(Pickler=_Pickler, __name__="pickle"),
        )


def _apart(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().cpu().clone()
    return {key: _apart(item) for key, item in value.items()} if isinstance(value, dict) else value


def export_s3prl(path: str | Path, loaded: LoadedModel) -> None:
    """Writes the four keys that s3prl wants. Raises ArtefactError for what fairseq's HuBERT, which
    it has a copy of, cannot compute.
    """
    carried: dict[str, Any] = dict(loaded.config)
    plain_head = loaded.kind == "pretrain" and "unit_embeddings" not in loaded.head_state
    bare = (
        LoadedModel(loaded.model, "pretrain", {}, {**loaded.config, "head": None})
        if plain_head
        else loaded
    )
    head, dictionaries = codebook_rows(bare)
    if not dictionaries and loaded.head_state:
        carried["head_state"] = loaded.head_state
    content = {
        "task_cfg": task_settings(loaded.model.config),
        "model_cfg": model_settings(loaded),
        "model_weight": {**encoder_weights(loaded), **head},
        "dictionaries_symbols": dictionaries if dictionaries else [None],
        PRESERVED: carried,
    }
    save_pickle(Path(path), content)
