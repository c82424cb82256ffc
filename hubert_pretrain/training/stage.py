"""From a recipe to a trainer: what the stages that train, `pretrain` and `finetune`, have in common."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import lightning as L

from hubert_pretrain import compose
from hubert_pretrain.config import FinetuneConfig, PretrainConfig, Recipe
from hubert_pretrain.training.loggers import logger_arguments
from hubert_pretrain.training.trainer import accumulation, build_trainer

_NOT_LIGHTNINGS = ("loader_workers", "attention", "recompute")
"""Fields of TrainerConfig that others read: the loader and the network."""


def trainer_of(
    recipe: Recipe,
    config: PretrainConfig | FinetuneConfig,
    folder: Path,
    *,
    stage: str,
    micro_batches: int,
    callbacks: Sequence[L.Callback] = (),
) -> L.Trainer:
    """The trainer of a stage, whose steps are `micro_batches` micro-batches over all devices; checkpoints and logs lie in `folder`."""
    return build_trainer(
        folder,
        steps=config.steps,
        accumulate=accumulation(micro_batches, recipe.trainer.devices * recipe.trainer.num_nodes),
        valid_every_steps=config.valid_every_steps,
        checkpoint_every_steps=config.checkpoint_every_steps,
        loggers=[compose.build(node, **logger_arguments(folder, f"{recipe.name}/{stage}")) for node in (recipe.logger or {}).values()],
        callbacks=callbacks,
        **{name: value for name, value in vars(recipe.trainer).items() if name not in _NOT_LIGHTNINGS},
    )
