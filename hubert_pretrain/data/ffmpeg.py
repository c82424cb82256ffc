"""Audio that libsndfile does not know (AAC, WMA, AMR, ...), decoded by FFmpeg through PyAV, the
extra `ffmpeg`. S samples.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Generator
from typing import Any

import numpy as np

from hubert_pretrain.data.audio_stream import AudioStream, Waveform
from hubert_pretrain.data.storage import ByteRange
from hubert_pretrain.errors import DataError

SUFFIXES = (
    ".m4a",
    ".m4b",
    ".mp4",
    ".aac",
    ".webm",
    ".mka",
    ".wma",
    ".amr",
    ".3gp",
    ".ac3",
    ".ape",
    ".wv",
    ".tta",
)
"""Suffixes of audio files that FFmpeg decodes and libsndfile does not."""
INSTALL = "which FFmpeg decodes: pip install av, or convert them to flac"

_FORMATS = "mov,mp4,m4a,3gp,aac,matroska,webm,asf,amr,amrnb,amrwb,ac3,eac3,ape,wv,tta"
"""FFmpeg's formats that may be opened. Playlists, which would open further files, are not among
them.
"""
_STATING_LENGTH = {"mov", "matroska", "asf", "wv", "tta", "ape"}
"""Formats that state their length; in the others FFmpeg guesses it from the bit rate."""
_TOLERANCE_SECONDS = 0.25
"""Shortfall up to which a file counts as whole: formats state lengths to a packet."""


@functools.cache
def is_installed() -> bool:
    """True when PyAV is there."""
    return importlib.util.find_spec("av") is not None


def open_instead(path: str, content: ByteRange, error: DataError) -> FfmpegStream:
    """The audio that libsndfile does not open for the reason `error`, which is raised again when
    FFmpeg does not open it either; without PyAV, an error with the fix.
    """
    if is_installed():
        try:
            return FfmpegStream(path, content)
        except DataError:
            raise error from None
    if path.lower().endswith(SUFFIXES):
        raise DataError(f"{path}: is audio {INSTALL}") from error
    raise error


class FfmpegStream(AudioStream):
    """The first audio stream of a file, at its own rate and with its channels."""

    kind = "FFMPEG"

    def __init__(self, path: str, content: ByteRange) -> None:
        """Raises DataError when it is not of a format above, or holds no audio."""
        import av

        self._path = path
        # IndexError: there is no audio stream.
        self._errors: tuple[type[Exception], ...] = (av.error.FFmpegError, ValueError, IndexError)
        options = {"format_whitelist": _FORMATS, "protocol_whitelist": "file"}
        try:
            self._container: Any = av.open(content.file(), options=options)
        except self._errors as error:
            raise self._failure(error) from error
        self._blocks = self._decoded()
        try:
            # The rate and channels of the header may differ from those of the audio (HE-AAC).
            self._rest = next(self._blocks)
        except DataError:
            self._container.close()
            raise
        self.channels = self._rest.shape[1]

    def close(self) -> None:
        """Closes the file."""
        self._blocks.close()
        self._container.close()

    def read(self, count: int) -> Waveform:
        """The next samples, (S, channels): fewer than `count` at the end.

        Raises DataError when they cannot be decoded, or the file ends before its stated length.
        """
        parts = [self._rest]
        found = len(self._rest)
        while found < count and (block := next(self._blocks, None)) is not None:
            parts.append(block)
            found += len(block)
        samples = np.concatenate(parts)
        self._rest = samples[count:]
        return samples[:count]

    def _decoded(self) -> Generator[Waveform, None, None]:
        """The blocks of the stream, (S, channels), none of them empty."""
        import av

        resampler: Any = None
        count = 0
        try:
            for frame in self._container.decode(audio=0):
                if resampler is None:
                    self.rate = frame.sample_rate
                    resampler = av.AudioResampler("fltp", frame.layout, frame.sample_rate)
                for each in resampler.resample(frame):
                    block = np.ascontiguousarray(each.to_ndarray().T, dtype=np.float32)
                    count += len(block)
                    if len(block):
                        yield block
        except self._errors as error:
            raise self._failure(error) from error
        if not count:
            raise DataError(f"{self._path}: holds no audio; replace the file")
        if count < self._least_samples():
            raise DataError(
                f"{self._path}: truncated or damaged, holds {count} samples of at least "
                f"{self._least_samples()}; copy or download it again"
            )

    def _least_samples(self) -> int:
        stream = self._container.streams.audio[0]
        if not _STATING_LENGTH & set(self._container.format.name.split(",")):
            return 0
        if stream.duration is not None and stream.time_base is not None:
            seconds = float(stream.duration * stream.time_base)
        else:
            seconds = (self._container.duration or 0) / 1e6
        return max(0, int((seconds - _TOLERANCE_SECONDS) * self.rate))

    def _failure(self, error: Exception) -> DataError:
        reason = str(getattr(error, "strerror", "") or error)
        return DataError(f"{self._path}: cannot be decoded ({reason}); replace the file")
