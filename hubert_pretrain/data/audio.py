"""Audio files -> waveforms: float32, mono, 16 kHz. Decoded as decoding.py says, resampled by soxr.

Contract: `scan(path).num_samples` is exactly `len(read(path))` for any source rate, and a crop is
exactly as long as requested. A file, the same file inside a shard and the same behind a URL give
the same samples to the last bit.

Two formats are read faster, with the same samples: the bytes of a plain 16-bit WAV file at 16 kHz
are used directly, and a large part of a 16-bit FLAC file is decoded from its beginning by dr_flac
(miniaudio) in 0.6 of libsndfile's time. S samples.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import soxr
from numpy.typing import NDArray

from hubert_pretrain.data.audio_stream import AudioStream, Waveform
from hubert_pretrain.data.containers import STREAMED
from hubert_pretrain.data.decoding import num_samples, open_stream
from hubert_pretrain.data.storage import ByteRange, Cache, open_bytes
from hubert_pretrain.errors import DataError
from hubert_pretrain.frames import SAMPLE_RATE

if TYPE_CHECKING:
    from hubert_pretrain.data.source import SourceUtterance

MIX = -1
"""In place of the number of a channel: the mean of all channels."""
LOUDEST = -2
"""In place of the number of a channel: the one with the most power, which `prepare` finds out."""

_PLAIN_WAV = (
    b"WAVEfmt " + struct.pack("<IHHIIHH", 16, 1, 1, SAMPLE_RATE, 2 * SAMPLE_RATE, 2, 16) + b"data"
)
"""Bytes 8 to 40 of a WAV file with 16-bit mono at 16 kHz and no chunk before its samples."""
_HEADER_BYTES = 44
"""Size of the header of such a file."""
_MOST = 0.6
"""Above this share of a FLAC file, dr_flac from the beginning is faster than seeking."""

_LONGEST = 1 << 28
"""Most samples of a FLAC file for dr_flac (4.7 hours): bounds the memory that a header can make us
allocate.
"""

_MARGIN = SAMPLE_RATE // 10
"""Samples decoded on each side of a crop before resampling: several times the length of soxr's
filter.
"""


def resampled_length(num_samples: int, source_rate: int) -> int:
    """Length at 16 kHz of `num_samples` samples at `source_rate`, rounded half up in integer
    arithmetic, as soxr gives it.
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
    channel: int = MIX,
    out: Waveform | None = None,
) -> Waveform:
    """The samples [start, start + num_samples) of a file at 16 kHz, mono, in [-1, 1]: (S,). Only
    the needed part is decoded.

    Args:
        path: the file or its URL, or the shard that holds it.
        start: first sample, counted at 16 kHz.
        num_samples: number of samples; None: to the end. Fewer are returned when the file ends
            before.
        source_rate: sample rate of the file in the manifest; a file with another one is an error.
        offset, num_bytes: position of the file in its shard; -1: `path` is the file.
        cache: for audio behind URLs.
        channel: number of a channel, or MIX.
        out: (num_samples,) to read into; the filled part of it is returned.

    Raises:
        DataError: the file is missing or unreadable, or has another rate.
    """
    content = open_bytes(str(path), offset, num_bytes, cache)
    return decode(path, content, start, num_samples, source_rate, channel=channel, out=out)


def read_source(utterance: SourceUtterance) -> Waveform:
    """The audio of an utterance of a list, (S,): its segment, and its channel or the mean of all.

    Raises DataError as `read` does.
    """
    return read(
        utterance.path,
        utterance.start,
        utterance.num_samples,
        offset=utterance.offset,
        num_bytes=utterance.num_bytes,
        channel=MIX if utterance.channel is None else utterance.channel,
    )


