"""Training from shards is training from files: the same losses and weights to the last bit, whoever
reads and however few the shards.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from hubert_pretrain.config.schema import Recipe
from hubert_pretrain.data.batching import BucketSampler
from hubert_pretrain.data.corpus import MANIFEST, Corpus
from hubert_pretrain.data.manifest import write_manifest
from hubert_pretrain.data.preparation.scan import scan
from hubert_pretrain.data.shards.writer import convert
from hubert_pretrain.files import write_json
from hubert_pretrain.frames import MODEL_GRID, SAMPLE_RATE
from hubert_pretrain.model.checkpoint import load_model
from hubert_pretrain.model.config import SpanMask
from hubert_pretrain.pipeline.workspace import FORMAT, META, Workspace
from hubert_pretrain.pretrain.dataset import CropSource, MicroBatches
from hubert_pretrain.stages.pretrain import run
from hubert_pretrain.targets.store import TargetStore
from hubert_pretrain.training.dataloading import loader
from hubert_pretrain.training.loggers import read_metrics


@pytest.fixture(scope="module")
def corpora(prepared: Workspace, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Workspace]:
    """One corpus as FLAC files, and in shards of PCM and FLAC; each a workspace with the same
    targets.
    """
    source = Corpus.open(prepared.folder("prepare"))
    home = tmp_path_factory.mktemp("corpora")
    files = home / "files" / "prepare"
    utterances = []
    (files / "audio").mkdir(parents=True)
    for row in range(len(source.manifest)):
        path = files / "audio" / f"{row}.flac"
        soundfile.write(path, source.read(row), SAMPLE_RATE, subtype="PCM_16")
        facts = scan(path)
        utterances.append(
            replace(source.manifest[row], path=str(path), mean=facts.mean, variance=facts.variance)
        )
    write_manifest(files / MANIFEST, utterances)
    corpus = Corpus.open(files)
    megabytes: Any = 0.2
    convert(corpus, home / "pcm" / "prepare", format="pcm", megabytes=megabytes, workers=1)
    convert(
        corpus, home / "flac" / "prepare", format="flac", workers=1
    )  # a single shard of each split
    for name in ("files", "pcm", "flac"):
        shutil.copytree(prepared.folder("it1"), home / name / "it1")
        write_json(
            home / name / "prepare" / META,
            {"format": FORMAT, "fingerprint": "prepare", "facts": {}},
        )
    return {name: Workspace(home / name) for name in ("files", "pcm", "flac")}


def train(
    recipe: Recipe, workspace: Workspace, folder: Path
) -> tuple[list[float], dict[str, torch.Tensor]]:
    folder.mkdir()
    run(recipe, workspace, "it1/pretrain", folder)
    loaded = load_model(folder)
    losses = [
        row["loss/masked"]
        for row in read_metrics(folder / "logs" / "metrics.csv")
        if "loss/masked" in row
    ]
    return losses, {**loaded.model.state_dict(), **loaded.head_state}


def test_the_loss_curve_is_the_same_to_the_last_bit(
    corpora: dict[str, Workspace], recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    def trained(kind: str, workers: int) -> tuple[list[float], dict[str, torch.Tensor]]:
        values = recipe(
            steps=6, log_every_steps=1, valid_every_steps=3, trainer={"loader_workers": workers}
        )
        values.model = replace(values.model, normalize_waveform=True)
        return train(values, corpora[kind], tmp_path / f"{kind}{workers}")

    losses, weights = trained("files", 0)
    assert len(losses) == 6
    assert len(set(losses)) == 6
    for kind, workers in (("pcm", 0), ("flac", 0), ("pcm", 2)):
        found, others = trained(kind, workers)
        assert found == losses
        assert all(torch.equal(others[name], weights[name]) for name in weights)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", ["pcm", "flac"])
def test_every_micro_batch_is_that_of_the_files_from_any_step_on(
    corpora: dict[str, Workspace], kind: str, workers: int
) -> None:
    def items(name: str, numbers: list[int], workers: int) -> list[dict[str, torch.Tensor]]:
        corpus = Corpus.open(corpora[name].folder("prepare"))
        sizes = {
            "batch_seconds": 8,
            "micro_batch_seconds": 4,
            "max_crop_seconds": 1.2,
            "min_seconds": 0.5,
            "max_shapes": 2,
        }
        plan = BucketSampler(
            corpus.manifest.length_sorted("train"),
            grid=MODEL_GRID,
            seed=3,
            masked_frames=lambda frames: frames // 2,
            **sizes,
        )
        spans = SpanMask(probability=0.8, span_frames=5, min_spans=2)
        targets = TargetStore.open(corpora[name].folder("it1/label")).targets
        source = CropSource(
            corpus,
            targets,
            split="train",
            grid=MODEL_GRID,
            normalize=True,
            spans=spans,
            seed=3,
            cache_bytes=0,
        )
        return list(loader(MicroBatches(plan, source), numbers, workers=workers))

    start = int(
        np.random.default_rng(workers).integers(5, 40)
    )  # a resumed run begins anywhere; an epoch has fewer than 10
    numbers = list(range(start, start + 12))
    for expected, found in zip(
        items("files", numbers, 0), items(kind, numbers, workers), strict=True
    ):
        assert expected["index"] == found["index"]
        for name in ("waveform", "targets", "mask"):
            assert torch.equal(expected[name], found[name])
