"""State dicts of torchaudio's HuBERT, in: Wav2Vec2Model (an encoder, or with a CTC head),
HuBERTPretrainModel, and checkpoints of torchaudio's HuBERT recipe.

Such a file holds tensors and nothing else. Attention heads, strides and the order of norms cannot
be read from tensors. They come from the side file of our own export (`hubert.side.safetensors`
beside `hubert.pt`), from the caller, or from the published model of the same shape.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

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
from hubert_pretrain.interop.fairseq_dictionary import ctc_symbols
from hubert_pretrain.interop.pickles import read_pickle
from hubert_pretrain.interop.tensor_names import (
    TORCHAUDIO,
    TORCHAUDIO_CTC,
    TORCHAUDIO_HEAD,
    to_ours,
)
from hubert_pretrain.model.checkpoint import LoadedModel, load_tensors
from hubert_pretrain.model.heads import CodebookHead, CTCHead

STANDARD_STRIDES = {(10, 3, 3, 3, 3, 2, 2): [5, 2, 2, 2, 2, 2, 2]}
"""Kernels of the published conv encoders -> their strides."""
STANDARD_HEADS = {768: 12, 1024: 16, 1280: 16}
"""Width of the published networks -> their attention heads."""
_ENCODER = "wav2vec2.encoder."
_LAYERS = "wav2vec2.encoder.transformer.layers."
_CONV_LAYERS = "wav2vec2.feature_extractor.conv_layers."
_FIRST = _CONV_LAYERS + "0.conv.weight"
_POSITIONS = re.compile(
    r"wav2vec2\.encoder\.transformer\.pos_conv_embed\.conv\."
    r"(weight_v|parametrizations\.weight\.original1)"
)


def load_torchaudio(
    path: str | Path, *, dictionary: str | Path | None = None, content: Any = None, **overrides: Any
) -> LoadedModel:
    """A state dict of torchaudio as a network and its head: CodebookHead, CTCHead or none.

    Args:
        path: of the file.
        dictionary: `dict.ltr.txt` with the CTC vocabulary, with or without fairseq's four special
            symbols.
        content: result of `read_pickle`, if the file has been read.
        overrides: fields of HubertConfig that the file does not tell, such as
            `num_attention_heads=4, conv_stride=[...]`.

    Raises:
        ArtefactError: the file is damaged, no HuBERT, or a field that it does not tell is needed.
    """
    path = Path(path)
    weights = torchaudio_weights(read_pickle(path) if content is None else content)
    if weights is None:
        raise ArtefactError(
            f"{path}: not a state dict of torchaudio's HuBERT: "
            f"no {_FIRST.removeprefix('wav2vec2.')}"
        )
    preserved, side = _read_side_file(side_file(path))
    head = {
        name: tensor
        for name, tensor in weights.items()
        if name.startswith(("logit_generator.", "aux."))
    }
    encoder = {name: tensor for name, tensor in weights.items() if name not in head}
    if "hubert.mask_embedding" in side:
        encoder["mask_generator.mask_embedding"] = side["hubert.mask_embedding"]
    fields = _fields(encoder, path)
    notes: list[str] = []
    if preserved is None:
        if "logit_generator.final_proj.weight" in head:
            fields["projection_size"] = head["logit_generator.final_proj.weight"].shape[0]
        fields |= _published_fields(fields, overrides, notes, path)
    source = ForeignCheckpoint(
        path=path,
        format="torchaudio Wav2Vec2Model",
        kind=CodebookHead.kind,
        weights=encoder,
        key_map=TORCHAUDIO,
        config=build_config(fields, preserved=preserved, overrides=overrides, path=path),
        head_names=list(head),
        extra=preserved_extra(preserved) or {},
        notes=notes,
    )
    if "aux.weight" in head:
        _add_ctc_head(source, head, preserved, dictionary)
    elif head:
        _add_codebook(source, head, preserved)
    elif preserved is not None:
        _add_side_head(source, side, preserved)
    return assemble(source)


def torchaudio_weights(content: Any) -> dict[str, Tensor] | None:
    """The tensors of any of torchaudio's files under the names of HuBERTPretrainModel; None for
    another content.
    """
    state = content.get("state_dict", content) if isinstance(content, dict) else {}
    items = state.items() if isinstance(state, dict) else ()
    weights = {
        name: tensor
        for name, tensor in items
        if isinstance(name, str) and isinstance(tensor, Tensor)
    }
    # Prefixes of the Lightning module of torchaudio's recipe and of DistributedDataParallel.
    for prefix in ("model.", "module."):
        if weights and all(name.startswith(prefix) for name in weights):
            weights = {name.removeprefix(prefix): tensor for name, tensor in weights.items()}
    if _FIRST.removeprefix("wav2vec2.") in weights:  # a Wav2Vec2Model
        weights = {
            name if name.startswith("aux.") else f"wav2vec2.{name}": tensor
            for name, tensor in weights.items()
        }
    weights = {
        name.removeprefix("wav2vec2.") if name.startswith("wav2vec2.aux.") else name: tensor
        for name, tensor in weights.items()
    }
    transformer = any(name.startswith("wav2vec2.encoder.transformer.") for name in weights)
    return weights if _FIRST in weights and transformer else None


def side_file(path: Path) -> Path:
    """The file beside an export to torchaudio for everything that a state dict cannot hold."""
    return path.with_name(f"{path.stem}.side.safetensors")


def _read_side_file(path: Path) -> tuple[dict[str, Any] | None, dict[str, Tensor]]:
    """Our config.json and the tensors in the side file; (None, {}) when there is none."""
    if not path.is_file():
        return None, {}
    from safetensors import safe_open

    tensors = load_tensors(path)
    with safe_open(path, "pt") as file:
        stored = (file.metadata() or {}).get(PRESERVED, "")
    try:
        return dict(json.loads(stored)), tensors
    except (TypeError, ValueError) as error:
        raise ArtefactError(
            f"{path}: holds no readable {PRESERVED!r} metadata ({error}); "
            "remove the file, or export again"
        ) from error


# -- configuration


def _fields(weights: dict[str, Tensor], path: Path) -> dict[str, Any]:
    """The fields of HubertConfig that follow from the shapes of the encoder's tensors."""
    number = re.compile(re.escape(_CONV_LAYERS) + r"(\d+)\.conv\.weight")
    indices = sorted(int(match[1]) for name in weights if (match := number.fullmatch(name)))
    kernels = [weights[f"{_CONV_LAYERS}{index}.conv.weight"] for index in indices]
    layer = re.compile(re.escape(_LAYERS) + r"(\d+)\.")
    layers = {match[1] for name in weights if (match := layer.match(name))}
    layer_norm = f"{_CONV_LAYERS}1.layer_norm.weight" in weights
    try:
        positions = next(weights[name] for name in weights if _POSITIONS.fullmatch(name))
        width = weights[_ENCODER + "feature_projection.projection.weight"].shape[0]
        feed_forward = weights[_LAYERS + "0.feed_forward.intermediate_dense.weight"]
        return {
            "conv_dim": [kernel.shape[0] for kernel in kernels],
            "conv_kernel": [kernel.shape[2] for kernel in kernels],
            "conv_bias": f"{_CONV_LAYERS}0.conv.bias" in weights,
            "feat_extract_norm": "layer" if layer_norm else "group",
            "hidden_size": width,
            "intermediate_size": feed_forward.shape[0],
            "num_hidden_layers": len(layers),
            "num_conv_pos_embeddings": positions.shape[2],
            "num_conv_pos_embedding_groups": width // positions.shape[1],
        }
    except (StopIteration, KeyError, IndexError) as error:
        missing = error.args[0] if error.args else "pos_conv_embed"
        raise ArtefactError(
            f"{path}: {missing} is missing; expected torchaudio's HuBERT"
        ) from error


