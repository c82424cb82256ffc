"""Exported folders of `transformers`, loaded with 8-bit or 4-bit weights.

| scheme | quantised | packages |
|---|---|---|
| bnb-int8, bnb-nf4 | weights of linear layers, while loading | bitsandbytes, accelerate |
| torchao-int8, torchao-int4 | weights of linear layers, after loading | torchao |
| torchao-int8-dynamic | weights and activations of linear layers | torchao |

Heads stay exact. 4 bits of torchao have a scale for each group of 32 inputs.
`transformers`' own TorchAoConfig fails for HuBERT (its models have no `get_input_embeddings`), so
torchao's `quantize_` is called after loading. For ONNX: `quantise_onnx` in onnx.py.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hubert_pretrain.errors import ArtefactError, ConfigError, did_you_mean
from hubert_pretrain.files import read_json
from hubert_pretrain.interop.transformers_writer import import_transformers

HEADS = ["lm_head", "projector", "classifier"]
"""Layers that stay exact: they are small, they alone made a third of the change of logits at 4
bits, and on some CPUs the 4-bit product needs a multiple of 32 rows, which a CTC head does not
have.
"""


def load_quantised(folder: str | Path, scheme: str) -> Any:
    """The quantised model of a folder, of the class that its config.json names, in eval mode.

    scheme: one of `SCHEMES`. Raises ConfigError for another, ArtefactError when its package is not
    installed.
    """
    if scheme not in SCHEMES:
        hint = did_you_mean(scheme, list(SCHEMES))
        raise ConfigError(
            f"no quantisation is called {scheme!r}, expected one of {', '.join(SCHEMES)}{hint}"
        )
    needed = ["bitsandbytes", "accelerate"] if scheme.startswith("bnb") else ["torchao"]
    missing = [package for package in needed if importlib.util.find_spec(package) is None]
    if missing:
        packages = " ".join(missing)
        raise ArtefactError(
            f"{scheme} needs {packages}, not installed here: pip install {packages}"
        )
    stored = read_json(Path(folder) / "config.json")
    names = stored.get("architectures") if isinstance(stored, dict) else None
    if not isinstance(names, list) or not names:
        raise ArtefactError(
            f"{Path(folder) / 'config.json'}: names no architecture; "
            "expected the folder of an export to huggingface"
        )
    return SCHEMES[scheme](getattr(import_transformers(), names[0]), folder).eval()


def _bitsandbytes(**settings: Any) -> Callable[[Any, str | Path], Any]:
    def load(architecture: Any, folder: str | Path) -> Any:
        config = import_transformers().BitsAndBytesConfig(**settings, llm_int8_skip_modules=HEADS)
        return architecture.from_pretrained(folder, quantization_config=config)

    return load


def _torchao(name: str, *, group: int = 1, **settings: Any) -> Callable[[Any, str | Path], Any]:
    """group: inputs that share a scale; 1: all of an output."""

    def chosen(module: nn.Module, path: str) -> bool:
        linear = isinstance(module, nn.Linear) and module.in_features % group == 0
        return linear and path.split(".")[0] not in HEADS

    def load(architecture: Any, folder: str | Path) -> Any:
        from torchao import quantization

        model = architecture.from_pretrained(folder)
        fields = dict(settings)
        if group > 1:
            fields["granularity"] = quantization.PerGroup(group)
        quantization.quantize_(model, getattr(quantization, name)(**fields), filter_fn=chosen)
        return model

    return load


_INT4 = getattr(torch, "int4")  # noqa: B009  # missing from torch's type stubs
SCHEMES: dict[str, Callable[[Any, str | Path], Any]] = {
    "bnb-int8": _bitsandbytes(load_in_8bit=True),
    "bnb-nf4": _bitsandbytes(load_in_4bit=True, bnb_4bit_quant_type="nf4"),
    "torchao-int8": _torchao("Int8WeightOnlyConfig"),
    "torchao-int8-dynamic": _torchao("Int8DynamicActivationInt8WeightConfig"),
    "torchao-int4": _torchao("IntxWeightOnlyConfig", group=32, weight_dtype=_INT4),
}
"""Name -> function of a class of `transformers` and a folder, which returns the model."""
