"""Low-rank adaptation (LoRA, Hu et al. 2021) through `peft`: the encoder is frozen, and chosen
products W x of its layers become W x + (alpha / rank) B A x, of which A and B learn.

After the training W + (alpha / rank) B A takes the place of W, so results, exports and every reader
see the network itself. A checkpoint to resume from holds W, A and B; `load_training_state` merges
them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from hubert_pretrain.errors import ConfigError
from hubert_pretrain.model.hubert import Hubert

if TYPE_CHECKING:
    from hubert_pretrain.config.schema import LoraConfig

PLACES = {
    "qkv": "attention.qkv",
    "out": "attention.out",
    "up": "feed_forward.up",
    "down": "feed_forward.down",
}
"""Name of a product -> its place in a layer."""


def add_lora(model: Hubert, config: LoraConfig, seed: int) -> None:
    """Freeze the network and give its layers the matrices that learn. At first they change nothing:
    B is 0.

    Raises ConfigError where `peft` is not installed.
    """
    peft = import_peft()
    places = "|".join(PLACES[target].replace(".", r"\.") for target in config.targets)
    torch.manual_seed(seed)
    settings = peft.LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=rf"context_encoder\.layers\.\d+\.({places})",
    )
    model.requires_grad_(False)
    peft.inject_adapter_in_model(settings, model)


def lora_scale(model: Hubert) -> float | None:
    """alpha / rank of a network with LoRA; None without."""
    settings = getattr(model, "peft_config", None)
    if settings is None:
        return None
    (found,) = settings.values()
    return float(found.lora_alpha / found.r)


def merge_lora(model: Hubert) -> None:
    """Add the products of the matrices to the weights, and remove them. Without LoRA nothing
    happens.
    """
    if lora_scale(model) is None:
        return
    layers = import_peft().tuners.lora
    for layer in model.context_encoder.layers:
        for place in PLACES.values():
            part, name = place.split(".")
            parent: Any = getattr(layer, part)
            module = getattr(parent, name)
            if isinstance(module, layers.LoraLayer):
                module.merge(safe_merge=True)
                setattr(parent, name, module.get_base_layer())
    del model.peft_config


def import_peft() -> Any:
    """The module. Raises ConfigError where it is not installed."""
    try:
        import peft
    except ImportError as error:
        raise ConfigError(
            "lora.rank above 0 needs peft: pip install 'peft>=0.17' (or the extra lora of this "
            "package), or set lora.rank=0"
        ) from error
    return peft
