"""Checkpoints of fairseq and s3prl, written without either.

Both files keep our config.json under the key `PRESERVED`, so that reading them again loses nothing.
"""

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
from hubert_pretrain.interop.tensor_names import (
    FAIRSEQ_CTC,
    FAIRSEQ_HEAD,
    fairseq_key_map,
    to_theirs,
)
from hubert_pretrain.interop.transformers_reader import EXTRA_KEY
from hubert_pretrain.model.checkpoint import LoadedModel
from hubert_pretrain.model.config import HubertConfig, SpanMask
from hubert_pretrain.model.export_limits import faults_of_export
from hubert_pretrain.model.heads import CodebookHead, TaskHead
from hubert_pretrain.model.spec_augment import SpecAugment


def export_fairseq(path: str | Path, loaded: LoadedModel) -> None:
    """Writes a pretraining checkpoint, or a CTC checkpoint of a model with a CTC head.

    Raises ArtefactError for a network that fairseq's HuBERT cannot compute.
    """
    part = _part_of(loaded)
    if not part:
        raise ArtefactError(
            f"fairseq has no HuBERT with a head of kind {loaded.kind!r} as this one; "
            "export to huggingface, torchaudio, s3prl or onnx"
        )
    model = model_settings(loaded)
    task = task_settings(loaded.model.config)
    weights = encoder_weights(loaded)
    preserved: dict[str, Any] = dict(loaded.config)
    if part == "hubert_ctc":
        state, symbols, preserved["rows"] = ctc_rows(loaded)
        weights = {CTC_PREFIX + name: tensor for name, tensor in weights.items()}
        weights |= to_theirs(state, FAIRSEQ_CTC)
        model = _ctc_settings(loaded, model, task)
        task = {**task, "fine_tuning": True, "labels": ["ltr"]}
        criterion = "ctc"
        task_state: dict[str, Any] = {
            "target_dictionary": Dictionary(symbols),
            "dictionaries": [None],
        }
    else:
        head, dictionaries = codebook_rows(loaded)
        weights |= head
        criterion = "hubert"
        task_state = {"dictionaries": [Dictionary(each) for each in dictionaries] or [None]}
    content = {
        "args": None,
        "cfg": {
            "common": {},
            "task": task,
            "model": model,
            "criterion": {"_name": criterion},
        },
        "model": weights,
        "criterion": None,
        "optimizer_history": [
            {"criterion_name": "", "optimizer_name": "", "lr_scheduler_state": {}, "num_updates": 0}
        ],
        "task_state": task_state,
        "extra_state": {"train_iterator": {"epoch": 1}},
        "last_optimizer_state": None,
        PRESERVED: preserved,
    }
    save_pickle(Path(path), content)


def export_s3prl(path: str | Path, loaded: LoadedModel) -> None:
    """Writes the four keys that s3prl reads; a head without a key there is preserved beside them.

    Raises ArtefactError for a network that s3prl's copy of fairseq's HuBERT cannot compute.
    """
    preserved: dict[str, Any] = dict(loaded.config)
    head_here = loaded.build_head() if loaded.head_state else None
    without_head = LoadedModel(loaded.model, CodebookHead.kind, {}, {**loaded.config, "head": None})
    head, dictionaries = codebook_rows(
        loaded if isinstance(head_here, CodebookHead) else without_head
    )
    symbols: list[Any] = [*dictionaries] or [None]
    if not dictionaries and loaded.head_state:
        preserved["head_state"] = loaded.head_state
    content = {
        "task_cfg": task_settings(loaded.model.config),
        "model_cfg": model_settings(loaded),
        "model_weight": {**encoder_weights(loaded), **head},
        "dictionaries_symbols": symbols,
        PRESERVED: preserved,
    }
    save_pickle(Path(path), content)


# -- weights


def _part_of(loaded: LoadedModel) -> str:
    """The model of fairseq that holds a network with its head, as the head states; "" for none."""
    return loaded.build_head().places.get("fairseq", "") if loaded.head_state else "hubert"


def encoder_weights(loaded: LoadedModel) -> dict[str, Tensor]:
    """The encoder's tensors under fairseq's names.

    Raises ArtefactError for a network that fairseq cannot build, naming the field.
    """
    config = loaded.model.config
    if faults := faults_of_export("fairseq", config):
        raise ArtefactError("; ".join(faults))
    weights = to_theirs(loaded.model.state_dict(), fairseq_key_map(config.feat_extract_norm))
    if config.conv_dim[-1] == config.hidden_size:
        projection = weights.pop("post_extract_proj.weight")
        bias = weights.pop("post_extract_proj.bias")
        if not torch.equal(projection, torch.eye(config.hidden_size)) or bias.any():
            raise ArtefactError(
                "fairseq's HuBERT has no projection between equal widths, found one "
                f"({config.hidden_size} conv channels and hidden_size {config.hidden_size}); "
                "export to huggingface"
            )
    return weights


