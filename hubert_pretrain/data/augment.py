"""Augmentation of micro-batches: parts of other utterances, noise, gain. The targets stay those of the clean audio.

Everything drawn is a pure function of (seed, number of the micro-batch, manifest row), so it survives a kill and does not depend on
workers or devices. Mixing is algorithm 1 of WavLM (arXiv 2110.13900, section "masked speech denoising and prediction"; its probabilities
are in conf/augment/wavlm.yaml).

Shapes: B utterances, S samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hubert_pretrain.data.noise import Noise, draw, open_noise
from hubert_pretrain.seeds import generator

Waveforms = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """What is done to a micro-batch, in this order: mixing, noise, gain. Ratios are in dB, energy of the row over that of what is added."""

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

    def __call__(self, waveform: Waveforms, *, index: int, rows: Sequence[int]) -> tuple[Waveforms, NDArray[np.bool_]]:
        """The augmented rows and which of them changed: (B, S) and (B,).

        What is added is always clean, so the outcome of a row does not depend on the order of the rows. Nothing is clipped: the network
        takes floats.

        Args:
            waveform: crops as they were recorded, not normalised, (B, S); left as it is.
            index: number of the micro-batch.
            rows: manifest row of each crop.
        """
        augmented, changed = waveform.copy(), np.zeros(len(waveform), dtype=np.bool_)
        for b, row in enumerate(rows):
            for each in (self._mix, self._add_noise, self._gain):
                changed[b] |= each(augmented, waveform, b, (self.seed, index, row))
        return augmented, changed

    def _mix(self, augmented: Waveforms, clean: Waveforms, b: int, key: tuple[int, int, int]) -> bool:
        """A part of another row, or of noise, at most half as long as the row, at a random place."""
        random = generator("mix", *key)
        if random.random() >= self.mix_probability:
            return False
        with_noise, size = random.random() < self.mix_noise_share and self.noise is not None, clean.shape[1]
        length = int(random.integers(1, max(2, size // 2 + 1)))
        at, start = (int(place) for place in random.integers(0, size - length + 1, size=2))
        if with_noise:
            assert self.noise is not None
            part = draw(self.noise, random, length)
            return _add(augmented[b, at : at + length], part, _power(clean[b]), _power(part), random.uniform(*self.mix_noise_ratio_db))
        if len(clean) < 2:  # no one else to talk into it
            return False
        other = (b + int(random.integers(1, len(clean)))) % len(clean)
        part = clean[other, start : start + length]
        return _add(augmented[b, at : at + length], part, _power(clean[b]), _power(clean[other]), random.uniform(*self.mix_ratio_db))

    def _add_noise(self, augmented: Waveforms, clean: Waveforms, b: int, key: tuple[int, int, int]) -> bool:
        """Noise from the first sample to the last."""
        random = generator("noise", *key)
        if self.noise is None or random.random() >= self.noise_probability:
            return False
        part = draw(self.noise, random, clean.shape[1])
        return _add(augmented[b], part, _power(clean[b]), _power(part), random.uniform(*self.noise_ratio_db))

    def _gain(self, augmented: Waveforms, clean: Waveforms, b: int, key: tuple[int, int, int]) -> bool:
        random = generator("gain", *key)
        if random.random() >= self.gain_probability:
            return False
        augmented[b] *= np.float32(10 ** (random.uniform(*self.gain_db) / 20))
        return True


def make_augmentation(
    *, seed: int, noise: str | None = None, mix_probability: float, noise_probability: float, gain_probability: float, **values: object
) -> Augmentation | None:
    """The augmentation that these values describe (`noise` is a folder, see `open_noise`); None when they describe none."""
    probabilities = {"mix_probability": mix_probability, "noise_probability": noise_probability, "gain_probability": gain_probability}
    if not any(probabilities.values()):
        return None
    wants_noise = noise_probability > 0 or (mix_probability > 0 and bool(values.get("mix_noise_share")))
    source = open_noise(noise) if wants_noise and noise is not None else None
    return Augmentation(seed=seed, noise=source, **probabilities, **values)  # type: ignore[arg-type]


def _power(waveform: Waveforms) -> float:
    wide = waveform.astype(np.float64)
    return float(wide @ wide) / max(1, len(wide))


def _add(place: Waveforms, part: Waveforms, power: float, part_power: float, ratio_db: float) -> bool:
    """Adds a part so that `power` is `ratio_db` above it. False when one of the two is silent: no factor makes a ratio of that."""
    if power == 0.0 or part_power == 0.0:
        return False
    place += np.float32(np.sqrt(power / (10 ** (ratio_db / 10) * part_power))) * part
    return True
