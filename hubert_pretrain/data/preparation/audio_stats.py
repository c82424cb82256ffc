"""Streaming statistics of a recording and its segments, over one decoding in blocks. S samples."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import soxr
from numpy.typing import NDArray

from hubert_pretrain.data.audio import LOUDEST, MIX, missing_channel, mono, resampled_length
from hubert_pretrain.data.audio_stream import Waveform
from hubert_pretrain.errors import DataError
from hubert_pretrain.frames import MODEL_GRID, SAMPLE_RATE


class Segment(NamedTuple):
    """A part of a recording."""

    start: int = 0
    """First sample, at 16 kHz."""
    num_samples: int | None = None
    """Number of samples at 16 kHz; None: to the end of the recording."""
    channel: int = MIX
    """Number of a channel, MIX or LOUDEST."""


WHOLE = Segment()

_FULL_SCALE = 0.9999
"""Magnitude from which a sample counts as clipped."""
_SILENCE_BELOW_LOUDEST = 1e-4
"""A hop is silent when its power is 40 dB below that of the utterance's loudest hop."""

MOST_MIX_LOSS = 40.0
"""A mix this many decibels below its channels is a residue of channels that cancel each other."""

_NO_POWER = np.zeros(0, dtype=np.float32)
_PEAK_LIMIT = 16.0
"""Float files may overshoot 1; a peak beyond this means 16-bit numbers stored as floats."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AudioFacts:
    """Measured facts of a file or a segment of it, of the waveform that `audio.read` gives unless
    noted.
    """

    num_samples: int
    """Exactly the length of `audio.read(path)`, or that of the segment."""
    source_rate: int
    channels: int
    channel: int
    """Number of the channel that it is, or MIX."""
    mean: float
    variance: float
    """Biased variance."""
    peak: float
    """Largest magnitude in the file, in any channel."""
    clipped: float
    """Share of the file's samples at full scale."""
    silence: float
    """Share of 20 ms hops more than 40 dB below the loudest."""
    mix_loss: float
    """Decibels by which a mix of channels is softer than the loudest of them; 0 for one channel."""
    recoded: int
    """1 when it is that of the FLAC that `prepare` makes of the recording (recode.py)."""
    content: str
    """Hash of the decoded mono samples: equal for a WAV and its FLAC."""


class AudioStats:
    """Statistics of all segments of a recording, updated block by block."""

    def __init__(
        self, source_rate: int, channels: int = 1, segments: Sequence[Segment] = (WHOLE,)
    ) -> None:
        self.source_rate = source_rate
        self.channels = channels
        self.source_samples = 0
        self.recoded_from = 0
        """Sample rate of the recording that was recoded to the one that is measured; 0: none."""
        self._asked = [Segment(*segment) for segment in segments]
        by_channel: dict[int, list[SegmentStats]] = {}
        # Several for a segment of the loudest channel, none for one of a channel that is not there.
        self._candidates: list[list[SegmentStats]] = []
        for segment in self._asked:
            candidates = [
                SegmentStats(segment.start, segment.num_samples, channel)
                for channel in self._channels_of(segment)
            ]
            self._candidates.append(candidates)
            for one in candidates:
                by_channel.setdefault(one.channel, []).append(one)
        self._tracks = [
            _Track(source_rate, channel, members) for channel, members in by_channel.items()
        ]

    @property
    def num_samples(self) -> int:
        """Length of the blocks so far, at 16 kHz."""
        return resampled_length(self.source_samples, self.source_rate)

    def add(self, path: str, block: Waveform) -> None:
        """Accumulates a block (S, channels) at the source rate. Raises DataError for NaN and
        infinity.
        """
        magnitude = np.abs(block)
        if not math.isfinite(float(magnitude.max())):
            samples = f"{self.source_samples}..{self.source_samples + len(block)}"
            raise DataError(f"{path}: NaN or infinity among samples {samples}; replace the file")
        self.source_samples += len(block)
        for track in self._tracks:
            track.add(block, magnitude)

    def finish(self) -> None:
        """Flush the resamplers."""
        for track in self._tracks:
            track.finish()

    def powers(self) -> list[Waveform]:
        """Mean power of each hop of 20 ms of every segment, (T,)."""
        return [
            max(candidates, key=lambda one: one.variance).power if candidates else _NO_POWER
            for candidates in self._candidates
        ]

    def results(self) -> list[AudioFacts | str]:
        """The facts of every segment, or the reason why the segment cannot be used."""
        results: list[AudioFacts | str] = []
        for segment, candidates in zip(self._asked, self._candidates, strict=True):
            if not candidates:
                results.append(missing_channel(segment.channel, self.channels))
                continue
            loudest = max(candidates, key=lambda one: one.variance)
            if reason := loudest.reason(self.num_samples):
                results.append(reason)
                continue
            facts = loudest.facts(self.num_samples, self.source_rate)
            if self.recoded_from:
                facts = replace(facts, source_rate=self.recoded_from, recoded=1)
            results.append(facts)
        return results

    def _channels_of(self, segment: Segment) -> list[int]:
        if segment.channel == MIX or (self.channels == 1 and segment.channel < 1):
            return [MIX]
        if segment.channel == LOUDEST:
            return list(range(self.channels))
        return [segment.channel] if segment.channel < self.channels else []


