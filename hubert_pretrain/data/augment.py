"""Data augmentation: utterance mixing, additive noise, gain."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from hubert_pretrain.data import audio
from hubert_pretrain.data.audio import Waveform, audio_below
from hubert_pretrain.data.corpus import MANIFEST, Corpus
from hubert_pretrain.errors import DataError
from hubert_pretrain.seeds import generator

Waveforms = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """What is done to a micro-batch, in this order: mixing, noise, gain. Ratios are in dB, energy
    of the row over that of what is added.
    """

    seed: int
    mix_probability: float = 0.0
    mix_ratio_db: tuple[float, float] = (-5.0, 5.0)
    mix_noise_share: float = 0.0
    mix_noise_ratio_db: tuple[float, float] = (-5.0, 20.0)
    noise_probability: float = 0.0
    noise_ratio_db: tuple[float, float] = (5.0, 20.0)
    gain_probability: float = 0.0
    gain_db: tuple[float, float] = (-6.0, 6.0)
    noise: Noise | None = None

    def __call__(
        self, waveform: Waveforms, *, index: int, rows: Sequence[int]
    ) -> tuple[Waveforms, NDArray[np.bool_]]:
        """The augmented rows and which of them changed: (B, S) and (B,).

        What is added is always clean, so the outcome of a row does not depend on the order of the
        rows. Nothing is clipped: the network takes floats.

        Args:
            waveform: crops as they were recorded, not normalised, (B, S); left as it is.
            index: number of the micro-batch.
            rows: manifest row of each crop.
        """
        augmented = waveform.copy()
        changed = np.zeros(len(waveform), dtype=np.bool_)
        for b, row in enumerate(rows):
            for each in (self._mix, self._add_noise, self._gain):
                changed[b] |= each(augmented, waveform, b, (self.seed, index, row))
        return augmented, changed

    def _mix(
        self, augmented: Waveforms, clean: Waveforms, b: int, key: tuple[int, int, int]
    ) -> bool:
        """A part of another row, or of noise, at most half as long as the row, at a random
        place.
        """
        random = generator("mix", *key)
        if random.random() >= self.mix_probability:
            return False
        with_noise = random.random() < self.mix_noise_share and self.noise is not None
        size = clean.shape[1]
        length = int(random.integers(1, max(2, size // 2 + 1)))
        at, start = (int(place) for place in random.integers(0, size - length + 1, size=2))
        if with_noise:
            assert self.noise is not None
            part = draw_noise(self.noise, random, length)
            return _add(
                augmented[b, at : at + length],
                part,
                _power(clean[b]),
                _power(part),
                random.uniform(*self.mix_noise_ratio_db),
            )
        if len(clean) < 2:  # no one else to talk into it
            return False
        other = (b + int(random.integers(1, len(clean)))) % len(clean)
        part = clean[other, start : start + length]
        return _add(
            augmented[b, at : at + length],
            part,
            _power(clean[b]),
            _power(clean[other]),
            random.uniform(*self.mix_ratio_db),
        )

    def _add_noise(
        self, augmented: Waveforms, clean: Waveforms, b: int, key: tuple[int, int, int]
    ) -> bool:
        """Noise from the first sample to the last."""
        random = generator("noise", *key)
        if self.noise is None or random.random() >= self.noise_probability:
            return False
        part = draw_noise(self.noise, random, clean.shape[1])
        return _add(
            augmented[b], part, _power(clean[b]), _power(part), random.uniform(*self.noise_ratio_db)
        )

    def _gain(
        self, augmented: Waveforms, clean: Waveforms, b: int, key: tuple[int, int, int]
    ) -> bool:
        random = generator("gain", *key)
        if random.random() >= self.gain_probability:
            return False
        augmented[b] *= np.float32(10 ** (random.uniform(*self.gain_db) / 20))
        return True


def make_augmentation(
    *,
    seed: int,
    noise: str | None = None,
    mix_probability: float,
    noise_probability: float,
    gain_probability: float,
    **values: object,
) -> Augmentation | None:
    """The augmentation that these values describe (`noise` is a folder, see `open_noise`); None
    when they describe none.
    """
    probabilities = {
        "mix_probability": mix_probability,
        "noise_probability": noise_probability,
        "gain_probability": gain_probability,
    }
    if not any(probabilities.values()):
        return None
    wants_noise = noise_probability > 0 or (
        mix_probability > 0 and bool(values.get("mix_noise_share"))
    )
    source = open_noise(noise) if wants_noise and noise is not None else None
    return Augmentation(seed=seed, noise=source, **probabilities, **values)  # type: ignore[arg-type]


def _power(waveform: Waveforms) -> float:
    wide = waveform.astype(np.float64)
    return float(wide @ wide) / max(1, len(wide))


def _add(
    place: Waveforms, part: Waveforms, power: float, part_power: float, ratio_db: float
) -> bool:
    """Adds a part so that `power` is `ratio_db` above it. False when one of the two is silent: no
    factor makes a ratio of that.
    """
    if power == 0.0 or part_power == 0.0:
        return False
    place += np.float32(np.sqrt(power / (10 ** (ratio_db / 10) * part_power))) * part
    return True


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
            raise DataError(
                f"{self.paths[number]}: {found} by its header; it is truncated, replace or remove it from the noise folder"
            )
        return waveform


class NoiseCorpus:
    """Every row of a prepared corpus (the folder of a stage `prepare`), so that noise may lie in
    shards or in segments.
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
            f"{root}: no such folder of noise; set augment.noise to a folder of audio files or of a prepared corpus"
        )
    noise: Noise = (
        NoiseCorpus(Corpus.open(root)) if (root / MANIFEST).is_file() else NoiseFolder(root)
    )
    if not len(noise):
        raise DataError(
            f"{root}: no audio in this folder of noise, expected {', '.join(audio.SUFFIXES)}; set augment.noise to another one"
        )
    return noise


def draw_noise(noise: Noise, generator: np.random.Generator, num_samples: int) -> Waveform:
    """A random stretch (S,) of a random recording; one that is too short is repeated from a random
    sample on.
    """
    number = int(generator.integers(len(noise)))
    available = noise.num_samples(number)
    if available >= num_samples:
        return noise.read(number, int(generator.integers(available - num_samples + 1)), num_samples)
    whole = noise.read(number, 0, available)
    return np.resize(np.roll(whole, -int(generator.integers(max(1, available)))), num_samples)
