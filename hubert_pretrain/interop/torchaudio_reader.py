"""Reads state dicts of torchaudio's HuBERT: Wav2Vec2Model (encoder, or with a CTC head),
HuBERTPretrainModel, and its recipe's checkpoints.

Such a file holds tensors and nothing else. What they do not tell (attention heads, strides, the
order of norms) is read from the note beside a file of our own export (`hubert.pt` and
`hubert.side.safetensors`), given by the caller, or as in the published models.
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
    assemble,
    build_config,
    fitting,
    preserved_extra,
)
from hubert_pretrain.interop.fairseq_dictionary import BLANK_SWAP, SPECIAL_NAMES, read_dictionary
from hubert_pretrain.interop.pickles import read_pickle
from hubert_pretrain.interop.tensor_names import (
    TORCHAUDIO,
    TORCHAUDIO_CTC,
    TORCHAUDIO_HEAD,
    to_ours,
)
from hubert_pretrain.model.checkpoint import LoadedModel, load_tensors

STANDARD_STRIDES = {(10, 3, 3, 3, 3, 2, 2): [5, 2, 2, 2, 2, 2, 2]}
"""Kernels of the published conv encoders -> their strides."""
STANDARD_HEADS = {768: 12, 1024: 16, 1280: 16}
"""Width of the published networks -> their attention heads."""
_FIRST = "wav2vec2.feature_extractor.conv_layers.0.conv.weight"


def side_file(path: Path) -> Path:
    """Where our export keeps what torchaudio's file has no slot for."""
    return path.with_name(f"{path.stem}.side.safetensors")


def load_torchaudio(
    path: str | Path, *, dictionary: str | Path | None = None, content: Any = None, **overrides: Any
) -> LoadedModel:
    """A state dict of torchaudio as a network and its head: CodebookHead, LetterHead or none.

    overrides: fields of HubertConfig that the file does not tell, such as `num_attention_heads=4,
    conv_stride=[...]`. dictionary: `dict.ltr.txt` for the CTC vocabulary, with or without the four special
    symbols of fairseq. content: what `read_pickle` gave.
    Raises ArtefactError when the file is damaged, no HuBERT, or does not tell enough.
    """
    path = Path(path)
    weights = torchaudio_weights(read_pickle(path) if content is None else content)
    if weights is None:
        raise ArtefactError(
            f"{path}: not a state dict of torchaudio's HuBERT: no {_FIRST.removeprefix('wav2vec2.')}"
        )
    note, side = _side(side_file(path))
    head_weights = {
        name: tensor
        for name, tensor in weights.items()
        if re.match(r"logit_generator\.|aux\.", name)
    }
    encoder = {name: tensor for name, tensor in weights.items() if name not in head_weights}
    encoder |= (
        {"mask_generator.mask_embedding": side["hubert.mask_embedding"]}
        if "hubert.mask_embedding" in side
        else {}
    )
    notes: list[str] = []
    fields = _fields(encoder, head_weights, note, overrides, notes, path)
    config = build_config(fields, carried=note, overrides=overrides, path=path)
    source = ForeignCheckpoint(
        path, "torchaudio Wav2Vec2Model", "pretrain", encoder, TORCHAUDIO, config, notes=notes
    )
    source.extra = preserved_extra(note) or {}
    source.head_names = list(head_weights)
    if "aux.weight" in head_weights:
        _ctc_vocabulary(source, head_weights, note, dictionary)
    elif head_weights:
        _codebook(source, head_weights, note)
    elif note is not None and (
        beside := {
            name.removeprefix("head."): side[name] for name in side if name.startswith("head.")
        }
    ):
        source.kind = note["kind"]
        source.head = note["head"]
        source.head_state = beside
        source.head_names = [f"{side_file(path).name}: head.{name}" for name in beside]
    return assemble(source)


def torchaudio_weights(content: Any) -> dict[str, Tensor] | None:
    """The tensors in the names of HuBERTPretrainModel, whichever of its forms a file has; None when
    it is something else.
    """
    state = content.get("state_dict", content) if isinstance(content, dict) else {}
    items = state.items() if isinstance(state, dict) else ()
    weights = {
        name: tensor
        for name, tensor in items
        if isinstance(name, str) and isinstance(tensor, Tensor)
    }
    for prefix in (
        "model.",
        "module.",
    ):  # of the Lightning module of its recipe, of DistributedDataParallel
        if weights and all(name.startswith(prefix) for name in weights):
            weights = {name.removeprefix(prefix): tensor for name, tensor in weights.items()}
    if _FIRST.removeprefix("wav2vec2.") in weights:
        weights = {
            name if name.startswith("aux.") else f"wav2vec2.{name}": tensor
            for name, tensor in weights.items()
        }
    weights = {
        name.removeprefix("wav2vec2.") if name.startswith("wav2vec2.aux.") else name: tensor
        for name, tensor in weights.items()
    }
    known = _FIRST in weights and any(
        name.startswith("wav2vec2.encoder.transformer.") for name in weights
    )
    return weights if known else None


def _side(path: Path) -> tuple[dict[str, Any] | None, dict[str, Tensor]]:
    """The note and the tensors beside a file of our own export; nothing when there are none."""
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
            f"{path}: holds no readable {PRESERVED!r} note ({error}); remove the file, or export again"
        ) from error


