"""Options of a command that name features: mfcc, log_mel, or layers of a checkpoint."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from hubert_pretrain import features
from hubert_pretrain.errors import ConfigError


def add_feature_options(parser: argparse.ArgumentParser) -> None:
    """Adds everything but the name of the features, which is `features`."""
    parser.add_argument("--layer", help="of the checkpoint: a number, several with commas, or all")
    parser.add_argument(
        "--transformers",
        action="store_true",
        help="run the checkpoint with transformers: wav2vec 2.0, WavLM",
    )
    parser.add_argument("--num-mel-bins", type=int, default=80, help="log_mel (default: 80)")


def feature_node(options: argparse.Namespace) -> dict[str, Any]:
    """The features as a recipe states them: `_target_` and its arguments."""
    if options.features == "mfcc":
        return {"_target_": f"{features.__name__}.mfcc.Mfcc"}
    if options.features == "log_mel":
        return {
            "_target_": f"{features.__name__}.log_mel.LogMel",
            "num_mel_bins": options.num_mel_bins,
        }
    if options.layer is None:
        raise ConfigError(
            f"--layer has no value: which layer of {options.features}? "
            "A number from 1 on, several with commas, or all"
        )
    network = "hubert_layer.HubertLayer"
    if options.transformers:
        network = "transformers_layer.TransformersLayer"
    return {
        "_target_": f"{features.__name__}.{network}",
        "checkpoint": str(Path(options.features).expanduser().absolute()),
        "layer": parse_layer(options.layer),
    }


def parse_layer(text: str) -> int | list[int] | str:
    """`2`, `[2, 5]` for `2,5`, or `all`."""
    if text == "all":
        return text
    try:
        layers = [int(number) for number in text.split(",")]
    except ValueError:
        raise ConfigError(
            f"--layer {text}: expected a number, several with commas, or all"
        ) from None
    return layers if len(layers) > 1 else layers[0]
