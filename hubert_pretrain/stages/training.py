"""The Lightning trainer of a training stage (`pretrain`, `spin`, `finetune`)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L

from hubert_pretrain.config import compose
from hubert_pretrain.config.schema import PretrainConfig, Recipe, TrainerConfig, TrainingConfig
from hubert_pretrain.distributed import accumulation
from hubert_pretrain.stages.longer import decay_start
from hubert_pretrain.stages.runner import versions
from hubert_pretrain.training.ema import EMA
from hubert_pretrain.training.loggers import Guarded, logger_arguments
from hubert_pretrain.training.sharding import SHARDED
from hubert_pretrain.training.trainer import build_trainer


def stage_trainer(
    recipe: Recipe,
    config: TrainingConfig,
    folder: Path,
    *,
    stage: str,
    micro_batches: int,
    inputs: Mapping[str, Any] | None = None,
    extra: Mapping[str, Any] | None = None,
    callbacks: Sequence[L.Callback] = (),
) -> L.Trainer:
    """The trainer of a stage.

    Each checkpoint stores which recipe, versions and inputs it comes from.

    Args:
        folder: gets checkpoints and logs.
        micro_batches: of a step, over all devices.
        inputs: fingerprints of codebook and targets, as plain values.
        extra: of the checkpoint that the stage writes at its end, as plain JSON.
    """
    hardware = _hardware(recipe, config)
    loggers = [
        Guarded(compose.build(node, **logger_arguments(folder, f"{recipe.name}/{stage}")))
        for node in (recipe.logger or {}).values()
    ]
    ema = [EMA(config.ema_decay)] if config.ema_decay > 0 else []
    return build_trainer(
        folder,
        hardware,
        steps=config.steps,
        accumulate=accumulation(micro_batches, hardware.devices * hardware.num_nodes),
        valid_every_steps=config.valid_every_steps,
        checkpoint_every_steps=config.checkpoint_every_steps,
        checkpoint_every_minutes=config.checkpoint_every_minutes,
        keep_step=decay_start(config, config.steps),
        keep_best=config.keep_best,
        about={
            "recipe": dataclasses.asdict(recipe),
            "stage": stage,
            "inputs": dict(inputs or {}),
            "extra": dict(extra or {}),
            "versions": versions(),
        },
        loggers=loggers,
        callbacks=[*ema, *callbacks],
    )


def _hardware(recipe: Recipe, config: TrainingConfig) -> TrainerConfig:
    """The recipe's, but under fsdp or hsdp only pretraining shards its weights. A fine-tuned
    network fits on one device, and predicts on each without the others; Spin trains few layers.
    """
    if not isinstance(config, PretrainConfig) and recipe.trainer.strategy in SHARDED:
        return dataclasses.replace(recipe.trainer, strategy="ddp")
    return recipe.trainer
