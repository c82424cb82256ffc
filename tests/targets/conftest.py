"""A prepared corpus of generated audio with phone alignments, as stage `prepare` would leave it."""

from __future__ import annotations

import faulthandler
import multiprocessing
from collections.abc import Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import pytest
import soundfile

from hubert_pretrain.data.alignment import write_alignments
from hubert_pretrain.data.corpus import Corpus
from hubert_pretrain.data.manifest import Utterance, write_manifest

PHONE_SAMPLES = 3200

CLEAN_PROCESSES = multiprocessing.get_context("forkserver")
"""Starts processes from a server that has imported everything and computed nothing. A fork of this
process would not do: after MKL has used several threads, its FFT never returns in a fork."""
CLEAN_PROCESSES.set_forkserver_preload(
    ["hubert_pretrain.stages.cluster", "hubert_pretrain.stages.label", "sklearn.cluster"]
)

HANG_SECONDS = 600.0


def end_when_hanging() -> None:
    """For the beginning of a process: one that hangs prints the stacks of its threads and ends.

    The test waits for it without a limit of its own. A limit there fails on a loaded machine, where
    processes that compute for a second may take minutes to be served, and says nothing about a
    process that really hangs.
    """
    faulthandler.dump_traceback_later(HANG_SECONDS, exit=True)


def exit_codes(processes: Sequence[BaseProcess]) -> list[int | None]:
    """Waits for all processes."""
    for process in processes:
        process.join()
    return [process.exitcode for process in processes]


def make_corpus(folder: Path, utterances: int = 12) -> Corpus:
    """Each phone is a tone of its own, so that MFCC clusters have something to find. The last
    utterance has no alignment.
    """
    folder.mkdir(parents=True, exist_ok=True)
    made = []
    phones = {}
    for number in range(utterances):
        generator = np.random.default_rng(number)
        spoken = generator.integers(0, 4, 5 + number % 4)
        time = np.arange(PHONE_SAMPLES) / 16_000
        tones = np.concatenate(
            [0.3 * np.sin(2 * np.pi * (300 + 500 * phone) * time) for phone in spoken]
        )
        waveform = (tones + 0.01 * generator.normal(size=tones.shape))[
            : len(tones) - 37 * number
        ].astype(np.float32)
        path = folder / f"{number}.wav"
        soundfile.write(path, waveform, 16_000, subtype="FLOAT")
        split = ("train", "train", "valid", "test")[number % 4]
        made.append(
            Utterance(
                id=f"utterance-{number:03}", path=str(path), num_samples=len(waveform), split=split
            )
        )
        phones[made[-1].id] = [
            ("abcd"[phone], i * PHONE_SAMPLES, (i + 1) * PHONE_SAMPLES)
            for i, phone in enumerate(spoken)
        ]
    ordered = write_manifest(folder / "manifest.arrow", made)
    write_alignments(
        folder / "alignments.arrow",
        [(row, phones[ordered[row].id]) for row in range(len(ordered) - 1)],
    )
    return Corpus.open(folder)


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    return make_corpus(tmp_path / "corpus")