def decode(
    path: str | Path,
    content: ByteRange,
    start: int = 0,
    num_samples: int | None = None,
    source_rate: int | None = None,
    *,
    channel: int = MIX,
    out: Waveform | None = None,
) -> Waveform:
    """`read` of an audio file with these bytes; `path` names it in messages."""
    stop = None if num_samples is None else start + num_samples
    if source_rate in (None, SAMPLE_RATE) and channel < 1:
        header = content.read(0, _HEADER_BYTES)
        if total := _plain_wav(header):
            return _plain_crop(content, start, stop, total, out)
        if total := _plain_flac(header):
            end = total if stop is None else min(total, stop)
            is_large = end - start > _MOST * total
            if is_large and (waveform := _flac_until(content, end)) is not None:
                return _put(waveform[start:], out)
    with open_stream(str(path), content) as stream:
        if source_rate not in (None, stream.rate):
            raise DataError(
                f"{path}: has {stream.rate} Hz, the manifest says {source_rate}; "
                "the file changed, redo=prepare reads it again"
            )
        if channel >= stream.channels:
            raise DataError(f"{path}: {missing_channel(channel, stream.channels)}")
        crop = _crop if stream.rate == SAMPLE_RATE else _resampled_crop
        return _put(crop(stream, start, stop, channel), out)


def blocks(path: str | Path, content: ByteRange | None = None) -> Iterator[Waveform]:
    """The samples of `read`, in order and in blocks (S',) of some seconds: the memory does not
    depend on the length of the file. A resampled file equals `read` to about 1e-6.

    Args:
        content: its bytes, where they are not those at `path`.
    """
    opened = open_bytes(str(path)) if content is None else content
    with open_stream(str(path), opened) as stream:
        if stream.rate == SAMPLE_RATE:
            yield from (mono(block) for block in stream.blocks())
            return
        resampler = soxr.ResampleStream(stream.rate, SAMPLE_RATE, 1, dtype="float32")
        count = 0
        given = 0
        waiting = np.zeros(0, dtype=np.float32)
        for block in stream.blocks():
            count += len(block)
            yield waiting
            given += len(waiting)
            waiting = resampler.resample_chunk(np.ascontiguousarray(mono(block)))
        end = resampler.resample_chunk(np.zeros(0, dtype=np.float32), last=True)
        rest = np.concatenate([waiting, end])
        yield fit_length(rest, resampled_length(count, stream.rate) - given)


def length(path: str | Path) -> int:
    """Length of a file at 16 kHz: as its header states it, or, where that is an estimate, as it is
    decoded. Raises DataError when it is missing or not audio.
    """
    with open_stream(str(path), open_bytes(str(path))) as stream:
        return resampled_length(num_samples(stream), stream.rate)


def mono(block: Waveform, channel: int = MIX) -> Waveform:
    """(S, channels) -> (S,): one channel, or the mean of all."""
    if channel == MIX and block.shape[1] > 1:
        return block.mean(axis=1, dtype=np.float32)
    return block[:, max(0, channel)]


def channel_number(name: str) -> int:
    """Number of the channel that `data.channel` names: mix, loudest, or the number itself."""
    return {"mix": MIX, "loudest": LOUDEST}.get(name) or int(name)


def missing_channel(channel: int, channels: int) -> str:
    """The reason to refuse a file without the channel that is asked for."""
    return (
        f"has {channels} channel{'s' * (channels > 1)}, channel {channel} was asked for "
        "(the first is 0); correct data.channel or the channel of the list"
    )


def wav_header(num_samples: int) -> bytes:
    """The 44 bytes before the samples of a 16-bit mono WAV file at 16 kHz, of the form that `read`
    reads fast.
    """
    size = 2 * num_samples
    riff_size = _HEADER_BYTES - 8 + size
    return b"RIFF" + riff_size.to_bytes(4, "little") + _PLAIN_WAV + size.to_bytes(4, "little")


def _put(waveform: Waveform, out: Waveform | None) -> Waveform:
    """Copies a waveform into `out`, if given; returns the filled part."""
    if out is None:
        return waveform
    filled = out[: len(waveform)]
    filled[:] = waveform
    return filled


def _plain_wav(header: bytes) -> int:
    """Number of samples of a plain 16-bit WAV file; 0 for any other file."""
    if header[:4] != b"RIFF" or header[8:40] != _PLAIN_WAV:
        return 0
    size = int.from_bytes(header[40:], "little")
    return size // 2 if size % 2 == 0 and 0 < size < STREAMED else 0


