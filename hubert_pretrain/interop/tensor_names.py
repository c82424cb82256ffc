"""State-dict key mapping between this package, `transformers`, fairseq and torchaudio.

Only names change, never values, with one exception: our fused projection `qkv` (3D, D) is three
tensors (D, D) in the other projects.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import torch
from torch import Tensor

from hubert_pretrain.errors import ArtefactError

KeyMap = list[tuple[str, str]]
"""(regular expression of our name, replacement); the first one that matches the whole name counts.
A replacement with `{qkv}` stands for three names.
"""

_POSITIONS = r"context_encoder\.positions\."
_LAYER = r"context_encoder\.layers\.(\d+)\."

TRANSFORMERS: KeyMap = [
    (r"mask_embedding", r"masked_spec_embed"),
    (r"conv_encoder\.layers\.(\d+)\.conv\.(.+)", r"feature_extractor.conv_layers.\1.conv.\2"),
    (r"conv_encoder\.layers\.(\d+)\.norm\.(.+)", r"feature_extractor.conv_layers.\1.layer_norm.\2"),
    (r"projection\.norm\.(.+)", r"feature_projection.layer_norm.\1"),
    (r"projection\.linear\.(.+)", r"feature_projection.projection.\1"),
    (_POSITIONS + r"weight_g", r"encoder.pos_conv_embed.conv.parametrizations.weight.original0"),
    (_POSITIONS + r"weight_v", r"encoder.pos_conv_embed.conv.parametrizations.weight.original1"),
    (_POSITIONS + r"bias", r"encoder.pos_conv_embed.conv.bias"),
    (_POSITIONS + r"(conv|batch_norm)\.(.+)", r"encoder.pos_conv_embed.\1.\2"),
    (r"context_encoder\.norm\.(.+)", r"encoder.layer_norm.\1"),
    (_LAYER + r"attention\.qkv\.(.+)", r"encoder.layers.\1.attention.{qkv}_proj.\2"),
    (_LAYER + r"attention\.out\.(.+)", r"encoder.layers.\1.attention.out_proj.\2"),
    (_LAYER + r"attention_norm\.(.+)", r"encoder.layers.\1.layer_norm.\2"),
    (_LAYER + r"feed_forward\.up\.(.+)", r"encoder.layers.\1.feed_forward.intermediate_dense.\2"),
    (_LAYER + r"feed_forward\.down\.(.+)", r"encoder.layers.\1.feed_forward.output_dense.\2"),
    (_LAYER + r"feed_forward_norm\.(.+)", r"encoder.layers.\1.final_layer_norm.\2"),
    (_LAYER + r"adapter\.norm\.(.+)", r"encoder.layers.\1.adapter_layer.norm.\2"),
    (_LAYER + r"adapter\.down\.(.+)", r"encoder.layers.\1.adapter_layer.linear_1.\2"),
    (_LAYER + r"adapter\.up\.(.+)", r"encoder.layers.\1.adapter_layer.linear_2.\2"),
]
"""`transformers.HubertModel`, 4.57 and 5.x. (Older files have `conv.weight_g` and `conv.weight_v`;
see `canonical_weight_norm`.)
"""

_FAIRSEQ_SHARED: KeyMap = [
    (r"mask_embedding", r"mask_emb"),
    (r"conv_encoder\.layers\.(\d+)\.conv\.(.+)", r"feature_extractor.conv_layers.\1.0.\2"),
    (r"projection\.norm\.(.+)", r"layer_norm.\1"),
    (r"projection\.linear\.(.+)", r"post_extract_proj.\1"),
    (_POSITIONS + r"batch_norm\.(.+)", r"encoder.pos_conv.0.\1"),
    (_POSITIONS + r"conv\.(.+)", r"encoder.pos_conv.1.\1"),
    (_POSITIONS + r"(.+)", r"encoder.pos_conv.0.\1"),
    (r"context_encoder\.norm\.(.+)", r"encoder.layer_norm.\1"),
    (_LAYER + r"attention\.qkv\.(.+)", r"encoder.layers.\1.self_attn.{qkv}_proj.\2"),
    (_LAYER + r"attention\.out\.(.+)", r"encoder.layers.\1.self_attn.out_proj.\2"),
    (_LAYER + r"attention_norm\.(.+)", r"encoder.layers.\1.self_attn_layer_norm.\2"),
    (_LAYER + r"feed_forward\.up\.(.+)", r"encoder.layers.\1.fc1.\2"),
    (_LAYER + r"feed_forward\.down\.(.+)", r"encoder.layers.\1.fc2.\2"),
    (_LAYER + r"feed_forward_norm\.(.+)", r"encoder.layers.\1.final_layer_norm.\2"),
]

FAIRSEQ_GROUP_NORM: KeyMap = [
    *_FAIRSEQ_SHARED,
    (r"conv_encoder\.layers\.(\d+)\.norm\.(.+)", r"feature_extractor.conv_layers.\1.2.\2"),
]
"""fairseq's HubertModel with `extractor_mode: default`."""

FAIRSEQ_LAYER_NORM: KeyMap = [
    *_FAIRSEQ_SHARED,
    (r"conv_encoder\.layers\.(\d+)\.norm\.(.+)", r"feature_extractor.conv_layers.\1.2.1.\2"),
]
"""fairseq's HubertModel with `extractor_mode: layer_norm`, where the norm stands between two
transposes.
"""

