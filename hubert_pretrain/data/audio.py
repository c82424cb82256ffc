"""Audio files -> waveforms: float32, mono, 16 kHz. Decoded by libsndfile (soundfile), resampled by
soxr.

The contract that everything else rests on: `probe(path).num_samples` is exactly `len(read(path))`,
for any source rate, and a crop is exactly as long as was asked for. A file, the same file inside a
shard and the same behind a URL give the same samples to the last bit.

Two formats have a faster way to the same samples, since training waits for them: plain 16-bit WAV
at 16 kHz is a stretch of bytes, and most of a 16-bit FLAC file is decoded from its beginning by
dr_flac (miniaudio), which needs 0.6 of libsndfile's time.
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from hubert_pretrain.data.storage import ByteRange, Cache, open_bytes
from hubert_pretrain.errors import DataError
from hubert_pretrain.frames import SAMPLE_RATE

Waveform = NDArray[np.float32]

SUFFIXES = (".wav", ".flac", ".ogg", ".opus", ".mp3")
"""Files that count as audio."""

_EXACT_SEEK = {"WAV", "WAVEX", "RF64", "W64", "FLAC", "AIFF", "AU", "CAF"}
"""Formats where libsndfile seeks to the very sample. In Ogg and MP3 it lands near it, so those are
decoded from their beginning.
"""

_PLAIN_WAV = (
    b"WAVEfmt " + struct.pack("<IHHIIHH", 16, 1, 1, SAMPLE_RATE, 2 * SAMPLE_RATE, 2, 16) + b"data"
)
"""Bytes 8 to 40 of a WAV file that holds 16-bit mono at 16 kHz and nothing before its samples."""
_HEAD = 44
STREAMED = 0x7FFFF000
"""WAV lengths from here on, and 0, mean that the writer could not know the length: it wrote into a
pipe.
"""

_MOST = 0.6
"""When more than this share of a FLAC file is wanted, decoding from its beginning in the fast way
is faster than seeking.
"""

_LONGEST = 1 << 28
"""Samples of the longest file decoded in that way (4.7 hours): no header makes us reserve more
memory than this.
"""

_MARGIN = SAMPLE_RATE // 10
"""Samples decoded on each side of a crop before resampling: several times the length of soxr's
filter.
"""


def resampled_length(num_samples: int, source_rate: int) -> int:
    """Samples at 16 kHz of `num_samples` samples at `source_rate`: rounded half up, in whole
    numbers (what soxr gives).
    """
    return (2 * num_samples * SAMPLE_RATE + source_rate) // (2 * source_rate)


def read(
    path: str | Path,
    start: int = 0,
    num_samples: int | None = None,
    source_rate: int | None = None,
    *,
    offset: int = -1,
    num_bytes: int = -1,
    cache: Cache | None = None,
    out: Waveform | None = None,
) -> Waveform:
    """The samples [start, start + num_samples) of a file at 16 kHz, mono, in [-1, 1]: (S,). Only
    what is needed is decoded.

    Args:
        path: the file or its URL, or the shard that holds it. start: first sample, counted at 16
        kHz. num_samples: how many; None for all that follow. Fewer come back when the file ends
        before. source_rate: the file's sample rate as the manifest has it; a file with another rate
        is an error. offset, num_bytes: where the file lies in its shard; -1: `path` is the file.
        cache: for what lies behind URLs. out: (num_samples,) to read into. What is returned is the
        part of it that was filled.

    Raises:
        DataError: the file is missing or unreadable, or has another rate.
    """
    return decode(
        path, open_bytes(str(path), offset, num_bytes, cache), start, num_samples, source_rate, out
    )


def decode(
    path: str | Path,
    part: ByteRange,
    start: int = 0,
    num_samples: int | None = None,
    source_rate: int | None = None,
    out: Waveform | None = None,
) -> Waveform:
    """`read` of the audio file whose bytes are `part`; messages call it `path`."""
    stop = None if num_samples is None else start + num_samples
    if source_rate in (None, SAMPLE_RATE):
        head = part.read(0, _HEAD)
        if (
            head[:4] == b"RIFF"
            and head[8:40] == _PLAIN_WAV
            and (size := int.from_bytes(head[40:], "little")) % 2 == 0
            and 0 < size < STREAMED
        ):
            return _plain_crop(part, start, stop, size // 2, out)
        if (
            head[:4] == b"fLaC"
            and (total := _plain_flac(head))
            and (end := total if stop is None else min(total, stop)) - start > _MOST * total
        ):
            return _put(_flac_until(path, part, end)[start:], out)
    with sound_file(path, part) as file:
        if source_rate not in (None, file.samplerate):
            raise DataError(
                f"{path}: has {file.samplerate} Hz, the manifest says {source_rate}; the file changed, run stage=prepare again"
            )
        try:
            return _put(
                _crop(file, start, stop)
                if file.samplerate == SAMPLE_RATE
                else _resampled_crop(file, start, stop),
                out,
            )
        except soundfile.SoundFileError as error:
            raise DataError(
                f"{path}: cannot be decoded ({one_line(error)}); replace the file"
            ) from error


def mono(block: Waveform) -> Waveform:
    """(S, channels) -> (S,): the mean of the channels."""
    return block[:, 0] if block.shape[1] == 1 else block.mean(axis=1, dtype=np.float32)


def one_line(error: Exception) -> str:
    """The reason in libsndfile's message, without the path that we name ourselves."""
    return (" ".join(str(error).split()).rpartition(": ")[2] or type(error).__name__).rstrip(".")