def _fields(
    weights: dict[str, Tensor],
    head: dict[str, Tensor],
    note: dict[str, Any] | None,
    overrides: dict[str, Any],
    notes: list[str],
    path: Path,
) -> dict[str, Any]:
    """Every field that the tensors tell by their shapes, and guesses for those that they do not."""
    number = re.compile(r"wav2vec2\.feature_extractor\.conv_layers\.(\d+)\.conv\.weight")
    layers = sorted(int(match[1]) for name in weights if (match := number.fullmatch(name)))
    convolutions = [
        weights[f"wav2vec2.feature_extractor.conv_layers.{index}.conv.weight"] for index in layers
    ]
    blocks = {
        match[1]
        for name in weights
        if (match := re.match(r"wav2vec2\.encoder\.transformer\.layers\.(\d+)\.", name))
    }
    positions = re.compile(
        r"wav2vec2\.encoder\.transformer\.pos_conv_embed\.conv\.(weight_v|parametrizations\.weight\.original1)"
    )
    try:
        direction = next(weights[name] for name in weights if positions.fullmatch(name))
        width = weights["wav2vec2.encoder.feature_projection.projection.weight"].shape[0]
        feed_forward = weights[
            "wav2vec2.encoder.transformer.layers.0.feed_forward.intermediate_dense.weight"
        ].shape[0]
        fields: dict[str, Any] = {
            "conv_dim": [tensor.shape[0] for tensor in convolutions],
            "conv_kernel": [tensor.shape[2] for tensor in convolutions],
            "conv_bias": "wav2vec2.feature_extractor.conv_layers.0.conv.bias" in weights,
            "feat_extract_norm": "layer"
            if "wav2vec2.feature_extractor.conv_layers.1.layer_norm.weight" in weights
            else "group",
            **{
                "hidden_size": width,
                "intermediate_size": feed_forward,
                "num_hidden_layers": len(blocks),
            },
            **{
                "num_conv_pos_embeddings": direction.shape[2],
                "num_conv_pos_embedding_groups": width // direction.shape[1],
            },
        }
    except (StopIteration, KeyError, IndexError) as error:
        raise ArtefactError(
            f"{path}: {error.args[0] if error.args else 'pos_conv_embed'} is missing; expected torchaudio's HuBERT"
        ) from error
    if note is None and "logit_generator.final_proj.weight" in head:
        fields["projection_size"] = head["logit_generator.final_proj.weight"].shape[0]
    return fields if note is not None else {**fields, **_guesses(fields, overrides, notes, path)}


def _guesses(
    fields: dict[str, Any], overrides: dict[str, Any], notes: list[str], path: Path
) -> dict[str, Any]:
    """What no tensor tells, as in the published models of that shape. Raises ArtefactError when
    there is none.
    """
    large = fields["feat_extract_norm"] == "layer"
    guesses = {
        "conv_stride": STANDARD_STRIDES.get(tuple(fields["conv_kernel"])),
        "num_attention_heads": STANDARD_HEADS.get(fields["hidden_size"]),
        "do_stable_layer_norm": large,
        "normalize_waveform": large,
    }
    guesses = {name: value for name, value in guesses.items() if name not in overrides}
    for name, value in guesses.items():
        if value is None:
            raise ArtefactError(
                f"{path}: a torchaudio file does not tell {name}, and no published model has this shape; give {name}=..."
            )
        notes.append(f"{name} is not in the file: taken as {value}")
    return guesses


def _codebook(
    source: ForeignCheckpoint, weights: dict[str, Tensor], note: dict[str, Any] | None
) -> None:
    source.format = "torchaudio HuBERTPretrainModel"
    names = ("projection.weight", "projection.bias", "unit_embeddings")
    source.head_state = to_ours(weights, names, TORCHAUDIO_HEAD, str(source.path))
    clusters, width = source.head_state["unit_embeddings"].shape
    told = {
        "hidden_size": source.config.hidden_size,
        "projection_size": width,
        "n_clusters": clusters,
        "temperature": 0.1,
    }
    source.head = note["head"] if note is not None else told  # torchaudio has no other temperature


def _ctc_vocabulary(
    source: ForeignCheckpoint,
    weights: dict[str, Tensor],
    note: dict[str, Any] | None,
    dictionary: str | Path | None,
) -> None:
    source.kind = "ctc"
    source.format = "torchaudio Wav2Vec2Model with a CTC head"
    source.head_state = to_ours(
        weights, ("linear.weight", "linear.bias"), TORCHAUDIO_CTC, str(source.path)
    )
    rows = source.head_state["linear.weight"].shape[0]
    dropout = note["head"]["dropout"] if note is not None else 0.0
    source.head = {
        "hidden_size": source.config.hidden_size,
        "vocabulary_size": rows,
        "dropout": dropout,
    }
    if dictionary is not None:
        symbols = [BLANK_SWAP.get(symbol, symbol) for symbol in read_dictionary(dictionary)]
        if (
            len(symbols) - len(SPECIAL_NAMES) + 1 == rows
        ):  # torchaudio's published models keep only the blank of the four
            symbols = [symbols[0], *symbols[len(SPECIAL_NAMES) :]]
        source.extra["vocabulary"] = fitting(symbols, rows, Path(dictionary), "dictionary")
    elif note is None:
        source.notes.append(f"it names none of its {rows} characters: give its dict.ltr.txt")
