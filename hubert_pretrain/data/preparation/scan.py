"""Scan of audio files: each is decoded once, in parallel, for its exact length, its statistics and
damage.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import TypeVar

from hubert_pretrain.data import containers
from hubert_pretrain.data.audio import MIX
from hubert_pretrain.data.audio_stream import AudioStream, Waveform
from hubert_pretrain.data.decoding import one_line, open_stream
from hubert_pretrain.data.preparation.audio_stats import WHOLE, AudioFacts, AudioStats, Segment
from hubert_pretrain.data.preparation.recode import Recoder, write_flac
from hubert_pretrain.data.preparation.scan_journal import identity
from hubert_pretrain.data.storage import ByteRange, Cache, Location, open_bytes
from hubert_pretrain.distributed import end_with_parent, usable_cores
from hubert_pretrain.errors import DataError
from hubert_pretrain.files import replacing
from hubert_pretrain.frames import MODEL_GRID, SAMPLE_RATE

Result = TypeVar("Result")

_NEGLIGIBLE_SECONDS = MODEL_GRID.window / SAMPLE_RATE
"""A file that ends by less than one model frame before the length that its header states is whole:
some writers count a sample, or the bytes of the header, too many.
"""
_NEGLIGIBLE_BYTES = 64

_FEW = 128
_FEW_BYTES = 1 << 26
"""Up to this many files, and bytes in them, starting processes costs more than it saves."""
_CHUNK = 32
_CHUNK_BYTES = 1 << 24
"""Files, or bytes in them, that a process reads before it gives its results."""
_AHEAD = 4
"""Chunks that each process may be ahead of the results that were taken."""


@dataclass(frozen=True, slots=True)
class Recording:
    """An audio file and the segments of it that are utterances. It is decoded once for all of
    them.
    """

    location: Location
    segments: Sequence[Segment] = (WHOLE,)


def scan(
    path: str | Path,
    *,
    offset: int = -1,
    num_bytes: int = -1,
    cache: Cache | None = None,
    channel: int = MIX,
) -> AudioFacts:
    """Decodes a whole file and measures it, in constant memory.

    Args:
        path: the file or its URL, or the shard that holds it.
        offset, num_bytes: position of the file in its shard; -1: `path` is the file.
        cache: for audio behind URLs.
        channel: number of a channel, MIX or LOUDEST.

    Raises:
        DataError: the file is missing, unreadable, truncated, shorter than one model frame, silent
            throughout, or holds NaN or numbers that are not audio.
    """
    segment = Segment(channel=channel)
    recording = Recording(Location(str(path), offset, num_bytes), [segment])
    facts = scan_segments(recording, cache)[0]
    if isinstance(facts, str):
        raise DataError(f"{path}: {facts}")
    return facts


def scan_segments(
    recording: Recording, cache: Cache | None = None, recoder: Recoder | None = None
) -> list[AudioFacts | str]:
    """The facts of every segment of a recording, or the reason why the segment cannot be used.
    `recoder` makes a FLAC of a long recording of a format without exact positions, and the facts
    are those of the FLAC.

    Raises:
        DataError: no segment can be used: the file is missing, unreadable, truncated or holds NaN.
    """
    return measure(recording, cache, recoder).results()


def measure(
    recording: Recording, cache: Cache | None = None, recoder: Recoder | None = None
) -> AudioStats:
    """The statistics of a recording, see `scan_segments`."""
    path, offset, num_bytes = recording.location
    content = open_bytes(path, offset, num_bytes, cache)
    beginning: list[Waveform] = []
    with open_stream(path, content) as stream:
        if recoder is not None and recoder.is_for(stream):
            flac = recoder.path_of(recording.location, identity(recording.location))
            if not flac.exists():
                beginning, is_long = recoder.beginning(stream)
                if is_long:
                    with replacing(flac) as temporary:
                        decoded = write_flac(path, stream, beginning, temporary)
                        _refuse_incomplete(path, content, stream, decoded)
            if flac.exists():
                stats = measure(Recording(Location(str(flac)), recording.segments))
                stats.recoded_from = stream.rate
                return stats
        stats = AudioStats(stream.rate, stream.channels, recording.segments)
        for block in itertools.chain(beginning, stream.blocks()):
            stats.add(path, block)
        stats.finish()
        _refuse_incomplete(path, content, stream, stats.source_samples)
    return stats


def scan_all(
    recordings: Iterable[Recording],
    workers: int = 0,
    cache: Cache | None = None,
    recoder: Recoder | None = None,
) -> Iterator[list[AudioFacts | str]]:
    """`scan_or_reason` of every recording, in their order for any number of processes.

    Args:
        recordings: any number of them.
        workers: processes; 0 is one per core this process may use.
        cache: for audio behind URLs.
        recoder: see `scan_segments`.
    """
    return in_processes(partial(scan_or_reason, cache=cache, recoder=recoder), recordings, workers)


def in_processes(
    function: Callable[[Recording], Result], recordings: Iterable[Recording], workers: int = 0
) -> Iterator[Result]:
    """A function of every recording, in their order for any number of processes. Takes only a few
    recordings ahead of its results.
    """
    recordings = iter(recordings)
    workers = workers or usable_cores()
    few: list[Recording] = []
    size = 0
    while workers > 1 and len(few) <= _FEW and size <= _FEW_BYTES:
        if (recording := next(recordings, None)) is None:
            break
        few.append(recording)
        size += _size(recording)
    recordings = itertools.chain(few, recordings)
    if len(few) <= _FEW and size <= _FEW_BYTES:
        yield from map(function, recordings)
        return
    # spawn, because a fork would copy the locks that threads of the caller's libraries hold.
    executor = ProcessPoolExecutor(
        workers, mp_context=get_context("spawn"), initializer=end_with_parent
    )
    waiting: deque[Future[list[Result]]] = deque()
    try:
        for chunk in _chunks(recordings):
            waiting.append(executor.submit(_each, function, chunk))
            if len(waiting) >= _AHEAD * workers:
                yield from waiting.popleft().result()
        while waiting:
            yield from waiting.popleft().result()
    except BrokenProcessPool as error:
        raise DataError(
            "a process that reads audio died, killed or out of memory; "
            "run again with fewer, e.g. data.workers=1"
        ) from error
    finally:
        executor.shutdown(wait=True, cancel_futures=True)


def _size(recording: Recording) -> int:
    """Bytes of a recording; 0 where it is missing, or behind a URL that does not say it."""
    location = recording.location
    return location.num_bytes if location.offset >= 0 else max(0, identity(location)[0])


def _chunks(recordings: Iterator[Recording]) -> Iterator[list[Recording]]:
    """Recordings for a process at a time: few of long ones, so that all processes have some."""
    chunk: list[Recording] = []
    size = 0
    for recording in recordings:
        chunk.append(recording)
        size += _size(recording)
        if len(chunk) == _CHUNK or size > _CHUNK_BYTES:
            yield chunk
            chunk = []
            size = 0
    if chunk:
        yield chunk


def _each(function: Callable[[Recording], Result], recordings: list[Recording]) -> list[Result]:
    return [function(recording) for recording in recordings]


def scan_or_reason(
    recording: Recording, cache: Cache | None = None, recoder: Recoder | None = None
) -> list[AudioFacts | str]:
    """`scan_segments`, with the reason for every segment in place of an error."""
    path = recording.location.path
    try:
        return scan_segments(recording, cache, recoder)
    except DataError as error:
        reason = str(error).removeprefix(f"{path}: ")
    except (ValueError, RuntimeError, OSError) as error:
        # For example a header with a rate that no resampler accepts.
        reason = f"cannot be used ({type(error).__name__}: {one_line(error)}); replace the file"
    return [reason] * len(recording.segments)


def _refuse_incomplete(path: str, content: ByteRange, stream: AudioStream, decoded: int) -> None:
    """Raises DataError when a file is shorter than its header states, or holds more than was
    decoded. (Of a truncated file libsndfile decodes the rest without an error, except for FLAC.)
    """
    missing = containers.missing_bytes(stream.kind, stream.log)
    if stream.stated and stream.stated - decoded > _NEGLIGIBLE_SECONDS * stream.rate:
        found = f"{decoded} of {stream.stated} samples"
    elif missing > _NEGLIGIBLE_BYTES:
        found = f"{decoded} samples, {missing} bytes fewer than its header says"
    elif not containers.has_end(stream.kind, content):
        found = f"{decoded} samples and no end-of-stream page"
    elif reason := containers.unread_part(stream.kind, content):
        raise DataError(f"{path}: {reason}")
    else:
        return
    raise DataError(f"{path}: truncated or damaged, holds {found}; copy or download it again")
