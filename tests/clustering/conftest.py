"""Speech that layers can be scored on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from hubert_pretrain.data.alignment import write_alignments
from hubert_pretrain.data.corpus import Corpus
from hubert_pretrain.data.manifest import Utterance, write_manifest

PHONE_SAMPLES = 3200


@pytest.fixture(scope="session")
def tones() -> Callable[..., Corpus]:
    """A function that makes a corpus in a folder."""
    return make_corpus


def make_corpus(folder: Path, aligned: bool = True) -> Corpus:
    """Twelve utterances of eight phones, each phone a tone of its own; two speakers, one twice as
    loud.
    """
    folder.mkdir()
    made = []
    phones = {}
    for number in range(12):
        generator = np.random.default_rng(number)
        spoken = generator.permutation(np.repeat(np.arange(4), 2))
        time = np.arange(PHONE_SAMPLES) / 16_000
        tones = np.concatenate(
            [
                0.15 * (1 + number % 2) * np.sin(2 * np.pi * (300 + 500 * phone) * time)
                for phone in spoken
            ]
        )
        waveform = (tones + 0.01 * generator.normal(size=tones.shape)).astype(np.float32)
        path = folder / f"{number}.wav"
        soundfile.write(path, waveform, 16_000, subtype="FLOAT")
        split = "valid" if number % 3 else "train"
        made.append(
            Utterance(
                id=f"u{number:02}",
                path=str(path),
                num_samples=len(waveform),
                split=split,
                speaker=f"s{number % 2}",
            )
        )
        phones[made[-1].id] = [
            ("abcd"[phone], i * PHONE_SAMPLES, (i + 1) * PHONE_SAMPLES)
            for i, phone in enumerate(spoken)
        ]
    ordered = write_manifest(folder / "manifest.arrow", made)
    if aligned:
        write_alignments(
            folder / "alignments.arrow", [(one.row, phones[one.id]) for one in ordered]
        )
    return Corpus.open(folder)