def codebook_rows(loaded: LoadedModel) -> tuple[dict[str, Tensor], list[list[str]]]:
    """The CodebookHead under fairseq's names, with rows of special symbols, and the symbols of all
    rows, one list per codebook.

    Without a pretraining head: a projection of zeros, which fairseq and s3prl expect, and no lists.
    """
    config = loaded.model.config
    if not loaded.head_state or isinstance(loaded.build_head(), TaskHead):
        zeros = torch.zeros(config.projection_size, config.hidden_size)
        return {"final_proj.weight": zeros, "final_proj.bias": zeros[:, 0].clone()}, []
    if "unit_embeddings" not in loaded.head_state:
        raise ArtefactError(
            "fairseq's HuBERT has no plain softmax head, only unit embeddings; "
            "export to huggingface or torchaudio"
        )
    counts = loaded.config["head"]["n_clusters"]
    counts = [counts] if isinstance(counts, int) else list(counts)
    blocks = loaded.head_state["unit_embeddings"].split(counts)  # one per codebook: (K, d)
    origin = loaded.extra.get("fairseq", {})
    dictionaries = origin.get("dictionaries") or [cluster_dictionary(count) for count in counts]
    if origin.get("special_embeddings"):
        special = torch.tensor(origin["special_embeddings"]).split(SPECIAL_SYMBOLS)
    else:
        special = tuple(_special_embeddings(block) for block in blocks)
    rows = []
    for block, symbols, first in zip(blocks, dictionaries, special, strict=True):
        places = torch.tensor(cluster_rows(symbols))
        rows += [first, torch.empty_like(block).index_copy(0, places, block)]
    head = to_theirs({**loaded.head_state, "unit_embeddings": torch.cat(rows)}, FAIRSEQ_HEAD)
    return head, dictionaries


def _special_embeddings(units: Tensor) -> Tensor:
    """Unit embeddings of the special symbols, (4, d), opposite to the mean of the clusters (K, d).

    They are never a target; there they take the smallest share of fairseq's softmax.
    """
    mean = torch.nn.functional.normalize(units, dim=-1).mean(0, keepdim=True)
    return (-mean).expand(SPECIAL_SYMBOLS, -1)


def ctc_rows(loaded: LoadedModel) -> tuple[dict[str, Tensor], list[str], list[int]]:
    """The CTCHead with a row for every symbol of a fairseq dictionary, those symbols, and the place
    of each of our rows among them.

    fairseq's dictionary begins with <s> (the blank), <pad>, </s>, <unk>. Those that our vocabulary
    lacks get a row whose logit is never the highest.
    """
    vocabulary = [str(symbol) for symbol in loaded.extra.get("vocabulary") or ()]
    rows = loaded.head_state["linear.weight"].shape[0]
    if not vocabulary:
        raise ArtefactError(
            f"fairseq needs a symbol for each of the {rows} rows of a CTC head, and this model "
            "names none; give its dict.ltr.txt, or export to another format"
        )
    if len(vocabulary) != rows or len(set(vocabulary)) != rows:
        raise ArtefactError(
            'a CTC model must list one distinct symbol per row in extra["vocabulary"]: '
            f"{rows} rows, {len(vocabulary)} symbols"
        )
    theirs = [BLANK_SWAP.get(symbol, symbol) for symbol in vocabulary]
    if theirs[0] != SPECIAL_NAMES[0]:
        raise ArtefactError(
            f"the vocabulary begins with {vocabulary[0]!r}, "
            f"expected the blank {BLANK_SWAP[SPECIAL_NAMES[0]]!r}"
        )
    symbols = [*SPECIAL_NAMES, *(symbol for symbol in theirs if symbol not in SPECIAL_NAMES)]
    places = [symbols.index(symbol) for symbol in theirs]
    index = torch.tensor(places)
    weight = loaded.head_state["linear.weight"]
    bias = loaded.head_state["linear.bias"]
    all_weights = weight.new_zeros(len(symbols), weight.shape[1])
    all_biases = bias.new_full((len(symbols),), -1e4)
    state = {
        "linear.weight": all_weights.index_copy(0, index, weight),
        "linear.bias": all_biases.index_copy(0, index, bias),
    }
    return state, symbols, places


# -- configuration


