"""Audio files -> waveforms: float32, mono, 16 kHz. Decoded by libsndfile (soundfile), resampled by soxr.

The contract that everything else rests on: `probe(path).num_samples` is exactly `len(read(path))`, for any source rate, and a crop is
exactly as long as was asked for.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from hubert_pretrain.errors import DataError
from hubert_pretrain.frames import SAMPLE_RATE

Waveform = NDArray[np.float32]

SUFFIXES = (".wav", ".flac", ".ogg", ".opus", ".mp3")
"""Files that count as audio."""

_EXACT_SEEK = {"WAV", "WAVEX", "RF64", "W64", "FLAC", "AIFF", "AU", "CAF"}
"""Formats where libsndfile seeks to the very sample. In Ogg and MP3 it lands near it, so those are decoded from their beginning."""

_MARGIN = SAMPLE_RATE // 10
"""Samples decoded on each side of a crop before resampling: several times the length of soxr's filter."""

VARIANCE_FLOOR = 1e-5
"""torch's `layer_norm` epsilon, with which fairseq normalises waveforms."""


def resampled_length(num_samples: int, source_rate: int) -> int:
    """Samples at 16 kHz of `num_samples` samples at `source_rate`: rounded half up, in whole numbers (what soxr gives)."""
    return (2 * num_samples * SAMPLE_RATE + source_rate) // (2 * source_rate)


def read(path: str | Path, start: int = 0, num_samples: int | None = None, source_rate: int | None = None) -> Waveform:
    """The samples [start, start + num_samples) of a file at 16 kHz, mono, in [-1, 1]: (S,). Only what is needed is decoded.

    Args:
        path: the file.
        start: first sample, counted at 16 kHz.
        num_samples: how many; None for all that follow. Fewer come back when the file ends before.
        source_rate: the file's sample rate as the manifest has it; a file with another rate is an error.

    Raises:
        DataError: the file is missing or unreadable, or has another rate.
    """
    with open_audio(path) as file:
        if source_rate not in (None, file.samplerate):
            raise DataError(f"{path}: has {file.samplerate} Hz, the manifest says {source_rate}; the file changed, run stage=prepare again")
        stop = None if num_samples is None else start + num_samples
        try:
            return _crop(file, start, stop) if file.samplerate == SAMPLE_RATE else _resampled_crop(file, start, stop)
        except soundfile.SoundFileError as error:
            raise DataError(f"{path}: cannot be decoded ({one_line(error)}); replace the file") from error


def normalize(waveform: Waveform, mean: float, variance: float) -> Waveform:
    """(S,) with zero mean and unit variance, given those of the *whole* utterance, so a crop comes out as it would inside the whole."""
    return ((waveform - np.float32(mean)) / np.float32(math.sqrt(variance + VARIANCE_FLOOR))).astype(np.float32, copy=False)


def mono(block: Waveform) -> Waveform:
    """(S, channels) -> (S,): the mean of the channels."""
    return block[:, 0] if block.shape[1] == 1 else block.mean(axis=1, dtype=np.float32)


def one_line(error: Exception) -> str:
    """The reason in libsndfile's message, without the path that we name ourselves."""
    return (" ".join(str(error).split()).rpartition(": ")[2] or type(error).__name__).rstrip(".")


def open_audio(path: str | Path) -> soundfile.SoundFile:
    """The open file. Raises DataError when it is missing or not audio."""
    try:
        return soundfile.SoundFile(str(path))
    except (soundfile.SoundFileError, OSError) as error:
        if not Path(path).is_file():
            raise DataError(f"{path}: no such file; restore it, or run stage=prepare again without it") from error
        raise DataError(f"{path}: not readable as audio ({one_line(error)}); expected {', '.join(SUFFIXES)}, replace the file") from error


def _crop(file: soundfile.SoundFile, start: int, stop: int | None) -> Waveform:
    """Samples [start, stop) of a file at its own rate, mono; fewer when it ends before."""
    if file.format in _EXACT_SEEK:
        # Seeking behind the end is an error in libsndfile; an empty crop is what a slice of the whole would give.
        file.seek(min(start, file.frames))
        count = -1 if stop is None else stop - start
        return mono(file.read(count, dtype="float32", always_2d=True))
    return mono(file.read(-1 if stop is None else stop, dtype="float32", always_2d=True))[start:]


def _resampled_crop(file: soundfile.SoundFile, start: int, stop: int | None) -> Waveform:
    """Samples [start, stop) at 16 kHz of a file with another rate.

    Decoding begins at a sample that both rates share, so that the crop has the phase it has inside the whole, and reaches a margin
    beyond both ends, so that soxr's filter sees the same neighbours: the crop equals the slice of the whole to about 1e-6.
    """
    rate = file.samplerate
    shared = math.gcd(rate, SAMPLE_RATE)
    source_period, period = rate // shared, SAMPLE_RATE // shared
    first = max(0, start - _MARGIN) // period  # in periods
    source_stop = None if stop is None else -(-(stop + _MARGIN) * rate // SAMPLE_RATE)
    source = _crop(file, first * source_period, source_stop)
    origin = first * period
    waveform = fit_length(soxr.resample(source, rate, SAMPLE_RATE), resampled_length(first * source_period + len(source), rate) - origin)
    return waveform[start - origin : None if stop is None else stop - origin]


def fit_length(waveform: Waveform, length: int) -> Waveform:
    """Cut or filled with zeros to `length`: the promise of `resampled_length`, whatever a resampler rounds to."""
    return waveform[:length] if len(waveform) >= length else np.pad(waveform, (0, length - len(waveform)))
