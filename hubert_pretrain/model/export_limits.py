"""Networks that the HuBERT of other projects cannot hold, known from the configuration alone: so a
recipe is refused before it trains one (interop/ writes the files).
"""

from __future__ import annotations

from typing import Any

from hubert_pretrain.model.config import ACTIVATIONS, HubertConfig

ANY_FRONT_END = ("onnx",)
"""Formats that hold a network without a conv encoder. (`torch.export` fixes the batch of log-mel
energies.)
"""
KNOWN = [name for name in ACTIVATIONS if name != "selu"]
"""Activations of transformers and of fairseq."""
HUGGINGFACE: dict[str, list[Any]] = {"hidden_act": KNOWN, "feat_extract_activation": KNOWN}
FAIRSEQ: dict[str, list[Any]] = {
    "feat_proj_layer_norm": [True],
    "feat_extract_activation": ["gelu"],
    "hidden_act": KNOWN,
    "layer_norm_eps": [1e-5],
    "adapter_attn_dim": [None],
}
TORCHAUDIO: dict[str, list[Any]] = {
    **FAIRSEQ,
    "hidden_act": ["gelu"],
    "conv_pos_batch_norm": [False],
}
VALUES: dict[str, dict[str, list[Any]]] = {
    "huggingface": HUGGINGFACE,
    "fairseq": FAIRSEQ,
    "s3prl": FAIRSEQ,
    "torchaudio": TORCHAUDIO,
    "onnx": {},
    "torch": {},
}
"""The values of fields that a format can hold."""


def offline_note(config: HubertConfig) -> str:
    """One line about the export of a streaming network."""
    return (
        f"this network streams in chunks of {config.chunk_frames} frames, and the export computes "
        "whole utterances (the offline network), because no other HuBERT has chunks; read with "
        "hubert_pretrain it streams"
    )


def faults_of_export(format: str, config: HubertConfig) -> list[str]:
    """One line for each value of a network that an export format cannot hold, with the formats that
    can hold the network."""
    faults = _faults(format, config)
    able = [name for name in VALUES if not _faults(name, config)]
    fix = f"choose {' or '.join(able)}" if able else "load the checkpoint's own folder"
    return [f"export.format={format} cannot hold {fault}; {fix}" for fault in faults]


def _faults(format: str, config: HubertConfig) -> list[str]:
    if config.front_end != "conv" and format not in ANY_FRONT_END:
        return [f"model.front_end={config.front_end}: its HuBERT begins with convolutions"]
    faults = [
        f"model.{name}={getattr(config, name)}: its HuBERT has {' or '.join(map(str, values))} only"
        for name, values in VALUES[format].items()
        if getattr(config, name) not in values
    ]
    post_norm = config.adapter_attn_dim is not None and not config.do_stable_layer_norm
    if format == "huggingface" and post_norm:
        faults.append(
            f"model.adapter_attn_dim={config.adapter_attn_dim} with "
            "model.do_stable_layer_norm=false: transformers ignores adapters of a post-norm model"
        )
    return faults