def model_settings(loaded: LoadedModel) -> dict[str, Any]:
    """The fields of fairseq's HubertConfig. Masks are those of the training, or the paper's."""
    config = loaded.model.config
    activations = {ours: theirs for theirs, ours in reversed(ACTIVATIONS.items())}
    if config.hidden_act not in activations:
        raise ArtefactError(
            f"fairseq has no hidden_act {config.hidden_act!r}, "
            f"expected one of {', '.join(ACTIVATIONS.values())}"
        )
    head = loaded.config.get("head") or {}
    paper = vars(SpecAugment.of_spans(SpanMask()))
    masks = SpecAugment.of({**paper, **loaded.extra.get(EXTRA_KEY, {})})
    pretrained = _part_of(loaded) == "hubert"
    layers = zip(config.conv_dim, config.conv_kernel, config.conv_stride, strict=True)
    settings = {
        "_name": "hubert",
        "label_rate": config.grid.frames_per_second,
        "extractor_mode": "layer_norm" if config.feat_extract_norm == "layer" else "default",
        "conv_feature_layers": str([tuple(layer) for layer in layers]),
        "activation_fn": activations[config.hidden_act],
        "logit_temp": head.get("temperature", 0.1) if pretrained else 0.1,
        "untie_final_proj": pretrained and not head.get("tie_projections", False),
        "mask_length": masks.mask_time_length,
        "mask_prob": masks.mask_time_prob,
        "mask_channel_length": masks.mask_feature_length,
        "mask_channel_prob": masks.mask_feature_prob,
        "mask_selection": "static",
        "mask_other": 0.0,
        **{theirs: getattr(config, ours) for ours, theirs in FIELDS.items()},
    }
    if pretrained:
        settings["final_dim"] = head.get("projection_size", config.projection_size)
    return settings


def task_settings(config: HubertConfig) -> dict[str, Any]:
    """The fields of fairseq's HubertPretrainingConfig."""
    return {
        "_name": "hubert_pretraining",
        "data": "",
        "labels": ["km"],
        "label_rate": config.grid.frames_per_second,
        "fine_tuning": False,
        "sample_rate": SAMPLE_RATE,
        "normalize": config.normalize_waveform,
    }


def _ctc_settings(
    loaded: LoadedModel, model: dict[str, Any], task: dict[str, Any]
) -> dict[str, Any]:
    """The fields of fairseq's HubertCtcConfig, with those of the pretraining in `w2v_args`."""
    same_name = (
        "dropout",
        "attention_dropout",
        "activation_dropout",
        "dropout_input",
        "feature_grad_mult",
        "mask_length",
        "mask_prob",
        "mask_channel_length",
        "mask_channel_prob",
    )
    return {
        "_name": "hubert_ctc",
        "w2v_path": "",
        "w2v_args": {"model": model, "task": task},
        "data": "",
        "apply_mask": True,
        "normalize": task["normalize"],
        "layerdrop": model["encoder_layerdrop"],
        "final_dropout": loaded.config["head"]["dropout"],
        "freeze_finetune_updates": 0,
        "autoregressive": False,
        **{name: model[name] for name in same_name},
    }


# -- pickles of classes that are not installed


class Dictionary:
    """Stands for a Dictionary of fairseq with these symbols, and is pickled as one."""

    def __init__(self, symbols: list[str]) -> None:
        names = dict(zip(("bos", "pad", "eos", "unk"), SPECIAL_NAMES, strict=True))
        self.__dict__ |= {f"{key}_word": name for key, name in names.items()}
        self.__dict__ |= {f"{key}_index": symbols.index(name) for key, name in names.items()}
        self.symbols = symbols
        self.count = [1] * len(symbols)
        self.nspecial = SPECIAL_SYMBOLS
        self.indices = {symbol: index for index, symbol in enumerate(symbols)}


# Only the pickler in Python lets a class be written under another name.
_PYTHON_PICKLER: Any = pickle._Pickler  # type: ignore[attr-defined]


class _Pickler(_PYTHON_PICKLER):
    def save_global(self, obj: Any, name: str | None = None) -> None:
        if obj is not Dictionary:
            return super().save_global(obj, name)
        self.write(pickle.GLOBAL + b"fairseq.data.dictionary\nDictionary\n")
        self.memoize(obj)

    dispatch: ClassVar[dict[Any, Any]] = {**_PYTHON_PICKLER.dispatch, type: save_global}


def save_pickle(path: Path, content: dict[str, Any]) -> None:
    """`torch.save`, atomically, with `Dictionary` under fairseq's name.

    Tensors are copied first: a view would be saved with all the memory that it is a view of.
    """
    pickle_module = types.SimpleNamespace(Pickler=_Pickler, __name__="pickle")
    with replacing(path) as temporary:
        torch.save(_with_copies(content), temporary, pickle_module=pickle_module)


def _with_copies(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().cpu().clone()
    if isinstance(value, dict):
        return {key: _with_copies(item) for key, item in value.items()}
    return value
