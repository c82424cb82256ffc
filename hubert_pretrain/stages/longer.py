"""Begin of a finished or interrupted training that goes on with more `steps`."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from hubert_pretrain.config.schema import PretrainConfig, SpinConfig, TrainingConfig
from hubert_pretrain.errors import ArtefactError
from hubert_pretrain.training.optim import (
    Schedule,
    finetuning_schedule,
    pretraining_schedule,
    spin_schedule,
    wsd_decay_start,
)
from hubert_pretrain.training.resilience import checkpoint_io
from hubert_pretrain.training.resilience.checkpoint_callback import remove_later


def begin_again(folder: Path, config: TrainingConfig, steps: int) -> str:
    """Prepare a training of `steps`, done or interrupted, that goes on to `config.steps`. Returns
    where it begins, in words.

    The rate of `wsd` falls in the last steps only, and before that it is the same for any number
    of steps. So that training goes on where the rate began to fall, as if it had never fallen: the
    checkpoints of the fall are removed. Without a checkpoint of before, and with other schedules,
    it goes on from the last one, with the rate that the longer schedule has there.
    """
    checkpoints = folder / checkpoint_io.FOLDER
    if not checkpoint_io.checkpoints(checkpoints):
        return "from its beginning: it has no checkpoint yet"
    last = decay_start(config, steps) or steps
    found = [
        path for path in checkpoint_io.checkpoints(checkpoints) if checkpoint_io.verified(path)
    ]
    if early := [path for path in found if checkpoint_io.step_of(path) <= last]:
        remove_later(checkpoints, last)
        found = early
    if not found:
        raise ArtefactError(
            f"{checkpoints}: every checkpoint is damaged, so the training cannot go on; restore "
            f"steps={steps}, or make it again with redo="
        )
    step = checkpoint_io.step_of(found[-1])
    before = _schedule_of(dataclasses.replace(config, steps=steps))(step)
    now = _schedule_of(config)(step)
    return (
        f"from the checkpoint of step {step}, where the learning rate goes from {before:.0%} to "
        f"{now:.0%} of its peak"
    )


def _schedule_of(config: TrainingConfig) -> Schedule:
    if isinstance(config, PretrainConfig):
        return pretraining_schedule(config)
    if isinstance(config, SpinConfig):
        return spin_schedule(config)
    return finetuning_schedule(config)


def decay_start(config: TrainingConfig, steps: int) -> int:
    """The step at which the fall of `schedule=wsd` begins; 0 for any other schedule."""
    if isinstance(config, PretrainConfig) and config.schedule == "wsd":
        return wsd_decay_start(steps, config.decay_fraction)
    return 0
