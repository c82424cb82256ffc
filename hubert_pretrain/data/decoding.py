"""Audio files as streams of samples at their own rate, decoded to their end.

Decoded by libsndfile (soundfile), or by FFmpeg (ffmpeg.py) where libsndfile does not know the
format. The length in a header is not trusted where it is an estimate: MP3 is decoded by dr_mp3
(miniaudio) frame by frame, and joined Ogg and MP3 streams one after the other. S samples.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import numpy as np
import soundfile
from miniaudio import ffi, lib

from hubert_pretrain.data import containers, ffmpeg
from hubert_pretrain.data.audio_stream import AudioStream, Waveform
from hubert_pretrain.data.storage import ByteRange, ByteRangeFile
from hubert_pretrain.errors import DataError
from hubert_pretrain.files import lfs_advice

Result = TypeVar("Result")

LOWEST_RATE = 2_000
HIGHEST_RATE = 768_000
"""Sample rates [Hz] outside these bounds are those of a damaged header: they would multiply the
audio.
"""
_MOST_CHANNELS = 256

_EXACT_SEEK = {"WAV", "WAVEX", "RF64", "W64", "FLAC", "AIFF", "AU", "CAF", "NIST"}
"""Formats in which libsndfile seeks exactly."""
_SAMPLE_BY_SAMPLE = ("PCM", "FLOAT", "DOUBLE", "ULAW", "ALAW")
"""Beginnings of the encodings in which it does so. All others are decoded from their beginning."""
_UNKNOWN_LENGTH = 1 << 62
"""libsndfile gives a length above this when a FLAC file states none."""


def open_stream(path: str, content: ByteRange) -> AudioStream:
    """An open audio file with these bytes; `path` names it in messages. Raises DataError when it is
    not audio, or its header cannot be true.
    """
    if not content.size:
        raise DataError(f"{path}: not readable as audio (the file is empty); replace it")
    stream = _open(path, content)
    if not (LOWEST_RATE <= stream.rate <= HIGHEST_RATE and 0 < stream.channels <= _MOST_CHANNELS):
        stream.close()
        raise DataError(
            f"{path}: its header says {stream.rate} Hz and {stream.channels} channels, expected "
            f"{LOWEST_RATE} to {HIGHEST_RATE} Hz and up to {_MOST_CHANNELS}; "
            "it is damaged, replace the file"
        )
    return stream


def num_samples(stream: AudioStream) -> int:
    """Length of a file at its own rate: as its header states it, or, where that is an estimate, by
    decoding the rest.
    """
    if stream.stated is not None:
        return stream.stated
    return sum(len(block) for block in stream.blocks())


def one_line(error: Exception) -> str:
    """The reason in libsndfile's message, without the path before it."""
    return (" ".join(str(error).split()).rpartition(": ")[2] or type(error).__name__).rstrip(".")


def _open(path: str, content: ByteRange) -> AudioStream:
    head = content.read(0, 16)
    if head[:3] == b"ID3" or (head[:1] == b"\xff" and containers.mpeg_stream(head)):
        data = content.read(0, content.size)
        mpeg = containers.mpeg_stream(data)
        if mpeg is not None and (mp3 := _Mp3.open(path, data, mpeg)) is not None:
            return mp3
    if head[:4] == b"OggS" and len(parts := containers.ogg_streams(content)) > 1:
        return _Joined(path, [_Libsndfile(path, part) for part in parts], parts)
    try:
        stream = _Libsndfile(path, containers.with_sizes(content))
    except DataError as error:
        if mp3 := _without_beginning(path, content):
            return mp3
        return ffmpeg.open_instead(path, content, error)
    if stream.kind == "MP3" and (mp3 := _without_beginning(path, content)):
        stream.close()
        return mp3
    chunk = containers.wav_data(content) if stream.subtype.startswith("MPEG") else None
    if chunk is None:
        return stream
    stream.close()
    size = content.size - chunk.start if chunk.size < 0 else chunk.size
    return _open(path, content.part(chunk.start, min(size, content.size - chunk.start)))


def _without_beginning(path: str, content: ByteRange) -> _Mp3 | None:
    """An MP3 that begins in the middle of a frame, as a part of a broadcast does, or with other
    bytes.
    """
    if not path.lower().endswith(".mp3"):
        return None
    stream = containers.MpegStream(start=0, rate_code=0, states_length=False, end=-1)
    return _Mp3.open(path, content.read(0, content.size), stream)


class _Forward(soundfile.SoundFile):
    """soundfile seeks after every read of a file that it calls seekable, and reads no further than
    its stated length.
    """

    def seekable(self) -> bool:
        return False


