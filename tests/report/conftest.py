"""A run of the smoke recipe with a prepared corpus of tones, targets of two iterations, a training
and a task, as the stages leave them.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from hubert_pretrain import run
from hubert_pretrain.clustering.codebook import Codebook
from hubert_pretrain.clustering.codebook_set import CodebookSet
from hubert_pretrain.config import compose
from hubert_pretrain.config.schema import Recipe
from hubert_pretrain.data.alignment import write_alignments
from hubert_pretrain.data.corpus import Corpus
from hubert_pretrain.data.manifest import Utterance, write_manifest
from hubert_pretrain.files import write_json, write_text
from hubert_pretrain.frames import MODEL_GRID, SAMPLE_RATE
from hubert_pretrain.pipeline.workspace import FORMAT, Workspace
from hubert_pretrain.targets.writer import TargetWriter

CLUSTERS = 6
UTTERANCES = 20
EVIL = "<script>window.evil = 1</script>"
"""A name that must stay a name."""


def seal(workspace: Workspace, stage: str, **facts: Any) -> None:
    """The meta.json of a finished stage."""
    meta = {"format": FORMAT, "fingerprint": stage, "stage": stage, "facts": facts, "config": {}}
    more = {"inputs": {}, "seconds": 61.0, "finished": "2026-11-30T10:00:00+0000"}
    versions = {"versions": {"torch": "2.14"}}
    write_json(workspace.folder(stage) / "meta.json", meta | more | versions)


def prepare(workspace: Workspace, *, aligned: bool) -> Corpus:
    """Tones of one second; phones `a` and `b` in halves."""
    folder = workspace.folder("prepare")
    (folder / "audio").mkdir(parents=True)
    utterances = []
    for number in range(UTTERANCES):
        time = np.arange(SAMPLE_RATE) / SAMPLE_RATE
        waveform = (0.2 * np.sin(2 * np.pi * (200 + 50 * number) * time)).astype(np.float32)
        path = folder / "audio" / f"u{number:02d}.wav"
        soundfile.write(path, waveform, SAMPLE_RATE)
        utterances.append(
            Utterance(
                id=f"u{number:02d}",
                path=str(path),
                split="train" if number < 12 else "test",
                num_samples=SAMPLE_RATE,
                source_rate=SAMPLE_RATE,
                speaker=EVIL if number % 2 else "anna",
                text=f"HELLO {EVIL}",
            )
        )
    write_manifest(folder / "manifest.arrow", utterances)
    if aligned:
        phones = [(row, [("a", 0, 8000), ("b", 8000, 16000)]) for row in range(UTTERANCES)]
        write_alignments(folder / "alignments.arrow", phones)
    write_json(
        folder / "card.json",
        {
            "hours": 0.01,
            "utterances": UTTERANCES,
            "speakers": 2,
            "splits": {"train": {"utterances": 12, "hours": 0.006, "speakers": 2}},
            "length_seconds": {"min": 1.0, "median": 1.0, "max": 1.0},
            "quarantined": {"utterances": 1},
        },
    )
    seal(workspace, "prepare", utterances=UTTERANCES, hours=0.01)
    return Corpus.open(folder)


def label(
    workspace: Workspace, name: str, corpus: Corpus, *, pnmi: float = 0.4, k: int = CLUSTERS
) -> None:
    """Units 0 to 2 in the first half of each utterance, 3 to 5 in the second. k: what the facts
    say.
    """
    codebook = CodebookSet.of(Codebook(torch.eye(CLUSTERS), {"kind": "test"}, MODEL_GRID))
    workspace.folder(f"{name}/cluster").mkdir(parents=True)
    codebook.save(workspace.folder(f"{name}/cluster"))
    seal(workspace, f"{name}/cluster", n_clusters=CLUSTERS)
    folder = workspace.folder(f"{name}/label")
    folder.mkdir(parents=True)
    writer = TargetWriter.create(folder, corpus.manifest, codebook)
    draw = np.random.default_rng(1)
    for block in writer.pending():
        frames = MODEL_GRID.num_frames(corpus.manifest.num_samples[writer.rows(int(block))])
        halves = [np.repeat([0, 3], [n // 2, n - n // 2]) for n in frames]
        writer.write(int(block), [half + draw.integers(3, size=len(half)) for half in halves])
    facts = {"n_clusters": k, "pnmi": pnmi, "unigram_entropy_nats": 1.8}
    seal(workspace, f"{name}/label", **facts)


def train(workspace: Workspace, stage: str, rows: int = 5) -> None:
    """Curves of a training."""
    lines = ["step,loss,loss/masked,accuracy/masked,valid/loss/masked,valid/any_score"]
    lines += [f"{10 * step},{3 / step},{2 / step},{0.1 * step},," for step in range(1, rows)]
    lines += [f"{10 * rows},{3 / rows},{2 / rows},{0.1 * rows},0.9,0.7"]
    write_text(workspace.folder(stage) / "logs" / "metrics.csv", "\n".join(lines) + "\n")
    seal(workspace, stage, masked_loss_nats=0.9, masked_accuracy=0.5, wer=0.25)


def score(workspace: Workspace, *, errors: int = 1) -> None:
    """The evaluation of the test split: one utterance with errors."""
    counts = {"deletions": 0, "insertions": 0}
    worst = {"id": "u13", "reference": f"HELLO {EVIL}", "hypothesis": f"HELL {EVIL}"}
    worst |= {"wer": errors / 2, "words": 2, "substitutions": errors} | counts
    right = {"id": "u14", "reference": "A B", "hypothesis": "A B", "wer": 0.0, "words": 2}
    right |= {"substitutions": 0} | counts
    lines = [json.dumps(each) for each in (right, worst)]
    folder = workspace.folder("evaluate/asr/test")
    write_text(folder / "utterances.jsonl", "\n".join(lines) + "\n")
    seal(workspace, "evaluate/asr/test", wer=0.25, intervals={"wer": [0.1, 0.4]})


@functools.cache
def composed(*words: str) -> Recipe:
    """The smoke recipe with more words of a command line."""
    return compose.recipe_of(["+recipe=smoke", *words])


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., tuple[Recipe, Workspace]]:
    """`make_run(*words, aligned=..., up_to=...)`: a run of the smoke recipe with more words of a
    command line; it is finished, or ends before a stage.
    """

    def make(
        *words: str,
        name: str = "run",
        aligned: bool = True,
        up_to: str = "",
        errors: int = 1,
        pnmi: float = 0.4,
        k: int = CLUSTERS,
    ) -> tuple[Recipe, Workspace]:
        recipe = dataclasses.replace(composed(*words), work_dir=str(tmp_path / name))
        workspace = Workspace(recipe.work_dir)
        run._write_recipe(workspace, recipe)
        if up_to == "prepare":
            return recipe, workspace
        corpus = prepare(workspace, aligned=aligned)
        for iteration in ("it1", "it2"):
            if up_to == f"{iteration}/label":
                return recipe, workspace
            label(workspace, iteration, corpus, pnmi=pnmi, k=k)
            train(workspace, f"{iteration}/pretrain")
        train(workspace, "finetune/asr", rows=3)
        score(workspace, errors=errors)
        return recipe, workspace

    return make
