"""Another voice: the same length and times, other pitch and formants, on synthetic vowels."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import scipy.signal
import torch
from numpy.typing import NDArray
from torch import Tensor

from hubert_pretrain.data.config import SpeakerPerturbation
from hubert_pretrain.data.speaker_perturbation import (
    BANDS,
    Voice,
    change_voice,
    draw_voice,
)
from hubert_pretrain.frames import SAMPLE_RATE
from hubert_pretrain.seeds import generator

Spectrum = NDArray[np.float64]
PITCH = 120.0
FORMANTS = np.array([500.0, 1500.0, 2500.0])


def vowel(num_samples: int = 24000) -> Tensor:
    """Pulses through three resonances."""
    waveform = np.diff(np.floor(np.arange(num_samples + 1) * PITCH / SAMPLE_RATE))
    radius = math.exp(-math.pi * 80 / SAMPLE_RATE)
    for formant in FORMANTS:
        cosine = math.cos(2 * math.pi * formant / SAMPLE_RATE)
        waveform = scipy.signal.lfilter([1], [1, -2 * radius * cosine, radius**2], waveform)
    return torch.from_numpy(0.3 * waveform / np.abs(waveform).max()).float()


def pitch_of(waveform: Tensor) -> float:
    """From the autocorrelation."""
    middle = waveform[4000:20000].numpy()
    found = scipy.signal.correlate(middle, middle, method="fft")[len(middle) - 1 :]
    shortest = SAMPLE_RATE // 400
    longest = SAMPLE_RATE // 60
    return float(SAMPLE_RATE / (shortest + np.argmax(found[shortest:longest])))


def envelope_of(waveform: Tensor, pitch: float) -> Callable[[Spectrum], Spectrum]:
    """The levels of the harmonics in dB, as a function of the frequency."""
    middle = waveform[4000:20000].numpy()
    hertz, power = scipy.signal.welch(middle, SAMPLE_RATE, nperseg=8000)
    harmonics = np.arange(1, int(7500 / pitch)) * pitch
    levels = [power[np.abs(hertz - each) < pitch / 4].max() for each in harmonics]
    return lambda places: 10 * np.log10(np.interp(places, harmonics, levels))


def difference(one: Spectrum, other: Spectrum) -> float:
    """Mean difference of two envelopes in dB, but for loudness."""
    levels = one - other
    return float(np.abs(levels - np.median(levels)).mean())


def test_a_voice_without_changes_is_the_recording() -> None:
    torch.testing.assert_close(change_voice(vowel(), Voice(1.0, 1.0)), vowel(), atol=1e-5, rtol=0)


@pytest.mark.parametrize("num_samples", [1600, 24001])
def test_length_and_energy_stay(num_samples: int) -> None:
    before = vowel(num_samples)
    after = change_voice(before, Voice(1.3, 0.6, tuple([6.0] * 5 + [-6.0] * 5)))
    assert after.shape == before.shape
    assert float(after.square().sum()) == pytest.approx(float(before.square().sum()), rel=1e-4)


@pytest.mark.parametrize(
    ("formants", "pitch"), [(1.0, 0.6), (1.0, 1.5), (1 / 1.3, 1.0), (1.3, 1.0), (1.3, 0.7)]
)
def test_pitch_and_formants_move_apart(formants: float, pitch: float) -> None:
    after = change_voice(vowel(), Voice(formants, pitch))
    assert pitch_of(after) == pytest.approx(pitch * PITCH, rel=0.03)
    places = np.arange(300, 3600, 20.0)
    before = envelope_of(vowel(), PITCH)
    found = envelope_of(after, pitch * PITCH)(places)
    assert difference(found, before(places / formants)) < 3
    moved_otherwise = [factor for factor in (1.0, pitch) if factor != formants]
    assert all(difference(found, before(places / factor)) > 7 for factor in moved_otherwise)


@pytest.mark.parametrize("pitch", [0.5, 2.0])
def test_times_stay(pitch: float) -> None:
    """A burst of vowel between silences is where it was, to a frame."""
    before = torch.zeros(24000)
    before[8000:14000] = vowel()[8000:14000]
    after = change_voice(before, Voice(1.2, pitch))
    loud = torch.nonzero(after.unfold(0, 160, 160).square().mean(1) > 0.1 * after.square().mean())
    assert abs(int(loud[0]) * 160 - 8000) <= 800
    assert abs(int(loud[-1]) * 160 + 160 - 14000) <= 800
    middle = (after.square() * torch.arange(24000)).sum() / after.square().sum()
    expected = (before.square() * torch.arange(24000)).sum() / before.square().sum()
    assert abs(float(middle - expected)) < 320


def test_a_low_pitch_keeps_the_high_band() -> None:
    """Fricatives lie above the highest frequency that is left when the pitch is halved."""
    noise = torch.from_numpy(np.random.default_rng(0).standard_normal(24000)).float()
    after = torch.fft.rfft(change_voice(noise, Voice(1.0, 0.5))).abs().square()
    assert float(after[6000:].sum() / after.sum()) > 0.3  # above 4 kHz; half of it before


def test_the_equaliser_changes_a_band() -> None:
    noise = torch.from_numpy(np.random.default_rng(0).standard_normal(24000)).float()
    gains = tuple(12.0 if band == BANDS[-1] else 0.0 for band in BANDS)
    ratio = (
        torch.fft.rfft(change_voice(noise, Voice(1.0, 1.0, gains))).abs()
        / torch.fft.rfft(noise).abs()
    )
    hertz = torch.fft.rfftfreq(24000, 1 / SAMPLE_RATE)
    high = ratio[(hertz - 7600).abs() < 100].median()
    low = ratio[(hertz > 100) & (hertz < 4000)].median()
    assert 20 * math.log10(float(high / low)) == pytest.approx(12, abs=1.5)


def test_silence_stays_silent() -> None:
    assert not change_voice(torch.zeros(8000), Voice(1.3, 0.7)).any()


def test_voices_are_drawn_within_their_ranges_and_both_ways() -> None:
    ranges = SpeakerPerturbation(formant_ratio=1.4, pitch_ratio=2.0, equaliser_db=12.0)
    voices = [draw_voice(ranges, generator(1, number)) for number in range(200)]
    assert voices[0] == draw_voice(ranges, generator(1, 0)) != voices[1]
    for name, ratio in (("formants", 1.4), ("pitch", 2.0)):
        factors = np.array([getattr(voice, name) for voice in voices])
        assert 1 / ratio <= factors.min() < 0.95 / ratio**0.5
        assert 1.05 * ratio**0.5 < factors.max() <= ratio
        assert abs(np.log(factors).mean()) < 0.15 * math.log(ratio)
    assert all(len(voice.gains_db) == len(BANDS) for voice in voices)
    plain = SpeakerPerturbation(formant_ratio=1.0, pitch_ratio=1.0, equaliser_db=0.0)
    assert draw_voice(plain, generator(1, 0)) == Voice(1.0, 1.0)
