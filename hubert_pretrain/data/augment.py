"""Data augmentation of training crops: another voice, utterance mixing, additive noise, gain.

B rows, S samples. Mixing follows WavLM (Chen et al. 2022, section III-B). Another voice on the side
of the student, with targets of the clean audio, is one part of ContentVec (Qian et al. 2022,
arXiv:2204.09224).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from hubert_pretrain.data import audio
from hubert_pretrain.data.audio import Waveform
from hubert_pretrain.data.audio_files import USUAL, all_audio_below
from hubert_pretrain.data.config import SpeakerPerturbation
from hubert_pretrain.data.corpus import MANIFEST, Corpus
from hubert_pretrain.data.speaker_perturbation import change_voice, draw_voice
from hubert_pretrain.errors import DataError
from hubert_pretrain.seeds import generator

Waveforms = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """Another voice, then mixing, then noise, then gain, each applied to a random part of the rows
    of a micro-batch.

    A ratio is the energy of the row over that of the added signal, in dB; ranges are (low, high).
    """

    seed: int
    mix_probability: float = 0.0
    """Share of the rows that get a part of another row of the micro-batch, or of the noise."""
    mix_ratio_db: Sequence[float] = (-5.0, 5.0)
    mix_noise_share: float = 0.0
    """Share of the mixed rows that get a part of the noise, not of another row."""
    mix_noise_ratio_db: Sequence[float] = (-5.0, 20.0)
    noise_probability: float = 0.0
    """Share of the rows that get noise from the first sample to the last."""
    noise_ratio_db: Sequence[float] = (5.0, 20.0)
    gain_probability: float = 0.0
    """Share of the rows that are made louder or softer."""
    gain_db: Sequence[float] = (-6.0, 6.0)
    voice_probability: float = 0.0
    """Share of the rows that are heard in another voice."""
    voice: SpeakerPerturbation = field(default_factory=SpeakerPerturbation)
    noise: Noise | None = None

    @property
    def is_active(self) -> bool:
        """True when any probability is above 0."""
        return any(
            (
                self.voice_probability,
                self.mix_probability,
                self.noise_probability,
                self.gain_probability,
            )
        )

    def with_noise(self, folder: str | Path | None) -> Augmentation:
        """The same with the noise of a folder (see `open_noise`), which is opened only if a setting
        uses it.
        """
        is_used = self.noise_probability > 0 or (
            self.mix_probability > 0 and self.mix_noise_share > 0
        )
        if folder is None or not is_used:
            return self
        return replace(self, noise=open_noise(folder))

    def __call__(
        self, waveform: Waveforms, *, index: int, rows: Sequence[int]
    ) -> tuple[Waveforms, NDArray[np.bool_]]:
        """The augmented rows (B, S), and True for those that changed (B,).

        Added parts are always those of clean rows, so the result of a row does not depend on the
        order of the rows. Nothing is clipped: the network takes floats.

        Args:
            waveform: (B, S) crops as recorded, not normalised; not changed.
            index: number of the micro-batch.
            rows: manifest row of each crop.
        """
        augmented = waveform.copy()
        changed = np.zeros(len(waveform), dtype=np.bool_)
        for b, row in enumerate(rows):
            for augment in (self._change_voice, self._mix, self._add_noise, self._gain):
                changed[b] |= augment(augmented, waveform, b, (self.seed, index, row))
        return augmented, changed

    def _change_voice(
        self, augmented: Waveforms, clean: Waveforms, b: int, key: tuple[int, int, int]
    ) -> bool:
        random = generator("voice", *key)
        if random.random() >= self.voice_probability:
            return False
        voice = draw_voice(self.voice, random)
        augmented[b] = change_voice(torch.from_numpy(clean[b]), voice).numpy()
        return True

    def _mix(
        self, augmented: Waveforms, clean: Waveforms, b: int, key: tuple[int, int, int]
    ) -> bool:
        """Adds a part of another row, or of the noise, at most half as long as the row, at a random
        position.
        """
        random = generator("mix", *key)
        if random.random() >= self.mix_probability:
            return False
        with_noise = random.random() < self.mix_noise_share and self.noise is not None
        size = clean.shape[1]
        length = int(random.integers(1, max(2, size // 2 + 1)))
        at, start = random.integers(0, size - length + 1, size=2).tolist()
        if with_noise:
            assert self.noise is not None
            part = draw_noise(self.noise, random, length)
            return _add(
                augmented[b, at : at + length],
                part,
                _power(clean[b]),
                _power(part),
                _uniform(random, self.mix_noise_ratio_db),
            )
        if len(clean) < 2:  # no other row to mix in
            return False
        other = (b + int(random.integers(1, len(clean)))) % len(clean)
        part = clean[other, start : start + length]
        return _add(
            augmented[b, at : at + length],
            part,
            _power(clean[b]),
            _power(clean[other]),
            _uniform(random, self.mix_ratio_db),
        )

    def _add_noise(
        self, augmented: Waveforms, clean: Waveforms, b: int, key: tuple[int, int, int]
    ) -> bool:
        """Adds noise from the first sample to the last."""
        random = generator("noise", *key)
        if self.noise is None or random.random() >= self.noise_probability:
            return False
        part = draw_noise(self.noise, random, clean.shape[1])
        return _add(
            augmented[b],
            part,
            _power(clean[b]),
            _power(part),
            _uniform(random, self.noise_ratio_db),
        )

    def _gain(
        self, augmented: Waveforms, clean: Waveforms, b: int, key: tuple[int, int, int]
    ) -> bool:
        random = generator("gain", *key)
        if random.random() >= self.gain_probability:
            return False
        augmented[b] *= np.float32(10 ** (_uniform(random, self.gain_db) / 20))
        return True


def _uniform(random: np.random.Generator, bounds: Sequence[float]) -> float:
    low, high = bounds
    return random.uniform(low, high)


def _power(waveform: Waveforms) -> float:
    """Mean energy per sample."""
    wide = waveform.astype(np.float64)
    return float(wide @ wide) / max(1, len(wide))


def _add(row: Waveforms, part: Waveforms, power: float, part_power: float, ratio_db: float) -> bool:
    """Adds a part, scaled so that `power` is `ratio_db` above its own, to `row` in place. False,
    and nothing added, when one of the two is silent: then no factor gives the ratio.
    """
    if power == 0.0 or part_power == 0.0:
        return False
    row += np.float32(np.sqrt(power / (10 ** (ratio_db / 10) * part_power))) * part
    return True


class Noise(Protocol):
    """Recordings of noise, by number."""

    def __len__(self) -> int: ...

    def num_samples(self, number: int) -> int:
        """Length of a recording at 16 kHz."""
        ...

    def read(self, number: int, start: int, num_samples: int) -> Waveform:
        """A part of it, (S,) at 16 kHz, mono."""
        ...


class NoiseFolder:
    """Every audio file below a folder, in the order of their names."""

    def __init__(self, root: Path) -> None:
        self.paths = list(map(str, all_audio_below(root)))

    def __len__(self) -> int:
        return len(self.paths)

    def num_samples(self, number: int) -> int:
        """From the header of the file, where it is no estimate."""
        return audio.length(self.paths[number])

    def read(self, number: int, start: int, num_samples: int) -> Waveform:
        """Raises DataError when the file holds less than its header says."""
        waveform = audio.read(self.paths[number], start, num_samples)
        if len(waveform) != num_samples:
            found = f"{len(waveform)} samples at {start}, expected {num_samples}"
            raise DataError(
                f"{self.paths[number]}: {found} by its header; it is truncated, replace it or "
                "remove it from the noise folder"
            )
        return waveform


class NoiseCorpus:
    """The rows of a prepared corpus (the folder of a stage `prepare`): noise in shards, or segments
    of long recordings.
    """

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
    """Noise of a folder: a prepared corpus when it holds a manifest.arrow, else the audio files
    below it.

    Raises DataError when there is no such folder, or nothing in it.
    """
    root = Path(path).expanduser().absolute()
    if not root.is_dir():
        raise DataError(
            f"{root}: no such folder of noise; "
            "set augment.noise to a folder of audio files or of a prepared corpus"
        )
    is_prepared = (root / MANIFEST).is_file()
    noise: Noise = NoiseCorpus(Corpus.open(root)) if is_prepared else NoiseFolder(root)
    if not len(noise):
        raise DataError(
            f"{root}: no audio in this folder of noise, expected {USUAL}; "
            "set augment.noise to another one"
        )
    return noise


def draw_noise(noise: Noise, generator: np.random.Generator, num_samples: int) -> Waveform:
    """A random part (S,) of a random recording. A recording that is too short is repeated, from a
    random sample on.
    """
    number = int(generator.integers(len(noise)))
    available = noise.num_samples(number)
    if available >= num_samples:
        return noise.read(number, int(generator.integers(available - num_samples + 1)), num_samples)
    whole = noise.read(number, 0, available)
    return np.resize(np.roll(whole, -int(generator.integers(max(1, available)))), num_samples)
