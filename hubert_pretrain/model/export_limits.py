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
FAIRSEQ: dict[str, list[Any]] = {
    "feat_proj_layer_norm": [True],
    "feat_extract_activation": ["gelu"],
    "hidden_act": [name for name in ACTIVATIONS if name != "selu"],
    "layer_norm_eps": [1e-5],
    "adapter_attn_dim": [None],
}
TORCHAUDIO: dict[str, list[Any]] = {
    **FAIRSEQ,
    "hidden_act": ["gelu"],
    "conv_pos_batch_norm": [False],
}
VALUES = {"fairseq": FAIRSEQ, "s3prl": FAIRSEQ, "torchaudio": TORCHAUDIO}
"""The values of fields that a format can hold."""


def faults_of_export(format: str, config: HubertConfig) -> list[str]:
    """One line for each value of a network that an export format cannot hold."""
    key = f"export.format={format}"
    if config.front_end != "conv" and format not in ANY_FRONT_END:
        return [
            f"{key} cannot hold model.front_end={config.front_end}: its HuBERT begins with "
            f"convolutions; choose {' or '.join(ANY_FRONT_END)}, or load the checkpoint's own "
            "folder with this package"
        ]
    faults = [
        f"{key} cannot hold model.{name}={getattr(config, name)}: its HuBERT has "
        f"{' or '.join(map(str, values))} only; export to huggingface"
        for name, values in VALUES.get(format, {}).items()
        if getattr(config, name) not in values
    ]
    post_norm = config.adapter_attn_dim is not None and not config.do_stable_layer_norm
    if format == "huggingface" and post_norm:
        faults.append(
            f"{key} cannot hold model.adapter_attn_dim={config.adapter_attn_dim} with "
            "model.do_stable_layer_norm=false: transformers ignores adapters of a post-norm model"
        )
    return faults