class _Track:
    """One channel of a recording, or the mix, and the segments that are parts of it."""

    def __init__(self, source_rate: int, channel: int, segments: list[SegmentStats]) -> None:
        self._channel = channel
        self._resampler = (
            soxr.ResampleStream(source_rate, SAMPLE_RATE, 1, dtype="float32")
            if source_rate != SAMPLE_RATE
            else None
        )
        self._segments = segments
        bounds = [(segment.start, segment.stop) for segment in segments]
        self._cursor = SegmentCursor(bounds)
        source_bounds = [
            (start * source_rate // SAMPLE_RATE, stop * source_rate // SAMPLE_RATE)
            for start, stop in bounds
        ]
        self._source_cursor = SegmentCursor(source_bounds)

    def add(self, block: Waveform, magnitude: Waveform) -> None:
        """Accumulates a block (S, channels) at the source rate."""
        waveform = mono(block, self._channel)
        for number, inside in self._source_cursor.take(len(block)):
            self._segments[number].add_source(waveform[inside], block[inside], magnitude[inside])
        if self._resampler is not None:
            waveform = self._resampler.resample_chunk(np.ascontiguousarray(waveform))
        self._measure(waveform)

    def finish(self) -> None:
        """Flushes the resampler."""
        if self._resampler is not None:
            self._measure(self._resampler.resample_chunk(np.zeros(0, dtype=np.float32), last=True))

    def _measure(self, waveform: Waveform) -> None:
        for number, inside in self._cursor.take(len(waveform)):
            self._segments[number].add(waveform[inside])


class SegmentCursor:
    """The segments that overlap each block of a recording, for blocks in order."""

    def __init__(self, bounds: list[tuple[int, int]]) -> None:
        self._bounds = bounds
        self._position = 0
        self._waiting = sorted(
            range(len(bounds)), key=lambda number: bounds[number][0], reverse=True
        )
        self._open: list[int] = []

    def take(self, count: int) -> Iterator[tuple[int, slice]]:
        """(segment, its samples within the block) for the next block of `count` samples."""
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
    """Statistics of one segment, updated block by block."""

    def __init__(self, start: int, num_samples: int | None, channel: int = MIX) -> None:
        self.start = start
        self.channel = channel
        self._stated = num_samples
        self.stop = 1 << 62 if num_samples is None else start + num_samples
        self.peak = 0.0
        self._source_samples = 0
        self._channels = 0
        self._channel_power: NDArray[np.float64] | float = 0.0
        self._source_power = 0.0
        self._clipped = 0
        self._count = 0
        self._sum = 0.0
        self._power = 0.0
        self._digest = hashlib.blake2b(digest_size=16)
        self._rest = np.zeros(0, dtype=np.float32)
        self._hops: list[Waveform] = []

    def add_source(self, waveform: Waveform, block: Waveform, magnitude: Waveform) -> None:
        """Accumulates samples at the source rate: mono (S,), all channels (S, channels) and their
        magnitudes.
        """
        self.peak = max(self.peak, float(magnitude.max(initial=0.0)))
        self._channels = block.shape[1]
        if self._channels > 1 and self.channel == MIX:
            self._channel_power = self._channel_power + np.square(block).sum(0, dtype=np.float64)
            self._source_power += float(np.square(waveform).sum(dtype=np.float64))
        self._clipped += int((magnitude >= _FULL_SCALE).sum())
        self._source_samples += len(waveform)
        self._digest.update(waveform.tobytes())

    def add(self, waveform: Waveform) -> None:
        """Accumulates samples (S,) at 16 kHz."""
        wide = waveform.astype(np.float64)
        self._count += len(wide)
        self._sum += float(wide.sum())
        self._power += float(wide @ wide)
        # Energy of each hop; samples of an unfinished hop wait for the next block.
        joined = np.concatenate([self._rest, waveform])
        whole = len(joined) // MODEL_GRID.hop * MODEL_GRID.hop
        self._hops.append(np.square(joined[:whole].reshape(-1, MODEL_GRID.hop)).mean(axis=1))
        self._rest = joined[whole:]

    def reason(self, available: int) -> str:
        """The reason why it cannot be used, given the length of the recording at 16 kHz; "" for a
        usable one.
        """
        if self._stated is not None and self.stop > available:
            return (
                f"segment ends at sample {self.stop}, the recording has {available}; "
                "correct the segment, or copy the recording again"
            )
        if (length := self._length(available)) < MODEL_GRID.window:
            return (
                f"{length} samples at {SAMPLE_RATE} Hz, shorter than one model frame "
                f"({MODEL_GRID.window}); remove the file"
            )
        if self.peak > _PEAK_LIMIT:
            return (
                f"samples up to {self.peak:.4g}, expected [-1, 1]; "
                "divide them by their full scale (often 32768)"
            )
        if self._mix_loss >= MOST_MIX_LOSS:
            below = f"{self._mix_loss:.0f} dB below" if self._source_power else "silent beside"
            return (
                f"the channels cancel each other (antiphase), their mix is {below} the loudest; "
                "take one of them: data.channel=loudest, or 0"
            )
        if self.variance == 0.0:
            return "no sound, every sample is the same; replace or remove the file"
        return ""

    def facts(self, available: int, source_rate: int) -> AudioFacts:
        """The facts of a usable segment."""
        power = self.power
        return AudioFacts(
            num_samples=self._length(available),
            source_rate=source_rate,
            channels=self._channels,
            channel=self.channel,
            mean=self._sum / self._count,
            variance=self.variance,
            peak=self.peak,
            clipped=self._clipped / max(1, self._source_samples * self._channels),
            silence=float((power <= power.max() * _SILENCE_BELOW_LOUDEST).mean()),
            mix_loss=self._mix_loss,
            recoded=0,
            content=self._digest.hexdigest(),
        )

    def _length(self, available: int) -> int:
        return max(0, available - self.start) if self._stated is None else self._stated

    @property
    def _mix_loss(self) -> float:
        loudest = float(np.max(self._channel_power))
        if loudest == 0.0:
            return 0.0
        return 10 * math.log10(loudest / max(self._source_power, loudest * 1e-30))

    @property
    def power(self) -> Waveform:
        """Mean power of each whole hop so far, (T,)."""
        return np.concatenate([*self._hops, _NO_POWER])

    @property
    def variance(self) -> float:
        """Biased variance of the samples at 16 kHz so far."""
        mean = self._sum / max(1, self._count)
        return max(0.0, self._power / max(1, self._count) - mean * mean)