FAIRSEQ_HEAD: KeyMap = [
    (r"projection\.(.+)", r"final_proj.\1"),
    (r"unit_embeddings", r"label_embs_concat"),
]
"""CodebookHead in fairseq's HubertModel. (`transformers` has no such head.)"""

TRANSFORMERS_CTC: KeyMap = [(r"linear\.(.+)", r"lm_head.\1")]
"""CTCHead in `transformers.HubertForCTC`."""

TRANSFORMERS_CLASSES: KeyMap = [
    (r"layer_weights", r"layer_weights"),
    (r"projection\.(.+)", r"projector.\1"),
    (r"linear\.(.+)", r"classifier.\1"),
]
"""ClassificationHead in `transformers.HubertForSequenceClassification`."""

FAIRSEQ_CTC: KeyMap = [(r"linear\.(.+)", r"w2v_encoder.proj.\1")]
"""CTCHead in fairseq's HubertCtc, whose encoder has the prefix `w2v_encoder.w2v_model.`"""


def _torchaudio_name(name: str) -> str:
    """The name in torchaudio of a tensor with this name in `transformers`."""
    if name == "masked_spec_embed":
        return "mask_generator.mask_embedding"
    if name.startswith("feature_projection."):
        return f"wav2vec2.encoder.{name}"
    if name.startswith("encoder."):
        return "wav2vec2.encoder.transformer." + name.removeprefix("encoder.")
    return f"wav2vec2.{name}"


TORCHAUDIO: KeyMap = [(pattern, _torchaudio_name(name)) for pattern, name in TRANSFORMERS]
"""`torchaudio.models.HuBERTPretrainModel`. A `Wav2Vec2Model` has the same names without the prefix
`wav2vec2.`, and no mask embedding.
"""

TORCHAUDIO_HEAD: KeyMap = [
    (r"projection\.(.+)", r"logit_generator.final_proj.\1"),
    (r"unit_embeddings", r"logit_generator.label_embeddings"),
]
"""CodebookHead in `torchaudio.models.HuBERTPretrainModel`."""

TORCHAUDIO_CTC: KeyMap = [(r"linear\.(.+)", r"aux.\1")]
"""CTCHead in `torchaudio.models.Wav2Vec2Model`."""


def fairseq_key_map(feat_extract_norm: str) -> KeyMap:
    """The key map of fairseq for a conv encoder with this norm: "group" or "layer"."""
    return FAIRSEQ_LAYER_NORM if feat_extract_norm == "layer" else FAIRSEQ_GROUP_NORM


def foreign_names(name: str, key_map: KeyMap) -> list[str]:
    """Names in the other project of one of our tensors: one, or three for the fused queries, keys
    and values.
    """
    for pattern, replacement in key_map:
        if match := re.fullmatch(pattern, name):
            theirs = match.expand(replacement)
            break
    else:
        raise KeyError(f"no entry of the key map matches {name!r}")
    if "{qkv}" not in theirs:
        return [theirs]
    return [theirs.replace("{qkv}", letter) for letter in "qkv"]


def to_theirs(state: dict[str, Tensor], key_map: KeyMap) -> dict[str, Tensor]:
    """Renames our tensors to the names of the other project."""
    renamed: dict[str, Tensor] = {}
    for name, tensor in state.items():
        theirs = foreign_names(name, key_map)
        parts = [tensor] if len(theirs) == 1 else tensor.chunk(len(theirs))
        renamed |= zip(theirs, parts, strict=True)
    return renamed


def to_ours(
    state: dict[str, Tensor], names: Iterable[str], key_map: KeyMap, source: str
) -> dict[str, Tensor]:
    """Renames tensors of the other project to `names`: all tensors of our network that is filled.

    Tensors of `state` that correspond to none of them are left out: see `left_over`. Raises
    ArtefactError naming `source` and the first tensors that are missing.
    """
    state = {canonical_weight_norm(theirs): tensor for theirs, tensor in state.items()}
    groups = {
        name: [canonical_weight_norm(theirs) for theirs in foreign_names(name, key_map)]
        for name in names
    }
    missing = [theirs for group in groups.values() for theirs in group if theirs not in state]
    if missing:
        raise ArtefactError(
            f"{source}: {len(missing)} tensors are missing, first {', '.join(missing[:3])}; "
            "is it a HuBERT of this shape?"
        )
    return {
        name: state[group[0]] if len(group) == 1 else _fused(state, group, source)
        for name, group in groups.items()
    }


def left_over(state: dict[str, Tensor], names: Iterable[str], key_map: KeyMap) -> list[str]:
    """Names in `state` that correspond to none of our tensors `names`."""
    known = {
        canonical_weight_norm(theirs) for name in names for theirs in foreign_names(name, key_map)
    }
    return [theirs for theirs in state if canonical_weight_norm(theirs) not in known]


def canonical_weight_norm(name: str) -> str:
    """The name with `weight_g` and `weight_v` for the two parts of a normalised weight, which
    PyTorch 2.1 renamed.
    """
    return name.replace("parametrizations.weight.original0", "weight_g").replace(
        "parametrizations.weight.original1", "weight_v"
    )


def _fused(state: dict[str, Tensor], group: list[str], source: str) -> Tensor:
    """Queries, keys and values as one tensor."""
    shapes = {theirs: tuple(state[theirs].shape) for theirs in group}
    if len(set(shapes.values())) > 1:
        raise ArtefactError(
            f"{source}: does not fit the network: queries, keys and values have shape {shapes}, "
            "expected the same"
        )
    return torch.cat([state[theirs] for theirs in group])