def _plain_crop(
    content: ByteRange, start: int, stop: int | None, total: int, out: Waveform | None
) -> Waveform:
    """Samples [start, stop) of a plain 16-bit WAV file of `total` samples."""
    count = max(0, min(total, total if stop is None else stop) - start)
    data = content.read(_HEADER_BYTES + 2 * start, 2 * count)
    values = np.frombuffer(data, dtype="<i2", count=len(data) // 2)
    if out is not None:
        out = out[: len(values)]
    # Equal to libsndfile: exact, because the divisor is a power of two.
    return np.multiply(values, np.float32(2.0**-15), out=out, dtype=np.float32)


def _plain_flac(header: bytes) -> int:
    """Number of samples of a FLAC file with 16-bit mono at 16 kHz, by its STREAMINFO (RFC 9639
    section 8.2); 0 for any other file, or when it is not stated.
    """
    if header[:4] != b"fLaC":
        return 0
    packed = int.from_bytes(header[18:26], "big")
    rate = packed >> 44
    channels = (packed >> 41 & 7) + 1
    bits = (packed >> 36 & 31) + 1
    total = packed & (1 << 36) - 1
    return total if (rate, channels, bits) == (SAMPLE_RATE, 1, 16) and total <= _LONGEST else 0


def _flac_until(content: ByteRange, stop: int) -> Waveform | None:
    """The samples [0, stop) of a 16-bit mono FLAC file; None when it does not hold them whole
    (dr_flac skips a damaged frame, so all samples after it would be too early).
    """
    from miniaudio import ffi, lib  # its Python functions would copy the samples twice

    data = content.read(0, content.size)
    waveform = np.empty(stop, dtype=np.float32)
    decoder = lib.ma_dr_flac_open_memory(ffi.from_buffer(data), len(data), ffi.NULL)
    if decoder == ffi.NULL:
        return None
    pointer = ffi.cast("float *", waveform.ctypes.data)
    decoded = lib.ma_dr_flac_read_pcm_frames_f32(decoder, stop, pointer)
    lib.ma_dr_flac_close(decoder)
    return waveform if decoded == stop else None


def _crop(stream: AudioStream, start: int, stop: int | None, channel: int) -> Waveform:
    """Samples [start, stop) of a file at its own rate, mono; fewer when it ends before."""
    stream.seek(start)
    if stop is not None:
        return mono(stream.read(stop - start), channel)
    parts = (mono(block, channel) for block in stream.blocks())
    return np.concatenate([np.empty(0, dtype=np.float32), *parts])


def _resampled_crop(stream: AudioStream, start: int, stop: int | None, channel: int) -> Waveform:
    """Samples [start, stop) at 16 kHz of a file with another rate.

    Decoding begins at a time that is a sample at both rates, so that the crop has the phase that it
    has in the whole file. It extends a margin beyond both ends, so that soxr's filter has the same
    neighbours. So the crop equals the slice of the resampled whole to about 1e-6.
    """
    rate = stream.rate
    shared = math.gcd(rate, SAMPLE_RATE)
    source_period = rate // shared
    period = SAMPLE_RATE // shared
    first = max(0, start - _MARGIN) // period  # in periods
    source_stop = None if stop is None else -(-(stop + _MARGIN) * rate // SAMPLE_RATE)
    source = _crop(stream, first * source_period, source_stop, channel)
    origin = first * period
    waveform = fit_length(
        soxr.resample(source, rate, SAMPLE_RATE),
        resampled_length(first * source_period + len(source), rate) - origin,
    )
    return waveform[start - origin : None if stop is None else stop - origin]


def fit_length(waveform: Waveform, length: int) -> Waveform:
    """A waveform (S,) or (S, channels) cut, or filled with zeros, to `length`, because a resampler
    may round otherwise than `resampled_length`.
    """
    if len(waveform) >= length:
        return waveform[:length]
    missing = [(0, length - len(waveform)), *[(0, 0)] * (waveform.ndim - 1)]
    return np.pad(waveform, missing)


def to_int16(waveform: Waveform) -> NDArray[np.int16]:
    """The nearest 16-bit values of samples in [-1, 1], clipped."""
    return np.clip(np.rint(waveform * np.float32(2.0**15)), -(2**15), 2**15 - 1).astype(np.int16)
