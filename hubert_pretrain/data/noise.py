"""Noise to add to speech: the audio files below a folder (MUSAN, DNS, one's own), or a prepared corpus. S samples."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import numpy as np

from hubert_pretrain.data import audio
from hubert_pretrain.data.audio import Waveform
from hubert_pretrain.data.corpora.common import audio_below
from hubert_pretrain.data.corpus import MANIFEST, Corpus
from hubert_pretrain.errors import DataError


class Noise(Protocol):
    """Numbered recordings."""

    def __len__(self) -> int: ...

    def num_samples(self, number: int) -> int:
        """Length of a recording at 16 kHz."""
        ...

    def read(self, number: int, start: int, num_samples: int) -> Waveform:
        """A stretch of it, (S,) at 16 kHz, mono."""
        ...


class NoiseFolder:
    """Every audio file below a folder, in the order of their names."""

    def __init__(self, root: Path) -> None:
        self.paths = sorted(str(path) for path in audio_below(root))

    def __len__(self) -> int:
        return len(self.paths)

    def num_samples(self, number: int) -> int:
        """From the header of the file."""
        with audio.open_audio(self.paths[number]) as file:
            return audio.resampled_length(file.frames, file.samplerate)

    def read(self, number: int, start: int, num_samples: int) -> Waveform:
        """Raises DataError when the file holds less than its header says."""
        waveform = audio.read(self.paths[number], start, num_samples)
        if len(waveform) != num_samples:
            found = f"{len(waveform)} samples at {start}, expected {num_samples}"
            raise DataError(f"{self.paths[number]}: {found} by its header; it is truncated, replace or remove it from the noise folder")
        return waveform


class NoiseCorpus:
    """Every row of a prepared corpus (the folder of a stage `prepare`), so that noise may lie in shards or in segments."""

    def __init__(self, corpus: Corpus) -> None:
        self.corpus = corpus

    def __len__(self) -> int:
        return len(self.corpus.manifest)

    def num_samples(self, number: int) -> int:
        """From the manifest."""
        return int(self.corpus.manifest.num_samples[number])

    def read(self, number: int, start: int, num_samples: int) -> Waveform:
        """See `Corpus.read`."""
        return self.corpus.read(number, start, num_samples)


def open_noise(path: str | Path) -> Noise:
    """Noise of a folder: a prepared corpus when it holds a manifest.arrow, else the audio files below it.

    Raises DataError when there is no such folder, or nothing in it.
    """
    root = Path(path).expanduser().absolute()
    if not root.is_dir():
        raise DataError(f"{root}: no such folder of noise; set augment.noise to a folder of audio files or of a prepared corpus")
    noise: Noise = NoiseCorpus(Corpus.open(root)) if (root / MANIFEST).is_file() else NoiseFolder(root)
    if not len(noise):
        raise DataError(f"{root}: no audio in this folder of noise, expected {', '.join(audio.SUFFIXES)}; set augment.noise to another one")
    return noise


def draw(noise: Noise, generator: np.random.Generator, num_samples: int) -> Waveform:
    """A random stretch (S,) of a random recording; one that is too short is repeated from a random sample on."""
    number = int(generator.integers(len(noise)))
    available = noise.num_samples(number)
    if available >= num_samples:
        return noise.read(number, int(generator.integers(available - num_samples + 1)), num_samples)
    whole = noise.read(number, 0, available)
    return np.resize(np.roll(whole, -int(generator.integers(max(1, available)))), num_samples)
