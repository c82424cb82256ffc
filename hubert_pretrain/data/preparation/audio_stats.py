"""Statistics of a recording, or of many segments of it, while it is decoded once in blocks.

Shapes: S samples.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import soxr

from hubert_pretrain.data.audio import Waveform, mono, resampled_length
from hubert_pretrain.errors import DataError
from hubert_pretrain.frames import MODEL_GRID, SAMPLE_RATE

Segment = tuple[int, int | None]
"""(first sample, how many) of a recording, at 16 kHz; None: to its end."""
WHOLE: Segment = (0, None)

_FULL_SCALE = 0.9999
_SILENCE_BELOW_LOUDEST = 1e-4
"""A hop is silent when its power is 40 dB below that of the utterance's loudest hop."""

_PEAK_LIMIT = 16.0
"""Float files may overshoot 1; a peak beyond this means 16-bit numbers stored as floats."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AudioFacts:
    """What a file or a segment of it holds, measured on the waveform that `audio.read` gives unless
    said otherwise.
    """

    num_samples: int
    """Exactly the length of `audio.read(path)`, or that of the segment."""
    source_rate: int
    channels: int
    mean: float
    variance: float
    """Biased."""
    peak: float
    """Largest magnitude in the file, in any channel."""
    clipped: float
    """Share of the file's samples at full scale."""
    silence: float
    """Share of 20 ms hops more than 40 dB below the loudest."""
    content: str
    """Hash of the decoded mono samples: equal for a WAV and its FLAC."""


class AudioStats:
    """Running statistics of every segment over the blocks of a recording."""

    def __init__(self, source_rate: int, segments: Sequence[Segment] = (WHOLE,)) -> None:
        self.source_rate = source_rate
        self.source_samples = 0
        self._resampler = (
            soxr.ResampleStream(source_rate, SAMPLE_RATE, 1, dtype="float32")
            if source_rate != SAMPLE_RATE
            else None
        )
        self._parts = [SegmentStats(start, num_samples) for start, num_samples in segments]
        bounds = [(part.start, part.stop) for part in self._parts]
        self._places = SegmentCursor(bounds)
        self._source_places = SegmentCursor(
            [
                (start * source_rate // SAMPLE_RATE, stop * source_rate // SAMPLE_RATE)
                for start, stop in bounds
            ]
        )

    @property
    def num_samples(self) -> int:
        """Length of what was added, at 16 kHz."""
        return resampled_length(self.source_samples, self.source_rate)

    def add(self, path: str, block: Waveform) -> None:
        """Counts in a block (S, channels) at the source rate. Raises DataError for samples that are
        no numbers.
        """
        magnitude = np.abs(block)
        if not math.isfinite(float(magnitude.max())):
            place = f"{self.source_samples}..{self.source_samples + len(block)}"
            raise DataError(f"{path}: NaN or infinity among samples {place}; replace the file")
        self.source_samples += len(block)
        waveform = mono(block)
        for number, inside in self._source_places.take(len(block)):
            self._parts[number].add_source(waveform[inside], magnitude[inside])
        self._measure(
            waveform if self._resampler is None else self._resampler.resample_chunk(waveform)
        )

    def finish(self) -> None:
        """Takes what the resampler still holds."""
        if self._resampler is not None:
            self._measure(self._resampler.resample_chunk(np.zeros(0, dtype=np.float32), last=True))

    def results(self) -> list[AudioFacts | str]:
        """For every segment its facts, or the reason why it cannot be used."""
        return [
            part.reason(self.num_samples) or part.facts(self.num_samples, self.source_rate)
            for part in self._parts
        ]

    def _measure(self, waveform: Waveform) -> None:
        for number, inside in self._places.take(len(waveform)):
            self._parts[number].add(waveform[inside])


class SegmentCursor:
    """Which segments a block of a recording touches, and where. Takes the blocks in order."""

    def __init__(self, bounds: list[tuple[int, int]]) -> None:
        self._bounds = bounds
        self._position = 0
        self._waiting = sorted(
            range(len(bounds)), key=lambda number: bounds[number][0], reverse=True
        )
        self._open: list[int] = []

    def take(self, count: int) -> Iterator[tuple[int, slice]]:
        begin = self._position
        end = self._position + count
        while self._waiting and self._bounds[self._waiting[-1]][0] < end:
            self._open.append(self._waiting.pop())
        self._open = [number for number in self._open if self._bounds[number][1] > begin]
        for number in self._open:
            first, stop = self._bounds[number]
            yield number, slice(max(0, first - begin), min(count, stop - begin))
        self._position = end


class SegmentStats:
    """Running statistics of one segment."""

    def __init__(self, start: int, num_samples: int | None) -> None:
        self.start = start
        self._promised = num_samples
        self.stop = 1 << 62 if num_samples is None else start + num_samples
        self.peak = 0.0
        self._source_samples = self._channels = self._clipped = 0
        self._count = 0
        self._sum = 0.0
        self._power = 0.0
        self._digest = hashlib.blake2b(digest_size=16)
        self._rest = np.zeros(0, dtype=np.float32)
        self._hops: list[Waveform] = []

    def add_source(self, waveform: Waveform, magnitude: Waveform) -> None:
        self.peak = max(self.peak, float(magnitude.max(initial=0.0)))
        self._channels = magnitude.shape[1]
        self._clipped += int((magnitude >= _FULL_SCALE).sum())
        self._source_samples += len(waveform)
        self._digest.update(waveform.tobytes())

    def add(self, waveform: Waveform) -> None:
        wide = waveform.astype(np.float64)
        self._count, self._sum, self._power = (
            self._count + len(wide),
            self._sum + float(wide.sum()),
            self._power + float(wide @ wide),
        )
        joined = np.concatenate([self._rest, waveform])
        whole = len(joined) // MODEL_GRID.hop * MODEL_GRID.hop
        self._hops.append(np.square(joined[:whole].reshape(-1, MODEL_GRID.hop)).mean(axis=1))
        self._rest = joined[whole:]

    def reason(self, available: int) -> str:
        """Why it cannot be used, given the length of the recording at 16 kHz; "" when it can."""
        if self._promised is not None and self.stop > available:
            return f"segment ends at sample {self.stop}, the recording has {available}; mend the segment, or copy the recording again"
        if (length := self._length(available)) < MODEL_GRID.window:
            return f"{length} samples at {SAMPLE_RATE} Hz, shorter than one model frame ({MODEL_GRID.window}); remove the file"
        if self.peak > _PEAK_LIMIT:
            return f"samples up to {self.peak:.4g}, expected [-1, 1]; divide them by their full scale (often 32768)"
        if self._variance == 0.0:
            return "no sound, every sample is the same; replace or remove the file"
        return ""

    def facts(self, available: int, source_rate: int) -> AudioFacts:
        power = np.concatenate([*self._hops, np.zeros(0, dtype=np.float32)])
        return AudioFacts(
            num_samples=self._length(available),
            source_rate=source_rate,
            channels=self._channels,
            mean=self._sum / self._count,
            variance=self._variance,
            peak=self.peak,
            clipped=self._clipped / max(1, self._source_samples * self._channels),
            silence=float((power <= power.max() * _SILENCE_BELOW_LOUDEST).mean()),
            content=self._digest.hexdigest(),
        )

    def _length(self, available: int) -> int:
        return max(0, available - self.start) if self._promised is None else self._promised

    @property
    def _variance(self) -> float:
        mean = self._sum / max(1, self._count)
        return max(0.0, self._power / max(1, self._count) - mean * mean)
