"""State dicts of torchaudio's HuBERT, out, each with a side file (`hubert.side.safetensors` beside
`hubert.pt`) for everything that a state dict cannot hold.

| checkpoint | loads into |
|---|---|
| pretraining, one codebook | `HuBERTPretrainModel` (its `.wav2vec2` is the encoder) |
| CTC | `Wav2Vec2Model` with `aux_num_out` |
| any other | `Wav2Vec2Model`; the head is in the side file |
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hubert_pretrain.errors import ArtefactError
from hubert_pretrain.interop.assemble import PRESERVED
from hubert_pretrain.interop.compare import TOLERANCE, Report, check_differences, our_outputs, probe
from hubert_pretrain.interop.fairseq_writer import save_pickle
from hubert_pretrain.interop.tensor_names import (
    TORCHAUDIO,
    TORCHAUDIO_CTC,
    TORCHAUDIO_HEAD,
    to_theirs,
)
from hubert_pretrain.interop.torchaudio_reader import side_file
from hubert_pretrain.model.checkpoint import LoadedModel, save_tensors
from hubert_pretrain.model.export_limits import faults_of_export

_MASK = "mask_generator.mask_embedding"


def export_torchaudio(path: str | Path, loaded: LoadedModel) -> None:
    """Writes `path` and its side file.

    Raises ArtefactError for a network that torchaudio cannot compute, naming the field.
    """
    path = Path(path)
    if faults := faults_of_export("torchaudio", loaded.model.config):
        raise ArtefactError("; ".join(faults))
    weights = to_theirs(loaded.model.state_dict(), TORCHAUDIO)
    side: dict[str, Tensor] = {}
    part = _part_of(loaded)
    if part == "HuBERTPretrainModel":
        weights |= to_theirs(loaded.head_state, TORCHAUDIO_HEAD)
    else:
        side["hubert.mask_embedding"] = weights.pop(_MASK)
        weights = {name.removeprefix("wav2vec2."): tensor for name, tensor in weights.items()}
        if part == "aux":
            weights |= to_theirs(loaded.head_state, TORCHAUDIO_CTC)
        else:
            side |= {f"head.{name}": tensor for name, tensor in loaded.head_state.items()}
    preserved = {**loaded.config, "torchaudio": arguments(loaded)}
    save_tensors(side_file(path), side, {"format": "pt", PRESERVED: json.dumps(preserved)})
    save_pickle(path, weights)


def arguments(loaded: LoadedModel) -> dict[str, Any]:
    """Keyword arguments of `torchaudio.models.wav2vec2_model` for this network; they are also in
    the side file.
    """
    config = loaded.model.config
    conv_layers = zip(config.conv_dim, config.conv_kernel, config.conv_stride, strict=True)
    aux = len(loaded.head_state["linear.weight"]) if _part_of(loaded) == "aux" else None
    return {
        "extractor_mode": f"{config.feat_extract_norm}_norm",
        "extractor_conv_layer_config": [list(layer) for layer in conv_layers],
        "extractor_conv_bias": config.conv_bias,
        "encoder_embed_dim": config.hidden_size,
        "encoder_projection_dropout": config.feat_proj_dropout,
        "encoder_pos_conv_kernel": config.num_conv_pos_embeddings,
        "encoder_pos_conv_groups": config.num_conv_pos_embedding_groups,
        "encoder_num_layers": config.num_hidden_layers,
        "encoder_num_heads": config.num_attention_heads,
        "encoder_attention_dropout": config.attention_dropout,
        "encoder_ff_interm_features": config.intermediate_size,
        "encoder_ff_interm_dropout": config.activation_dropout,
        "encoder_dropout": config.hidden_dropout,
        "encoder_layer_norm_first": config.do_stable_layer_norm,
        "encoder_layer_drop": config.layerdrop,
        "aux_num_out": aux,
    }


def compare_torchaudio(
    path: str | Path, loaded: LoadedModel, *, tolerance: float = TOLERANCE
) -> Report:
    """Compares every layer, the last hidden state and the CTC logits of torchaudio's network with
    an exported file's weights with ours.

    Raises ArtefactError when any differs by more than `tolerance`, or when torchaudio does not find
    all its tensors.
    """
    waveform = probe(loaded)
    model = _load(Path(path), loaded)
    with torch.inference_mode():
        states, _ = model.extract_features(waveform)
        last = model.encoder(model.feature_extractor(waveform, None)[0])
        theirs = {f"layer {layer}": state for layer, state in enumerate(states, start=1)}
        theirs["last"] = last
        if model.aux is not None:
            theirs["logits"] = model.aux(last)
        ours = our_outputs(loaded, waveform)
    ours = {name: ours[name] for name in theirs}
    return check_differences(path, ours, theirs, tolerance=tolerance, library="torchaudio")


def _load(path: Path, loaded: LoadedModel) -> Any:
    """torchaudio's Wav2Vec2Model with the weights of an exported file."""
    import torchaudio

    model = torchaudio.models.wav2vec2_model(**arguments(loaded)).eval()
    state = torch.load(path, weights_only=True)
    if _MASK in state:
        state = {
            name.removeprefix("wav2vec2."): tensor
            for name, tensor in state.items()
            if name.startswith("wav2vec2.")
        }
    try:
        nn.Module.load_state_dict(model, state)
    except RuntimeError as error:
        raise ArtefactError(
            f"{path}: does not fit torchaudio's network: {' '.join(str(error).split())[:200]}"
        ) from error
    return model


def _part_of(loaded: LoadedModel) -> str:
    """The part of torchaudio that computes the head, as the head states; "" for none."""
    return loaded.build_head().places.get("torchaudio", "") if loaded.head_state else ""
