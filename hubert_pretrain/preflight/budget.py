"""What the stages that are still to run will write and hold, from the size of the corpus. N frames,
D width.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from hubert_pretrain.files import size_in_bytes
from hubert_pretrain.frames import FrameGrid, samples, seconds
from hubert_pretrain.model.config import HubertConfig
from hubert_pretrain.pipeline.workspace import Workspace
from hubert_pretrain.preflight import training_cost
from hubert_pretrain.preflight.training_cost import FLOAT, Training
from hubert_pretrain.training.limits import CACHE_BYTES, KEPT

WIDEST = 80
"""Width of features that no network makes, at most: log-mel energies."""
TARGET_BYTES = 2
"""Of the target of a frame, targets/store.py."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """A stage that has not run yet, as far as its needs depend on it."""

    stage: str
    grid: FrameGrid
    written: int = 0
    """Bytes that an interrupted run of it has left."""
    dim: int = 0
    """D of the frames that it clusters; 0: it clusters none."""
    fraction: float = 0.0
    max_hours: float = 0.0
    memory_bytes: int = 0
    """What the process that clusters may hold (`clustering.max_memory_gb`)."""
    labels: bool = False
    """Whether it writes targets."""
    training: Training | None = None
    """What it trains."""


@dataclass(frozen=True, kw_only=True)
class Audio:
    """Samples of a corpus at 16 kHz; zeros before it was prepared."""

    all: int = 0
    train: int = 0
    valid: int = 0

    @property
    def unknown(self) -> str:
        """What an estimate leaves out."""
        return "" if self.all else "more is known after prepare"


def audio_of(workspace: Workspace) -> Audio:
    """The corpus of a run, from the facts of `prepare`: however large it is, nothing of it is
    read.
    """
    facts = workspace.artefact("prepare").facts if workspace.is_done("prepare") else {}
    hours = {split: float(found["hours"]) for split, found in facts.get("splits", {}).items()}
    train, valid = (samples(3600 * hours.get(split, 0.0)) for split in ("train", "valid"))
    return Audio(all=samples(3600 * sum(hours.values())), train=train, valid=valid)


def work_of(
    stage: str, verb: str, model: HubertConfig, workspace: Workspace, sections: Mapping[str, Any]
) -> Work:
    """A stage of this run. `sections` are the parts of the recipe that it depends on. A checkpoint
    of another project, whose size is not known yet, is taken to be like the model of the recipe."""
    work = Work(
        stage=stage,
        grid=model.grid,
        labels=verb == "label",
        written=size_in_bytes(workspace.partial_folder(stage)),
    )
    if verb == "cluster":
        clustering = sections["clustering"]
        dim = model.hidden_size if sections["features"].get("checkpoint") else WIDEST
        budget = int(clustering.max_memory_gb * 1e9)
        frames = clustering.max_frames
        max_hours = (
            min(clustering.max_hours, seconds(frames * model.grid.hop) / 3600)
            if frames
            else clustering.max_hours
        )
        return replace(
            work, dim=dim, fraction=clustering.fraction, max_hours=max_hours, memory_bytes=budget
        )
    if verb not in ("pretrain", "finetune"):
        return work
    config = sections[verb]
    longest = getattr(config, "max_crop_seconds", config.micro_batch_seconds)
    sizes = {
        name: getattr(config, name) for name in ("steps", "batch_seconds", "micro_batch_seconds")
    }
    freezes = getattr(config, "conv_gradient_scale", model.conv_gradient_scale) == 0
    return replace(
        work,
        training=Training(
            stage=stage, model=model, crop_seconds=longest, freezes_encoder=freezes, **sizes
        ),
    )


def disk(works: Sequence[Work], audio: Audio) -> dict[str, int]:
    """Bytes that each stage is still to write, at most at one time."""
    return {work.stage: max(0, _disk(work, audio) - work.written) for work in works}


def memory(
    works: Sequence[Work], audio: Audio, *, processes: int, on_cpu: str | None
) -> dict[str, int]:
    """Bytes of memory that each stage holds.

    Args:
        works: the stages. audio: what they read. processes: how many decode audio for a training.
        on_cpu: precision of a network that is trained on the CPU, and so lies in this memory too;
        None: it is trained on a GPU.
    """
    needs = {}
    for work in works:
        if work.dim:
            needs[work.stage] = min(_sample(work, audio), work.memory_bytes)
        if work.training is not None:
            kept = [
                FLOAT * part for part in (audio.train, audio.valid) if FLOAT * part <= CACHE_BYTES
            ]
            network = (
                0
                if on_cpu is None
                else training_cost.training_bytes(work.training, precision=on_cpu)
            )
            needs[work.stage] = max(1, processes) * sum(kept) + network
    return needs


def _disk(work: Work, audio: Audio) -> int:
    if work.dim:
        from hubert_pretrain.clustering.sample import frame_bytes

        size = _sample(work, audio)
        return size if size > frame_bytes(work.memory_bytes) else 0  # it lies in memory otherwise
    if work.labels:
        return TARGET_BYTES * (audio.all // work.grid.hop)
    if work.training is not None:
        return training_cost.checkpoint_bytes(work.training.model, KEPT)
    return 0


def _sample(work: Work, audio: Audio) -> int:
    """Frames that a codebook is fitted on: `clustering.fraction` of the training audio, at least an
    hour, at most `max_hours`.
    """
    heard = min(
        audio.train,
        max(round(work.fraction * audio.train), samples(3600)),
        samples(3600 * work.max_hours),
    )
    return FLOAT * work.dim * (heard // work.grid.hop)


def targets(nodes: Mapping[str, Any], verbs: set[str]) -> list[str]:
    """The `_target_`s in what the stages of these verbs build. `nodes`: verb -> parts of the
    recipe.
    """
    return re.findall(r"'_target_': '([\w.]+)'", str([nodes.get(verb) for verb in sorted(verbs)]))