class _Libsndfile(AudioStream):
    def __init__(self, path: str, content: ByteRange) -> None:
        self._path = path
        self._source = content.file()
        try:
            self._file = _Forward(self._source)
        except (soundfile.SoundFileError, OSError) as error:
            self._refuse_failure()
            if advice := lfs_advice(ByteRangeFile(content).read(64)):
                raise DataError(f"{path}: not readable as audio: {advice}") from error
            raise DataError(
                f"{path}: not readable as audio ({one_line(error)}); "
                "expected a format that libsndfile reads, replace the file"
            ) from error
        self.rate = self._file.samplerate
        self.channels = self._file.channels
        self.kind = self._file.format
        self.subtype = self._file.subtype
        self.log = self._file.extra_info
        self._end = self._file.frames
        self._position = 0
        self.stated = self._end if self._end < _UNKNOWN_LENGTH else None
        self.seeks = (
            self.kind in _EXACT_SEEK
            and self.subtype.startswith(_SAMPLE_BY_SAMPLE)
            and self.stated is not None
        )
        if self.kind == "NIST":
            self.stated = containers.sphere_samples(content)

    def close(self) -> None:
        self._file.close()

    def seek(self, position: int) -> None:
        if not self.seeks:
            return super().seek(position)
        # libsndfile refuses to seek behind the end.
        position = min(position, self._end)
        self._decoded(lambda: self._file.seek(position))
        self._position = position

    def read(self, count: int) -> Waveform:
        count = max(0, min(count, self._end - self._position))
        block = self._decoded(lambda: self._file.read(count, dtype="float32", always_2d=True))
        self._position += len(block)
        return block

    def _decoded(self, action: Callable[[], Result]) -> Result:
        try:
            return action()
        except soundfile.SoundFileError as error:
            self._refuse_failure()
            of = "" if self.stated is None else f" of {self.stated}"
            raise DataError(
                f"{self._path}: cannot be decoded after {self._position}{of} samples "
                f"({one_line(error)}); replace the file"
            ) from error
        finally:
            self._refuse_failure()

    def _refuse_failure(self) -> None:
        """Raises the error that a read of the bytes met, which libsndfile took for the end."""
        if isinstance(self._source, ByteRangeFile) and self._source.failure is not None:
            raise self._source.failure


class _Mp3(AudioStream):
    """MPEG audio, decoded by dr_mp3 to its last frame, without the delay and padding that a LAME
    tag states.
    """

    kind = "MP3"

    def __init__(self, data: bytes, decoder: object) -> None:
        self._data = data  # dr_mp3 reads from it
        self._decoder = decoder
        self.rate = decoder.sampleRate  # type: ignore[attr-defined]
        self.channels = decoder.channels  # type: ignore[attr-defined]

    @staticmethod
    def open(path: str, data: bytes, mpeg: containers.MpegStream) -> _Mp3 | None:
        """None when dr_mp3 finds no frames."""
        is_joined = containers.is_joined_mpeg(path, data, mpeg)
        if is_joined:
            # Without its first frame, whose number of frames is that of the first stream.
            data = data[mpeg.start + 4 :]
        elif 0 < mpeg.end < len(data) and containers.mpeg_stream(data, mpeg.end) is None:
            data = data[: mpeg.end]  # dr_mp3 drops a last frame that tags follow
        decoder = ffi.new("ma_dr_mp3 *")
        if not lib.ma_dr_mp3_init_memory(decoder, ffi.from_buffer(data), len(data), ffi.NULL):
            return None
        stream = _Mp3(data, decoder)
        if mpeg.states_length and not is_joined:
            stream.stated = lib.ma_dr_mp3_get_pcm_frame_count(decoder)
        return stream

    def close(self) -> None:
        lib.ma_dr_mp3_uninit(self._decoder)

    def read(self, count: int) -> Waveform:
        block = np.empty((count, self.channels), dtype=np.float32)
        pointer = ffi.cast("float *", block.ctypes.data)
        return block[: lib.ma_dr_mp3_read_pcm_frames_f32(self._decoder, count, pointer)]


class _Joined(AudioStream):
    """Ogg streams that were joined to one file, decoded one after the other."""

    kind = "OGG"

    def __init__(self, path: str, streams: list[_Libsndfile], parts: list[ByteRange]) -> None:
        self._streams = streams
        self._number = 0
        self.rate = streams[0].rate
        self.channels = streams[0].channels
        self.stated = sum(stream.stated or 0 for stream in streams)
        if {(stream.rate, stream.channels) for stream in streams} != {(self.rate, self.channels)}:
            reason = "joins streams of several sample rates or numbers of channels"
        elif not all(containers.has_end(self.kind, part) for part in parts):
            reason = "joins streams, not all of them whole"
        else:
            return
        self.close()
        raise DataError(f"{path}: {reason}; split or re-encode it")

    def close(self) -> None:
        for stream in self._streams:
            stream.close()

    def read(self, count: int) -> Waveform:
        found = []
        left = count
        while left and self._number < len(self._streams):
            block = self._streams[self._number].read(left)
            found.append(block)
            left -= len(block)
            self._number += left > 0
        return np.concatenate([*found, np.empty((0, self.channels), dtype=np.float32)])
