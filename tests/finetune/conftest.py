"""A small corpus of tones: each letter is a pitch and each speaker a timbre, so that both can be
learnt.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from hubert_pretrain.data.corpus import Corpus
from hubert_pretrain.data.manifest import Utterance, write_manifest
from hubert_pretrain.frames import SAMPLE_RATE
from hubert_pretrain.model.config import HubertConfig

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
