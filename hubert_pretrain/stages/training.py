"""From a recipe to a trainer: what the stages that train, `pretrain` and `finetune`, have in
common.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L

from hubert_pretrain.config import compose
from hubert_pretrain.config.schema import FinetuneConfig, PretrainConfig, Recipe
from hubert_pretrain.distributed import accumulation
from hubert_pretrain.training.ema import EMA
from hubert_pretrain.training.loggers import Guarded, logger_arguments
from hubert_pretrain.training.trainer import build_trainer

_LIGHTNINGS = (
    "accelerator",
    "devices",
    "num_nodes",
    "gradient_compression",
    "precision",
    "threads",
    "progress_bar",
)
_RELIABILITY = ("signals", "time_limit_minutes", "hang_minutes")
"""Fields of TrainerConfig that `build_trainer` takes as they are; others are for the loader, the
network, the module.
"""
_SAVING = {
    "keep_checkpoints": "keep",
    "keep_every_steps": "keep_every_steps",
    "keep_best": "keep_best",
    "async_checkpoints": "asynchronous",
    "max_failed_checkpoints": "max_failures",
}
"""Fields of TrainerConfig, and what `saving.Policy` calls them."""


def trainer_of(
    recipe: Recipe,
    config: PretrainConfig | FinetuneConfig,
    folder: Path,
    *,
    stage: str,
    micro_batches: int,
    inputs: Mapping[str, Any] | None = None,
    callbacks: Sequence[L.Callback] = (),
) -> L.Trainer:
    """The trainer of a stage, whose steps are `micro_batches` micro-batches over all devices;
    checkpoints and logs lie in `folder`.

    Each checkpoint says which recipe, versions and `inputs` (plain values: fingerprints of codebook
    and targets) it comes from.
    """
    trainer = vars(recipe.trainer)
    about = {
        "recipe": dataclasses.asdict(recipe),
        "stage": stage,
        "inputs": dict(inputs or {}),
        "versions": versions(),
    }
    return build_trainer(
        folder,
        steps=config.steps,
        accumulate=accumulation(micro_batches, recipe.trainer.devices * recipe.trainer.num_nodes),
        valid_every_steps=config.valid_every_steps,
        checkpoint_every_steps=config.checkpoint_every_steps,
        loggers=[
            Guarded(compose.build(node, **logger_arguments(folder, f"{recipe.name}/{stage}")))
            for node in (recipe.logger or {}).values()
        ],
        callbacks=[*([EMA(config.ema_decay)] if config.ema_decay > 0 else []), *callbacks],
        saving={ours: trainer[name] for name, ours in _SAVING.items()},
        about=about,
        # A network that is fine-tuned fits on one device, and predicts on each without the others.
        strategy="ddp"
        if isinstance(config, FinetuneConfig) and recipe.trainer.strategy == "fsdp"
        else recipe.trainer.strategy,
        **{name: trainer[name] for name in (*_LIGHTNINGS, *_RELIABILITY)},
    )


def versions() -> dict[str, str]:
    """Of Python and of what computes."""
    packages = ("hubert-pretrain", "torch", "lightning", "numpy")
    return {"python": platform.python_version()} | {
        name: importlib.metadata.version(name) for name in packages
    }