def _published_fields(
    fields: dict[str, Any], overrides: dict[str, Any], notes: list[str], path: Path
) -> dict[str, Any]:
    """The fields that no tensor tells, as in the published model of this shape, each with a note.

    Raises ArtefactError when there is no such model and the caller does not give them.
    """
    large = fields["feat_extract_norm"] == "layer"
    published = {
        "conv_stride": STANDARD_STRIDES.get(tuple(fields["conv_kernel"])),
        "num_attention_heads": STANDARD_HEADS.get(fields["hidden_size"]),
        "do_stable_layer_norm": large,
        "normalize_waveform": large,
    }
    published = {name: value for name, value in published.items() if name not in overrides}
    for name, value in published.items():
        if value is None:
            raise ArtefactError(
                f"{path}: a torchaudio file does not tell {name}, and no published model has this "
                f"shape; give {name}=... (in a command --set {name}=...)"
            )
        notes.append(f"{name} is not in the file: taken as {value}")
    return published


# -- heads


def _add_codebook(
    source: ForeignCheckpoint, weights: dict[str, Tensor], preserved: dict[str, Any] | None
) -> None:
    source.format = "torchaudio HuBERTPretrainModel"
    names = ("projection.weight", "projection.bias", "unit_embeddings")
    source.head_state = to_ours(weights, names, TORCHAUDIO_HEAD, str(source.path))
    clusters, width = source.head_state["unit_embeddings"].shape
    source.head = {
        "hidden_size": source.config.hidden_size,
        "projection_size": width,
        "n_clusters": clusters,
        "temperature": 0.1,  # torchaudio has no other
    }
    if preserved is not None:
        source.head = preserved["head"]


def _add_ctc_head(
    source: ForeignCheckpoint,
    weights: dict[str, Tensor],
    preserved: dict[str, Any] | None,
    dictionary: str | Path | None,
) -> None:
    source.kind = CTCHead.kind
    source.format = "torchaudio Wav2Vec2Model with a CTC head"
    names = ("linear.weight", "linear.bias")
    source.head_state = to_ours(weights, names, TORCHAUDIO_CTC, str(source.path))
    rows = source.head_state["linear.weight"].shape[0]
    source.head = {
        "hidden_size": source.config.hidden_size,
        "vocabulary_size": rows,
        "dropout": preserved["head"]["dropout"] if preserved is not None else 0.0,
    }
    if dictionary is not None:
        source.extra["vocabulary"] = ctc_symbols(dictionary, rows)
        source.dictionary = str(dictionary)
    elif preserved is None:
        source.notes.append(f"it names none of its {rows} characters: give its dict.ltr.txt")


def _add_side_head(
    source: ForeignCheckpoint, side: dict[str, Tensor], preserved: dict[str, Any]
) -> None:
    """Adds a head that torchaudio has no network for, from the side file."""
    state = {
        name.removeprefix("head."): tensor
        for name, tensor in side.items()
        if name.startswith("head.")
    }
    if state:
        place = f"{side_file(source.path).name}: head."
        add_preserved_head(source, preserved, state, place)
