"""A small corpus of tones: each letter is a pitch and each speaker a timbre, so that both can be
learnt.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from hubert_pretrain.config.schema import FinetuneConfig, Recipe, TrainerConfig
from hubert_pretrain.data.corpus import Corpus
from hubert_pretrain.data.manifest import Utterance, write_manifest
from hubert_pretrain.frames import SAMPLE_RATE
from hubert_pretrain.model.checkpoint import save_model
from hubert_pretrain.model.config import HubertConfig, SpanMask
from hubert_pretrain.model.heads import CodebookHead
from hubert_pretrain.model.hubert import Hubert
from hubert_pretrain.pipeline.workspace import Workspace
from hubert_pretrain.stages import finetune

LETTER_SAMPLES = SAMPLE_RATE // 8

TINY = HubertConfig(
    conv_dim=[8] * 7,
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=32,
    num_conv_pos_embeddings=8,
    num_conv_pos_embedding_groups=2,
    projection_size=8,
)


def _tones(text: str, buzz: bool) -> np.ndarray:
    time = np.arange(LETTER_SAMPLES) / SAMPLE_RATE
    pitches = {letter: 300 + 400 * number for number, letter in enumerate("ABCD")}
    waves = np.concatenate([np.sin(2 * np.pi * pitches.get(letter, 0) * time) for letter in text])
    return (0.1 * (np.sign(waves) if buzz else waves)).astype(np.float32)


def split_of(number: int) -> str:
    if number % 6 < 2:
        return "test"
    return "valid" if number % 8 < 4 else "train"


def make_corpus(
    folder: Path, *, utterances: int = 24, **changes: Callable[[int], str] | str
) -> Corpus:
    """A prepared corpus of all three splits. ``changes`` replace a column, by the number of the
    utterance.
    """
    folder.mkdir(parents=True, exist_ok=True)
    made = []
    for number in range(utterances):
        generator = np.random.default_rng(number)
        text = (
            "".join("ABCD "[letter] for letter in generator.integers(0, 5, 5 + number % 4)).strip()
            + "A"
        )
        waveform = _tones(text, buzz=number % 2 == 1)
        path = folder / f"{number}.wav"
        soundfile.write(path, waveform, SAMPLE_RATE, subtype="FLOAT")
        utterance = Utterance(
            id=f"utterance-{number:03}",
            path=str(path),
            num_samples=len(waveform),
            speaker=("pure", "buzzing")[number % 2],
            text=text,
            split=split_of(number),
            mean=float(waveform.mean()),
            variance=float(waveform.var()),
        )
        values = {
            name: change(number) if callable(change) else change for name, change in changes.items()
        }
        made.append(dataclasses.replace(utterance, **values))
    write_manifest(folder / "manifest.arrow", made)
    return Corpus.open(folder)


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    return make_corpus(tmp_path / "corpus")


@pytest.fixture
def corpus_with(tmp_path: Path) -> Callable[..., Corpus]:
    return lambda **changes: make_corpus(tmp_path / "corpus", **changes)


@pytest.fixture
def tiny() -> HubertConfig:
    return TINY


@pytest.fixture
def workspace(tmp_path: Path, corpus: Corpus, tiny: HubertConfig) -> Workspace:
    """A run that has a corpus and a pretrained encoder."""
    return make_workspace(tmp_path / "run", corpus, tiny)


def make_workspace(root: Path, corpus: Corpus, config: HubertConfig) -> Workspace:
    """A run that takes over this corpus and has a pretrained encoder of this form."""
    workspace = Workspace(root)
    corpus.folder.rename(workspace.begin("prepare", "p", {}).with_name("found"))
    (root / "prepare.partial" / "partial.json").rename(root / "found" / "partial.json")
    (root / "prepare.partial").rmdir()
    (root / "found").rename(root / "prepare.partial")
    workspace.finish("prepare", {"fingerprint": "p", "facts": {}})
    torch.manual_seed(0)
    head = CodebookHead(config.hidden_size, 8, 5)
    save_model(workspace.begin("it2/pretrain", "q", {}), Hubert(config), head=head)
    workspace.finish("it2/pretrain", {"fingerprint": "q", "facts": {}})
    return workspace


def run_task(
    workspace: Workspace,
    name: str,
    task: dict[str, Any],
    trainer: dict[str, Any] | None = None,
    model: HubertConfig | None = None,
    **changes: Any,
) -> dict[str, Any]:
    """Run the stage finetune/NAME: six steps, unless `changes` says otherwise."""
    values: dict[str, Any] = {
        "checkpoint": "it2/pretrain",
        "steps": 6,
        "batch_seconds": 6.0,
        "micro_batch_seconds": 3.0,
        "learning_rate": 0.01,
        "freeze_encoder_steps": 2,
        "mask": SpanMask(probability=0.2, span_frames=2, min_spans=1),
        "channel_mask": SpanMask(probability=0.1, span_frames=2, min_spans=0),
        "log_every_steps": 2,
        "valid_every_steps": 3,
        "checkpoint_every_steps": 2,
    }
    recipe = Recipe(
        name="tones",
        logger={"csv": {"_target_": "hubert_pretrain.training.loggers.CsvLogger"}},
        model=model or HubertConfig(),
        finetune={name: FinetuneConfig(task=task, **values | changes)},
        trainer=TrainerConfig(
            accelerator="cpu", loader_workers=0, threads=1, progress_bar=False, **(trainer or {})
        ),
    )
    return finetune.run(
        recipe, workspace, f"finetune/{name}", workspace.begin(f"finetune/{name}", "f", {})
    )
