"""Reading every audio file once, before anything is trained on it: its exact length, its statistics, and whether it is whole."""

from __future__ import annotations

import hashlib
import math
import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context, parent_process
from pathlib import Path

import numpy as np
import soundfile
import soxr

from hubert_pretrain.data.audio import Waveform, mono, one_line, open_audio, resampled_length
from hubert_pretrain.errors import DataError
from hubert_pretrain.frames import MODEL_GRID, SAMPLE_RATE

_BLOCK = 1 << 18
"""Source samples decoded at a time: a recording of hours is measured in a few megabytes."""

_FULL_SCALE = 0.9999
_SILENCE_BELOW_LOUDEST = 1e-4
"""A hop is silent when its power is 40 dB below that of the utterance's loudest hop."""

_PEAK_LIMIT = 16.0
"""Float files may overshoot 1; a peak beyond this means 16-bit numbers stored as floats."""

_FEW = 128
"""Up to so many files, starting processes costs more than it saves."""
_CHUNK = 32


@dataclass(frozen=True, kw_only=True, slots=True)
class AudioFacts:
    """What a file holds, measured on the waveform that `audio.read` gives unless said otherwise."""

    num_samples: int
    """Exactly the length of `audio.read(path)`."""
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


def probe(path: str | Path) -> AudioFacts:
    """Decodes a whole file and measures it, in constant memory.

    Raises:
        DataError: the file is missing, unreadable, truncated, shorter than one model frame, silent throughout, or holds NaN or
            numbers that are not audio.
    """
    with open_audio(path) as file:
        tally = _Tally(file.samplerate)
        try:
            while len(block := file.read(_BLOCK, dtype="float32", always_2d=True)):
                tally.add(path, block)
        except soundfile.SoundFileError as error:
            reason = f"cannot be decoded after {tally.source_samples} of {file.frames} samples ({one_line(error)})"
            raise DataError(f"{path}: {reason}; replace the file") from error
        tally.finish()
        _refuse_truncated(path, file, tally.source_samples)
    _refuse_unusable(path, tally)
    return tally.facts()


def probe_all(paths: Sequence[str], workers: int = 0) -> Iterator[AudioFacts | str]:
    """Facts of every file, or the reason why it cannot be used, in the order of `paths` whatever the number of processes.

    Args:
        paths: the files.
        workers: processes; 0 is one per core this process may use.
    """
    workers = min(workers or usable_cores(), math.ceil(len(paths) / _CHUNK))
    if workers <= 1 or len(paths) <= _FEW:
        yield from map(probe_or_reason, paths)
        return
    # spawn: a fork would copy the threads' locks of whatever library the caller has in use.
    executor = ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_end_with_parent)
    try:
        for facts in executor.map(_probe_chunk, [paths[i : i + _CHUNK] for i in range(0, len(paths), _CHUNK)]):
            yield from facts
    except BrokenProcessPool as error:
        raise DataError("a process that reads audio died, killed or out of memory; run again with fewer, e.g. data.workers=1") from error
    finally:
        executor.shutdown(wait=True, cancel_futures=True)


