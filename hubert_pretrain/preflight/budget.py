"""Disk and memory that each pending stage needs, estimated from the size of the corpus. D width."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from hubert_pretrain.config.schema import (
    ClusteringConfig,
    PretrainConfig,
    SpinConfig,
    TrainerConfig,
    TrainingConfig,
)
from hubert_pretrain.files import size_in_bytes
from hubert_pretrain.frames import FrameGrid, samples
from hubert_pretrain.model.config import HubertConfig
from hubert_pretrain.pipeline.plan import TRAININGS, Stage
from hubert_pretrain.pipeline.workspace import Workspace
from hubert_pretrain.preflight import training_cost
from hubert_pretrain.preflight.training_cost import FLOAT, Training
from hubert_pretrain.training.limits import CACHE_BYTES
from hubert_pretrain.training.sharding import shard_size

WIDEST = 80
"""Largest D of features that no network makes: log-mel energies."""
TARGET_BYTES = 2
"""Bytes of one target (targets/store.py)."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """The values of a pending stage that its needs depend on."""

    stage: str
    grid: FrameGrid
    written: int = 0
    """Bytes that an interrupted run has written."""
    dim: int = 0
    """D of the frames to cluster; 0: no clustering."""
    fraction: float = 0.0
    max_hours: float = 0.0
    memory_bytes: int = 0
    """Memory limit of the clustering process (`clustering.max_memory_gb`)."""
    labels: bool = False
    """True when it writes targets."""
    training: Training | None = None
    """The training, if it is one."""


@dataclass(frozen=True, kw_only=True)
class Audio:
    """Samples of a corpus at 16 kHz; zeros before it was prepared."""

    all: int = 0
    train: int = 0
    valid: int = 0

    @property
    def unknown(self) -> str:
        """A note about the parts that an estimate leaves out."""
        return "" if self.all else "more is known after prepare"


def audio_of(workspace: Workspace) -> Audio:
    """The size of the corpus, from the facts of `prepare`: no table is read."""
    facts = workspace.artefact("prepare").facts if workspace.is_done("prepare") else {}
    hours = {split: float(found["hours"]) for split, found in facts.get("splits", {}).items()}
    train, valid = (samples(3600 * hours.get(split, 0.0)) for split in ("train", "valid"))
    return Audio(all=samples(3600 * sum(hours.values())), train=train, valid=valid)


def work_of(stage: Stage, model: HubertConfig, workspace: Workspace) -> Work:
    """The needs of a stage. Of checkpoints from elsewhere the size is unknown: they are taken to be
    like the model of the recipe."""
    work = Work(
        stage=stage.name,
        grid=model.grid,
        labels=stage.verb == "label",
        written=size_in_bytes(workspace.partial_folder(stage.name)),
    )
    if stage.verb == "cluster":
        return _clustering(work, stage, model)
    if stage.verb in TRAININGS:
        return _training(work, stage, model)
    return work


def _clustering(work: Work, stage: Stage, model: HubertConfig) -> Work:
    from hubert_pretrain.clustering.sample import hours_limit

    config: ClusteringConfig = stage.sections["clustering"]
    from_network = stage.sections["features"].get("checkpoint")
    return replace(
        work,
        dim=model.hidden_size if from_network else WIDEST,
        fraction=config.fraction,
        max_hours=hours_limit(config.max_hours, config.max_frames, model.grid),
        memory_bytes=config.max_memory_bytes,
    )


def _training(work: Work, stage: Stage, model: HubertConfig) -> Work:
    config: TrainingConfig = stage.sections[stage.verb]
    views = 1
    learning_layers = None
    if isinstance(config, PretrainConfig):
        longest = config.max_crop_seconds
        freezes_encoder = model.conv_gradient_scale == 0
    elif isinstance(config, SpinConfig):
        longest = config.max_crop_seconds
        freezes_encoder = True
        views = 2
        learning_layers = config.n_layers
    else:
        longest = config.micro_batch_seconds
        freezes_encoder = config.conv_gradient_scale == 0
    training = Training(
        stage=stage.name,
        model=model,
        steps=config.steps,
        batch_seconds=views * config.batch_seconds,
        micro_batch_seconds=views * config.micro_batch_seconds,
        crop_seconds=longest,
        freezes_encoder=freezes_encoder,
        learning_layers=learning_layers,
    )
    return replace(work, training=training)


def sharded(training: Training, trainer: TrainerConfig) -> Training:
    """The training as the processes share its weights. (Only pretraining does.)"""
    if training.stage.startswith(("finetune/", "spin/")):
        return training
    return replace(
        training,
        shard_size=shard_size(trainer),
        whole_gradients=trainer.reduce_gradients == "step",
    )


def disk(works: Sequence[Work], audio: Audio, *, checkpoints: int) -> dict[str, int]:
    """Bytes that each stage is still to write, at most at one time. A training keeps so many
    checkpoints."""
    return {work.stage: max(0, _disk(work, audio, checkpoints) - work.written) for work in works}


def memory(
    works: Sequence[Work], audio: Audio, *, processes: int, on_cpu: str | None
) -> dict[str, int]:
    """Bytes of memory that each stage holds.

    Args:
        works: the stages.
        audio: size of the corpus.
        processes: that decode audio for a training.
        on_cpu: precision of a training on the CPU, whose network lies in this memory too; None: it
            trains on a GPU.
    """
    needs = {}
    for work in works:
        if work.dim:
            needs[work.stage] = min(_sample(work, audio), work.memory_bytes)
        if work.training is not None:
            splits = [FLOAT * audio.train, FLOAT * audio.valid]
            cached = sum(size for size in splits if size <= CACHE_BYTES)
            network = 0
            if on_cpu is not None:
                network = training_cost.training_bytes(work.training, precision=on_cpu)
            needs[work.stage] = max(1, processes) * cached + network
    return needs


def _disk(work: Work, audio: Audio, checkpoints: int) -> int:
    if work.dim:
        from hubert_pretrain.clustering.memory import free_bytes

        size = _sample(work, audio)
        return size if size > free_bytes(work.memory_bytes) else 0  # it lies in memory otherwise
    if work.labels:
        return TARGET_BYTES * (audio.all // work.grid.hop)
    if work.training is not None:
        return training_cost.checkpoint_bytes(work.training.model, checkpoints)
    return 0


def clustered_samples(work: Work, audio: Audio) -> int:
    """Samples of audio that a codebook is fitted on: `clustering.fraction` of the training audio,
    at least an hour, at most `max_hours`.
    """
    return min(
        audio.train,
        max(round(work.fraction * audio.train), samples(3600)),
        samples(3600 * work.max_hours),
    )


def _sample(work: Work, audio: Audio) -> int:
    """Bytes of the frames that a codebook is fitted on."""
    return FLOAT * work.dim * (clustered_samples(work, audio) // work.grid.hop)


def targets(nodes: Mapping[str, Any], verbs: set[str]) -> list[str]:
    """Import paths of the classes that stages of these verbs build. `nodes`: parts of the recipe,
    by verb.
    """
    return re.findall(r"'_target_': '([\w.]+)'", str([nodes.get(verb) for verb in sorted(verbs)]))
