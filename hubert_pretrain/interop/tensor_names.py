"""One network, four vocabularies: what each tensor is called here, in `transformers`, in fairseq
and in torchaudio.

Values never change on the way, except that our fused `qkv` (3D, D) is three tensors elsewhere.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import torch
from torch import Tensor

from hubert_pretrain.errors import ArtefactError

KeyMap = list[tuple[str, str]]
"""(regular expression on our name, replacement); the first that matches the whole name wins."""

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
"""`transformers.HubertModel`, 4.57 and 5.x. Older files say `conv.weight_g`, `conv.weight_v`: both
are read, from everyone.
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
"""CodebookHead. (`transformers` has no such head.)"""

TRANSFORMERS_CTC: KeyMap = [(r"linear\.(.+)", r"lm_head.\1")]
"""LetterHead in `transformers.HubertForCTC`."""

TRANSFORMERS_CLASSES: KeyMap = [
    (r"layer_weights", r"layer_weights"),
    (r"projection\.(.+)", r"projector.\1"),
    (r"linear\.(.+)", r"classifier.\1"),
]
"""ClassificationHead in `transformers.HubertForSequenceClassification`."""

FAIRSEQ_CTC: KeyMap = [(r"linear\.(.+)", r"w2v_encoder.proj.\1")]
"""LetterHead in fairseq's HubertCtc, whose encoder stands under `w2v_encoder.w2v_model.`"""


def _in_torchaudio(name: str) -> str:
    if name == "masked_spec_embed":
        return "mask_generator.mask_embedding"
    if name.startswith("feature_projection."):
        return f"wav2vec2.encoder.{name}"
    return "wav2vec2." + name.replace(
        "encoder.", "encoder.transformer.", 1 if name.startswith("encoder.") else 0
    )


TORCHAUDIO: KeyMap = [(pattern, _in_torchaudio(name)) for pattern, name in TRANSFORMERS]
"""`torchaudio.models.HuBERTPretrainModel`; a `Wav2Vec2Model` has the same names without
`wav2vec2.`, and no mask embedding.
"""

TORCHAUDIO_HEAD: KeyMap = [
    (r"projection\.(.+)", r"logit_generator.final_proj.\1"),
    (r"unit_embeddings", r"logit_generator.label_embeddings"),
]
"""CodebookHead in `torchaudio.models.HuBERTPretrainModel`."""

TORCHAUDIO_CTC: KeyMap = [(r"linear\.(.+)", r"aux.\1")]
"""LetterHead in `torchaudio.models.Wav2Vec2Model`."""


def fairseq_rules(feat_extract_norm: str) -> KeyMap:
    """The rules that fit a network whose conv encoder has this norm ("group" or "layer")."""
    return FAIRSEQ_LAYER_NORM if feat_extract_norm == "layer" else FAIRSEQ_GROUP_NORM


def foreign_names(name: str, rules: KeyMap) -> list[str]:
    """What one of our tensors is called elsewhere: one name, or three for the fused queries, keys
    and values.
    """
    theirs = _renamed(name, rules)
    if theirs is None:
        raise KeyError(f"no rule names {name!r}")
    return [theirs.replace("{qkv}", letter) for letter in "qkv"] if "{qkv}" in theirs else [theirs]


def to_theirs(state: dict[str, Tensor], rules: KeyMap) -> dict[str, Tensor]:
    """Our tensors under their names."""
    out: dict[str, Tensor] = {}
    for name, tensor in state.items():
        theirs = foreign_names(name, rules)
        out |= zip(theirs, tensor.chunk(len(theirs)) if len(theirs) > 1 else [tensor], strict=True)
    return out


def to_ours(
    state: dict[str, Tensor], wanted: Iterable[str], rules: KeyMap, source: str
) -> dict[str, Tensor]:
    """Their tensors under the names `wanted` (our names of the network that is to be filled).

    Raises ArtefactError naming `source` and the first names that are missing. What is left over is
    the caller's to judge:
    see `left_over`.
    """
    state = {canonical_weight_norm(name): tensor for name, tensor in state.items()}
    names = {
        name: [canonical_weight_norm(theirs) for theirs in foreign_names(name, rules)]
        for name in wanted
    }
    missing = [theirs for group in names.values() for theirs in group if theirs not in state]
    if missing:
        raise ArtefactError(
            f"{source}: {len(missing)} tensors are missing, first {', '.join(missing[:3])}; is it a HuBERT of this shape?"
        )
    return {
        name: state[group[0]] if len(group) == 1 else _fused(state, group, source)
        for name, group in names.items()
    }


def _fused(state: dict[str, Tensor], group: list[str], source: str) -> Tensor:
    shapes = {theirs: tuple(state[theirs].shape) for theirs in group}
    if len(set(shapes.values())) > 1:
        raise ArtefactError(
            f"{source}: does not fit the network: queries, keys and values have shape {shapes}, expected the same"
        )
    return torch.cat([state[theirs] for theirs in group])


def left_over(state: dict[str, Tensor], wanted: Iterable[str], rules: KeyMap) -> list[str]:
    """Names in `state` that no tensor of ours corresponds to."""
    taken = {
        canonical_weight_norm(theirs) for name in wanted for theirs in foreign_names(name, rules)
    }
    return [name for name in state if canonical_weight_norm(name) not in taken]


def canonical_weight_norm(name: str) -> str:
    """One name for the two halves of a normalised weight, which PyTorch 2.1 renamed."""
    return name.replace("parametrizations.weight.original0", "weight_g").replace(
        "parametrizations.weight.original1", "weight_v"
    )


def _renamed(name: str, rules: KeyMap) -> str | None:
    for pattern, replacement in rules:
        if match := re.fullmatch(pattern, name):
            return match.expand(replacement)
    return None