def usable_cores() -> int:
    """Cores that this process may use (on a cluster fewer than the machine has)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def probe_or_reason(path: str) -> AudioFacts | str:
    """`probe`, with the reason as a string in place of an error."""
    try:
        return probe(path)
    except DataError as error:
        return str(error).removeprefix(f"{path}: ")
    except (ValueError, RuntimeError, OSError) as error:  # e.g. a header with a rate that no resampler accepts
        return f"cannot be used ({type(error).__name__}: {one_line(error)}); replace the file"


def _end_with_parent() -> None:
    """Ends this process once the one that started it is gone: after a kill it would wait for work for ever."""

    def watch() -> None:
        parent = parent_process()
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _probe_chunk(paths: Sequence[str]) -> list[AudioFacts | str]:
    return [probe_or_reason(path) for path in paths]


class _Tally:
    """Running statistics over the blocks of a file."""

    def __init__(self, source_rate: int) -> None:
        self.source_rate = source_rate
        self.source_samples = self.channels = self.clipped = 0
        self.peak = 0.0
        self._digest = hashlib.blake2b(digest_size=16)
        self._resampler = soxr.ResampleStream(source_rate, SAMPLE_RATE, 1, dtype="float32") if source_rate != SAMPLE_RATE else None
        self._count, self._sum, self._power = 0, 0.0, 0.0
        self._rest = np.zeros(0, dtype=np.float32)
        self._hops: list[Waveform] = []

    def add(self, path: str | Path, block: Waveform) -> None:
        """Counts in a block (S, channels) at the source rate."""
        magnitude = np.abs(block)
        peak = float(magnitude.max())
        if not math.isfinite(peak):
            place = f"{self.source_samples}..{self.source_samples + len(block)}"
            raise DataError(f"{path}: NaN or infinity among samples {place}; replace the file")
        self.peak, self.channels = max(self.peak, peak), block.shape[1]
        self.clipped += int((magnitude >= _FULL_SCALE).sum())
        self.source_samples += len(block)
        waveform = mono(block)
        self._digest.update(waveform.tobytes())
        self._measure(waveform if self._resampler is None else self._resampler.resample_chunk(waveform))

    def finish(self) -> None:
        """Takes what the resampler still holds."""
        if self._resampler is not None:
            self._measure(self._resampler.resample_chunk(np.zeros(0, dtype=np.float32), last=True))

    @property
    def num_samples(self) -> int:
        return resampled_length(self.source_samples, self.source_rate)

    @property
    def variance(self) -> float:
        mean = self._sum / max(1, self._count)
        return max(0.0, self._power / max(1, self._count) - mean * mean)

    def facts(self) -> AudioFacts:
        power = np.concatenate([*self._hops, np.zeros(0, dtype=np.float32)])
        return AudioFacts(
            num_samples=self.num_samples,
            source_rate=self.source_rate,
            channels=self.channels,
            mean=self._sum / self._count,
            variance=self.variance,
            peak=self.peak,
            clipped=self.clipped / (self.source_samples * self.channels),
            silence=float((power <= power.max() * _SILENCE_BELOW_LOUDEST).mean()),
            content=self._digest.hexdigest(),
        )

    def _measure(self, waveform: Waveform) -> None:
        wide = waveform.astype(np.float64)
        self._count, self._sum, self._power = self._count + len(wide), self._sum + float(wide.sum()), self._power + float(wide @ wide)
        joined = np.concatenate([self._rest, waveform])
        whole = len(joined) // MODEL_GRID.hop * MODEL_GRID.hop
        self._hops.append(np.square(joined[:whole].reshape(-1, MODEL_GRID.hop)).mean(axis=1))
        self._rest = joined[whole:]


def _refuse_unusable(path: str | Path, tally: _Tally) -> None:
    if tally.num_samples < MODEL_GRID.window:
        raise DataError(
            f"{path}: {tally.num_samples} samples at {SAMPLE_RATE} Hz, shorter than one model frame ({MODEL_GRID.window}); remove the file"
        )
    if tally.peak > _PEAK_LIMIT:
        raise DataError(f"{path}: samples up to {tally.peak:.4g}, expected [-1, 1]; divide them by their full scale (often 32768)")
    if tally.variance == 0.0:
        raise DataError(f"{path}: no sound, every sample is the same; replace or remove the file")


def _refuse_truncated(path: str | Path, file: soundfile.SoundFile, decoded: int) -> None:
    """libsndfile reads what is there and says nothing (all but FLAC), so the promises of headers are checked here."""
    if decoded < file.frames:
        found = f"{decoded} of {file.frames} samples"
    elif file.format in ("WAV", "WAVEX") and (missing := _missing_wav_bytes(path)):
        found = f"{decoded} samples, {missing} bytes fewer than its header says"
    elif file.format == "OGG" and not _has_ogg_end(path):
        found = f"{decoded} samples and no end-of-stream page"
    else:
        return
    raise DataError(f"{path}: truncated or damaged, holds {found}; copy or download it again")


def _missing_wav_bytes(path: str | Path) -> int:
    """Bytes by which the `data` chunk of a RIFF file is longer than the file; 0 when it fits or its length was never filled in."""
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        if file.read(4) != b"RIFF":
            return 0
        file.seek(12)
        while len(header := file.read(8)) == 8:
            length = int.from_bytes(header[4:], "little")
            if header[:4] == b"data":
                # A writer into a pipe cannot come back to fill in the length: it leaves 0 or the largest number (some, one less).
                streamed = length == 0 or length >= 0x7FFFF000
                return 0 if streamed else max(0, file.tell() + length - size)
            file.seek(length + length % 2, os.SEEK_CUR)
    return 0


def _has_ogg_end(path: str | Path) -> bool:
    """Whether an Ogg file ends with a whole page that is marked as the last (RFC 3533 section 6: flag 0x04, then the segment sizes)."""
    longest_page = 65_307
    with open(path, "rb") as file:
        file.seek(max(0, os.path.getsize(path) - longest_page))
        tail = file.read()
    page = tail[tail.rfind(b"OggS") :]
    if len(page) < 27 or not page[5] & 4:
        return False
    sizes = page[27 : 27 + page[26]]
    return len(page) >= 27 + page[26] + sum(sizes)
