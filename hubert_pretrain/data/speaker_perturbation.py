"""Another voice for a recording: formants, pitch and spectral balance change by random factors,
time does not (as NANSY, arXiv:2110.14513, which does it with Praat).

Pitch: the phase vocoder makes the recording longer, and resampling makes it as long as before.
Formants: the spectral envelope, from the first coefficients of the cepstrum, is moved along the
frequency axis. S samples, T frames of the transform, F = 513 bins.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from hubert_pretrain.data.config import SpeakerPerturbation
from hubert_pretrain.frames import SAMPLE_RATE

BINS = 513
WINDOW = 2 * (BINS - 1)
"""Samples of a window, 64 ms."""
HOP = WINDOW // 4
ENVELOPE_COEFFICIENTS = 32
"""Of the cepstrum: 2 ms, shorter than the period of any voice."""
MOST_GAIN = math.log(10 ** (40 / 20))
"""Limit of the change of a bin's magnitude, as a natural logarithm: 40 dB."""
BANDS = np.geomspace(60, 7600, 10)
"""Centres of the equaliser's bands in Hz, as in NANSY."""


@dataclass(frozen=True)
class Voice:
    """Changes of a voice."""

    formants: float
    """Factor of the frequencies of formants."""
    pitch: float
    """Factor of the pitch."""
    gains_db: tuple[float, ...] = ()
    """Gain of each of BANDS; none: no equaliser."""


def draw_voice(ranges: SpeakerPerturbation, random: np.random.Generator) -> Voice:
    """A random voice: factors that are as often above 1 as below."""
    formants, pitch = random.uniform(-1, 1, size=2)
    gains = random.uniform(-ranges.equaliser_db, ranges.equaliser_db, size=len(BANDS))
    return Voice(
        formants=float(ranges.formant_ratio**formants),
        pitch=float(ranges.pitch_ratio**pitch),
        gains_db=tuple(gains.tolist()) if ranges.equaliser_db else (),
    )


def change_voice(waveform: Tensor, voice: Voice) -> Tensor:
    """(S,) float32 at 16 kHz -> (S,) in another voice, with the same energy."""
    spectrum = transform(waveform)  # (F, T)
    envelope = log_envelope(spectrum)
    gains = equaliser(voice)  # (F,)

    # Below the highest frequency that moves with the pitch: envelope first, then everything moves.
    before_move = _moved(envelope, voice.formants / voice.pitch) - envelope
    before_move = before_move + _moved(gains[:, None], 1 / voice.pitch)
    changed = _repitched(_amplified(spectrum, before_move), voice.pitch, len(waveform))

    # Above it, where lowering the pitch leaves nothing: the noise of fricatives as it was.
    highest = math.floor(voice.pitch * (BINS - 1))
    if highest < BINS - 1:
        above = _amplified(spectrum, _moved(envelope, voice.formants) - envelope + gains[:, None])
        above[: highest + 1] = 0
        changed = changed + _waveform(above, len(waveform))
    energy = changed.square().sum()
    return changed * (waveform.square().sum() / energy).sqrt() if energy > 0 else waveform.clone()


def transform(waveform: Tensor) -> Tensor:
    """Short-time Fourier transform: (S,) -> (F, T) complex."""
    return torch.stft(
        waveform,
        WINDOW,
        HOP,
        window=torch.hann_window(WINDOW),
        pad_mode="constant",
        return_complex=True,
    )


def log_envelope(spectrum: Tensor) -> Tensor:
    """Natural logarithm of the smooth envelope of magnitudes: (F, T) complex -> (F, T)."""
    cepstrum = torch.fft.irfft((spectrum.abs() + 1e-6).log(), n=WINDOW, dim=0)
    cepstrum[ENVELOPE_COEFFICIENTS : WINDOW - ENVELOPE_COEFFICIENTS + 1] = 0
    return torch.fft.rfft(cepstrum, dim=0).real


def equaliser(voice: Voice) -> Tensor:
    """Natural logarithm of the gain of each bin, (F,): straight lines between the bands, over the
    logarithm of the frequency."""
    if not voice.gains_db:
        return torch.zeros(BINS)
    hertz = np.arange(BINS) * SAMPLE_RATE / WINDOW
    gains = np.interp(np.log(np.maximum(hertz, 1.0)), np.log(BANDS), voice.gains_db)
    return torch.from_numpy(gains / 20 * math.log(10)).float()


def _moved(envelope: Tensor, factor: float) -> Tensor:
    """An envelope (F, T) whose frequencies are multiplied by a factor; its end is held."""
    place = (torch.arange(BINS) / factor).clamp(max=BINS - 1)
    left = place.floor().long()
    right = (left + 1).clamp(max=BINS - 1)
    return torch.lerp(envelope[left], envelope[right], (place - left)[:, None])


def _amplified(spectrum: Tensor, gain: Tensor) -> Tensor:
    return spectrum * gain.clamp(-MOST_GAIN, MOST_GAIN).exp()


def _repitched(spectrum: Tensor, pitch: float, num_samples: int) -> Tensor:
    """The waveform (S,) with all frequencies times `pitch`."""
    from torchaudio.functional import phase_vocoder

    advance = torch.linspace(0, math.pi * HOP, BINS)[:, None]
    longer = round(pitch * num_samples)
    slow = _waveform(phase_vocoder(spectrum, 1 / pitch, advance), longer)
    # A band-limited waveform of any other length: its Fourier transform with fewer, or more, bins.
    bins = torch.fft.rfft(slow)
    return torch.fft.irfft(bins, n=num_samples) * (num_samples / longer)


def _waveform(spectrum: Tensor, num_samples: int) -> Tensor:
    """The inverse of `transform`, (S,)."""
    return torch.istft(spectrum, WINDOW, HOP, window=torch.hann_window(WINDOW), length=num_samples)