def open_audio(path: str | Path) -> soundfile.SoundFile:
    """The open file. Raises DataError when it is missing or not audio."""
    return sound_file(path, open_bytes(str(path)))


def sound_file(path: str | Path, part: ByteRange) -> soundfile.SoundFile:
    """The open file whose bytes are `part`; messages call it `path`. Raises DataError when it is
    not audio.
    """
    try:
        return soundfile.SoundFile(part.file())
    except (soundfile.SoundFileError, OSError) as error:
        raise DataError(
            f"{path}: not readable as audio ({one_line(error)}); expected {', '.join(SUFFIXES)}, replace the file"
        ) from error


def wav_header(num_samples: int) -> bytes:
    """The 44 bytes before the samples of a 16-bit mono WAV file at 16 kHz, the form of `read`'s
    short way.
    """
    size = 2 * num_samples
    return (
        b"RIFF" + (_HEAD - 8 + size).to_bytes(4, "little") + _PLAIN_WAV + size.to_bytes(4, "little")
    )


def _put(waveform: Waveform, out: Waveform | None) -> Waveform:
    if out is None:
        return waveform
    filled = out[: len(waveform)]
    filled[:] = waveform
    return filled


def _plain_crop(
    part: ByteRange, start: int, stop: int | None, total: int, out: Waveform | None
) -> Waveform:
    """Samples [start, stop) of a plain 16-bit WAV file of `total` samples."""
    count = max(0, min(total, total if stop is None else stop) - start)
    data = part.read(_HEAD + 2 * start, 2 * count)
    values = np.frombuffer(data, dtype="<i2", count=len(data) // 2)
    # As libsndfile does it: exact, because the divisor is a power of two.
    return np.multiply(
        values,
        np.float32(2.0**-15),
        out=None if out is None else out[: len(values)],
        dtype=np.float32,
    )


def _plain_flac(head: bytes) -> int:
    """Samples in a FLAC file that is 16-bit mono at 16 kHz, by its STREAMINFO (RFC 9639 section
    8.2); 0 when it is another or unsaid.
    """
    packed = int.from_bytes(head[18:26], "big")
    rate = packed >> 44
    channels = (packed >> 41 & 7) + 1
    bits = (packed >> 36 & 31) + 1
    total = packed & (1 << 36) - 1
    return total if (rate, channels, bits) == (SAMPLE_RATE, 1, 16) and total <= _LONGEST else 0


def _flac_until(path: str | Path, part: ByteRange, stop: int) -> Waveform:
    """The samples [0, stop) of a 16-bit mono FLAC file that has so many."""
    from miniaudio import ffi, lib  # its Python functions would copy the samples twice

    data = part.read(0, part.size)
    waveform = np.empty(stop, dtype=np.float32)
    decoder = lib.ma_dr_flac_open_memory(ffi.from_buffer(data), len(data), ffi.NULL)
    decoded = 0
    if decoder != ffi.NULL:
        decoded = lib.ma_dr_flac_read_pcm_frames_f32(
            decoder, stop, ffi.cast("float *", waveform.ctypes.data)
        )
        lib.ma_dr_flac_close(decoder)
    if (
        decoded != stop
    ):  # dr_flac leaves a damaged frame out, and all that follow would come too early
        raise DataError(
            f"{path}: cannot be decoded ({stop - decoded} of {stop} samples are damaged); replace the file"
        )
    return waveform


def _crop(file: soundfile.SoundFile, start: int, stop: int | None) -> Waveform:
    """Samples [start, stop) of a file at its own rate, mono; fewer when it ends before."""
    if file.format in _EXACT_SEEK:
        # Seeking behind the end is an error in libsndfile; an empty crop is what a slice of the
        # whole would give.
        file.seek(min(start, file.frames))
        count = -1 if stop is None else stop - start
        return mono(file.read(count, dtype="float32", always_2d=True))
    return mono(file.read(-1 if stop is None else stop, dtype="float32", always_2d=True))[start:]


def _resampled_crop(file: soundfile.SoundFile, start: int, stop: int | None) -> Waveform:
    """Samples [start, stop) at 16 kHz of a file with another rate.

    Decoding begins at a sample that both rates share, so that the crop has the phase it has inside
    the whole, and reaches a margin beyond both ends, so that soxr's filter sees the same
    neighbours: the crop equals the slice of the whole to about 1e-6.
    """
    rate = file.samplerate
    shared = math.gcd(rate, SAMPLE_RATE)
    source_period = rate // shared
    period = SAMPLE_RATE // shared
    first = max(0, start - _MARGIN) // period  # in periods
    source_stop = None if stop is None else -(-(stop + _MARGIN) * rate // SAMPLE_RATE)
    source = _crop(file, first * source_period, source_stop)
    origin = first * period
    waveform = fit_length(
        soxr.resample(source, rate, SAMPLE_RATE),
        resampled_length(first * source_period + len(source), rate) - origin,
    )
    return waveform[start - origin : None if stop is None else stop - origin]


def fit_length(waveform: Waveform, length: int) -> Waveform:
    """Cut or filled with zeros to `length`: the promise of `resampled_length`, whatever a resampler
    rounds to.
    """
    return (
        waveform[:length]
        if len(waveform) >= length
        else np.pad(waveform, (0, length - len(waveform)))
    )


def is_audio(name: str) -> bool:
    """Whether a name is that of an audio file, and not of a hidden one (e.g. the `._x.wav` of
    macOS).
    """
    return name.lower().endswith(SUFFIXES) and not name.startswith(".")


def audio_below(root: Path) -> Iterator[Path]:
    """Audio files below a folder, folder by folder in order, without hidden ones. Links to folders
    are followed, once each.

    Hidden folders are left out too: archives on their way lie in one.
    """
    seen: set[tuple[int, int]] = set()
    for folder, below, names in os.walk(root, followlinks=True):
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in seen:
            below.clear()
            continue
        below[:] = sorted(
            name for name in below if not name.startswith(".")
        )  # ordered: of two links to a folder, one wins everywhere
        seen.add((status.st_dev, status.st_ino))
        yield from (Path(folder, name) for name in sorted(names) if is_audio(name))
