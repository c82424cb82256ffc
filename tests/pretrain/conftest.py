"""A corpus of noise with targets, as finished artefacts in a workspace: enough for everything that
pretraining does.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from hubert_pretrain.clustering.codebook import Codebook
from hubert_pretrain.clustering.codebook_set import CodebookSet
from hubert_pretrain.config.schema import (
    IterationConfig,
    LossConfig,
    PretrainConfig,
    Recipe,
    TrainerConfig,
)
from hubert_pretrain.data.alignment import write_alignments
from hubert_pretrain.data.manifest import Manifest, Utterance, write_manifest
from hubert_pretrain.files import write_json
from hubert_pretrain.frames import MODEL_GRID, SAMPLE_RATE
from hubert_pretrain.model.config import HubertConfig
from hubert_pretrain.pipeline.workspace import FORMAT, META, Workspace
from hubert_pretrain.targets.writer import TargetWriter

CLUSTERS = 5


def make_corpus(folder: Path, lengths: Sequence[float] = ()) -> Manifest:
    """`lengths`: in seconds; none: 28 random ones."""
    draw = np.random.default_rng(0)
    utterances = []
    for number in range(len(lengths) or 28):
        seconds = lengths[number] if lengths else draw.uniform(0.8, 1.6)
        num_samples = int(seconds * SAMPLE_RATE)
        waveform = (0.1 * draw.standard_normal(num_samples)).astype(np.float32)
        path = folder / "audio" / f"u{number:02d}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, waveform, SAMPLE_RATE, subtype="FLOAT")
        split = "valid" if number % 7 == 0 else "train"
        mean = float(waveform.mean())
        variance = float(waveform.var())
        utterances.append(
            Utterance(
                id=f"u{number:02d}",
                path=str(path),
                num_samples=num_samples,
                split=split,
                mean=mean,
                variance=variance,
            )
        )
    write_manifest(folder / "manifest.arrow", utterances)
    return Manifest.open(folder)


def make_targets(folder: Path, manifest: Manifest) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    codebook = CodebookSet.of(Codebook(torch.eye(CLUSTERS), {"kind": "test"}, MODEL_GRID))
    writer = TargetWriter.create(folder, manifest, codebook)
    draw = np.random.default_rng(1)
    for block in writer.pending():
        frames = MODEL_GRID.num_frames(manifest.num_samples[writer.rows(int(block))])
        writer.write(int(block), [draw.integers(CLUSTERS, size=n) for n in frames])


def make_workspace(root: Path, lengths: Sequence[float] = ()) -> Workspace:
    """Finished `prepare` and `it1/label`. `lengths`: see `make_corpus`."""
    workspace = Workspace(root)
    make_targets(workspace.folder("it1/label"), make_corpus(workspace.folder("prepare"), lengths))
    for stage, facts in (
        ("prepare", {}),
        ("it1/label", {"unigram_entropy_nats": float(np.log(CLUSTERS))}),
    ):
        write_json(
            workspace.folder(stage) / META, {"format": FORMAT, "fingerprint": stage, "facts": facts}
        )
    return workspace


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """`make_workspace`. Shared by the tests, which only read it."""
    return make_workspace(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="session")
def aligned(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """As `prepared`, with phones: tenths of a second of "a", "b", "c", and nothing in the last of
    each utterance.
    """
    workspace = Workspace(tmp_path_factory.mktemp("aligned"))
    folder = workspace.folder("prepare")
    manifest = make_corpus(folder)
    tenth = SAMPLE_RATE // 10
    make_targets(workspace.folder("it1/label"), manifest)
    lengths = [int(length) // tenth - 1 for length in manifest.num_samples]
    rows = [
        (row, [("abc"[n % 3], n * tenth, (n + 1) * tenth) for n in range(count)])
        for row, count in enumerate(lengths)
    ]
    write_alignments(folder / "alignments.arrow", rows)
    for stage, facts in (("prepare", {}), ("it1/label", {"unigram_entropy_nats": math.log(5)})):
        write_json(
            workspace.folder(stage) / META, {"format": FORMAT, "fingerprint": stage, "facts": facts}
        )
    return workspace


def model_config(**changes: object) -> HubertConfig:
    values = {
        "conv_dim": [8] * 7,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "num_conv_pos_embeddings": 8,
        "num_conv_pos_embedding_groups": 2,
        "projection_size": 8,
        "layerdrop": 0.3,
    }
    return HubertConfig(**{**values, **changes})  # type: ignore[arg-type]


def make_recipe(
    *, trainer: dict[str, object] | None = None, logger: object = None, **changes: object
) -> Recipe:
    """A recipe of eight steps; keyword arguments change its `PretrainConfig`."""
    pretrain = PretrainConfig(
        steps=8,
        batch_seconds=8,
        micro_batch_seconds=4,
        learning_rate=3e-3,
        min_seconds=0.5,
        max_crop_seconds=1.2,
        max_shapes=2,
        loss=LossConfig(unmasked_weight=0.5),
        log_every_steps=2,
        valid_every_steps=100,
        checkpoint_every_steps=3,
    )
    changes_of_fields: Any = changes
    changed = dataclasses.replace(pretrain, **changes_of_fields)
    hardware = TrainerConfig(accelerator="cpu", precision="32-true", loader_workers=0, threads=1)
    csv = {"csv": {"_target_": "hubert_pretrain.training.loggers.CsvLogger"}}
    return Recipe(
        name="test",
        work_dir="unused",
        model=model_config(),
        iterations={"it1": IterationConfig(pretrain=changed)},
        trainer=dataclasses.replace(hardware, **(trainer or {})),  # type: ignore[arg-type]
        logger=csv if logger is None else logger,
    )


@pytest.fixture
def recipe() -> Callable[..., Recipe]:
    """`make_recipe`."""
    return make_recipe
