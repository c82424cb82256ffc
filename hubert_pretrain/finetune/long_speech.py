"""Speech of any length through a network in bounded memory: pieces between pauses, and, where
nobody pauses, overlapping chunks, of whose frames the middle is used.

Attention is quadratic in time, so a recording of an hour cannot be computed whole; in pieces, work
grows with its length and memory does not. Pieces and chunks are computed as utterances of their
own: a norm over time (Base) and the normalisation of the waveform (Large) see nothing else. That is
what training has seen, and it follows a recording whose loudness changes; frames differ from those
of the whole recording (docs/evaluation.md has numbers). Pauses are not computed. Speech that is not
longer than a chunk is computed whole. S samples, T frames, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from hubert_pretrain.data.audio_stream import Waveform
from hubert_pretrain.data.config import Segmentation
from hubert_pretrain.data.pauses import quiet_level, stretches
from hubert_pretrain.decoding.hypothesis import Hypothesis, LogProbabilities, Word, frame_at
from hubert_pretrain.decoding.spelling import BLANK_ID
from hubert_pretrain.errors import ConfigError
from hubert_pretrain.frames import FrameGrid, samples, seconds

UTTERANCE_SECONDS_KEY = "utterance_seconds"
"""Key of a checkpoint's "extra": length of the longest utterance that it was fine-tuned on."""
UNLIKELY = -20.0
"""Log-probability of the other symbols where a pause ends a word."""
_QUIET = Segmentation()
"""Levels and lengths of pauses: those that cut a corpus."""
_LEVEL_SECONDS = 60.0
"""Loud and quiet are relative to so much of the recording."""


@dataclass(frozen=True)
class Chunking:
    """Lengths of chunks."""

    chunk_seconds: float = 20.0
    """Speech of one forward pass, context included."""
    context_seconds: float = 3.0
    """On each side of the frames that are used."""
    pause_seconds: float = 0.6
    """A longer pause between two symbols of characters ends a word; 0: only the model says so."""
    piece_seconds: float = 15.0
    """Speech between two pauses that is computed together, longer where nobody pauses before; 0:
    pauses cut nothing."""

    @staticmethod
    def of_utterances(longest: float) -> Chunking:
        """For a model that was trained on utterances of up to so many seconds: pieces of at most
        that, chunks of about twice that, at least 5 s and at most the default, which suits
        LibriSpeech. Far longer ones than any utterance have more errors (docs/evaluation.md).
        """
        default = Chunking()
        chunk = min(max(2.0 * longest, 5.0), default.chunk_seconds)
        context = default.context_seconds * chunk / default.chunk_seconds
        piece = min(max(longest, 2.5), default.piece_seconds)
        return Chunking(round(chunk, 2), round(context, 2), piece_seconds=round(piece, 2))

    def frames(self, grid: FrameGrid) -> tuple[int, int]:
        """Frames of a chunk and of its context. Raises ConfigError when nothing is left to use."""
        chunk = grid.num_frames(samples(self.chunk_seconds))
        context = round(self.context_seconds * grid.frames_per_second)
        if context < 0 or chunk <= 2 * context:
            raise ConfigError(
                f"chunks of {self.chunk_seconds:g} s with {self.context_seconds:g} s of context on "
                "each side have nothing between; expected chunk-seconds above twice "
                "context-seconds, which is 0 or more"
            )
        return chunk, context


class SpeechChunk(NamedTuple):
    """A part of a recording that is computed."""

    waveform: Waveform  # (S',)
    first_frame: int  # of the waveform, counted from the beginning of the recording
    used: slice  # its frames that are used


class Pause(NamedTuple):
    """A part of a recording in which nobody speaks."""

    first_frame: int
    num_frames: int


def chunks(
    blocks: Iterable[Waveform], grid: FrameGrid, chunking: Chunking
) -> Iterator[SpeechChunk | Pause]:
    """The parts of a recording that arrives in blocks, each as soon as there is audio for a chunk.
    They have each frame of the recording once and in order, and the last one the samples after it.

    Memory: two chunks, a block, and the powers of a minute.
    """
    cutter = _Cutter(grid, chunking)
    for block in blocks:
        cutter.append(block)
        yield from cutter.parts(is_whole=False)
    yield from cutter.parts(is_whole=True)


class _Cutter:
    """A recording, as much of it as is there and not yet divided into parts. Places in it are
    frames from its beginning.
    """

    def __init__(self, grid: FrameGrid, chunking: Chunking) -> None:
        self.grid = grid
        self.length, self.context = chunking.frames(grid)
        rate = grid.frames_per_second
        self.piece = min(self.length, round(chunking.piece_seconds * rate))
        self.pause = round(_QUIET.pause_seconds * rate)
        self.margin = round(_QUIET.margin_seconds * rate)
        self.known = max(self.length, round(_LEVEL_SECONDS * rate))
        self.buffer = np.zeros(0, dtype=np.float32)
        self.origin = 0  # at which the buffer begins
        self.powers = np.zeros(0, dtype=np.float32)  # of the last hops that arrived
        self.cut = 0  # the end of the last pause: nothing before it is context
        self.start = 0  # at which the next chunk begins
        self.covered = 0  # after the last frame that is used

    def append(self, block: Waveform) -> None:
        """Takes more of the recording."""
        hop = self.grid.hop
        measured = len(self.buffer) // hop
        self.buffer = np.concatenate([self.buffer, block])
        if self.piece:
            hops = self.buffer[measured * hop : len(self.buffer) // hop * hop].reshape(-1, hop)
            earlier = self.powers[-(self.known + measured) :]
            self.powers = np.concatenate([earlier, hops.var(axis=1)])

    def parts(self, *, is_whole: bool) -> Iterator[SpeechChunk | Pause]:
        """The parts that can be told; all that are left once the recording is whole."""
        num_frames = self.origin + self.grid.num_frames(len(self.buffer))
        if is_whole and num_frames <= self.length:
            yield SpeechChunk(self.buffer, 0, slice(0, None))
            return
        while num_frames > self.start + self.length:
            yield self._next(self.start + self.length, is_end=False)
        while is_whole and self.covered < num_frames:
            yield self._next(num_frames, is_end=True)

    def _next(self, end: int, *, is_end: bool) -> SpeechChunk | Pause:
        """The next part of the frames up to `end`: that of the recording, or of a chunk."""
        starts, ends = self._speech(end)
        if not starts and (not is_end or self.covered == self.cut):
            return self._skipped(end if is_end else max(end - self.margin, self.covered + 1))
        if starts and starts[0] - self.covered >= self.pause - self.margin:
            return self._skipped(starts[0] - self.margin)
        places = [stop + self.margin for stop in ends if stop + self.pause <= end]
        if is_end and len(places) in (len(ends) - 1, 0):
            places.append(end)
        if not places:
            return self._overlapped()
        near = [place for place in places if place - self.start <= self.piece]
        chosen = near[-1] if near else places[0]
        return self._piece(chosen, is_last=is_end and chosen == end)

    def _speech(self, end: int) -> tuple[list[int], list[int]]:
        """Places between the covered frames and `end` at which speech begins, and ends."""
        if not self.piece:
            return [self.covered], [end]
        last = self.origin + len(self.buffer) // self.grid.hop
        known = self.powers[: len(self.powers) - (last - end)][-self.known :]
        level = quiet_level(known, _QUIET.pause_db)
        starts, ends = stretches(known[self.covered - end :] > level, self.pause)
        return (starts + self.covered).tolist(), (ends + self.covered).tolist()

    def _skipped(self, stop: int) -> Pause:
        """A pause up to a place."""
        found = Pause(self.covered, stop - self.covered)
        self.cut = self.start = self.covered = stop
        self._forget(stop)
        return found

    def _piece(self, stop: int, *, is_last: bool) -> SpeechChunk:
        """Speech up to a pause or to the end. The last chunk without a pause is as long as the
        others: it begins earlier.
        """
        if is_last:
            self.start = max(self.cut, min(self.start, stop - self.length))
        found = self._chunk(stop, stop, is_last=is_last)
        self.cut = self.start = stop
        return found

    def _overlapped(self) -> SpeechChunk:
        """A chunk, with context on both sides."""
        stop = self.start + self.length
        found = self._chunk(stop, stop - self.context)
        self.start = self.covered - self.context
        return found

    def _chunk(self, stop: int, used: int, *, is_last: bool = False) -> SpeechChunk:
        """From `start` to a place, its frames used from those that are covered to another."""
        self._forget(self.start)
        waveform = (
            self.buffer if is_last else self.buffer[: self.grid.num_samples(stop - self.start)]
        )
        found = SpeechChunk(
            waveform, self.start, slice(self.covered - self.start, used - self.start)
        )
        self.covered = used
        return found

    def _forget(self, place: int) -> None:
        """Drops the samples before a place."""
        self.buffer = self.buffer[self.grid.start_sample(place - self.origin) :]
        self.origin = place


def with_pauses(
    log_probabilities: LogProbabilities, boundary: int, least_frames: int
) -> LogProbabilities:
    """Log-probabilities (T, V) with the boundary of words as the best symbol in the middle of each
    pause: between two other symbols at least this many frames in which the blank is best, or some
    that are not computed (`of_pause`).

    A model that was trained on sentences has seen no boundary between two of them, and joins the
    last word of one with the first of the next.
    """
    path = log_probabilities.argmax(axis=1)
    spoken = np.flatnonzero(path != BLANK_ID)
    first = spoken[:-1]
    after = spoken[1:]
    skipped = np.cumsum(np.isneginf(log_probabilities[:, boundary]))
    is_pause = (
        ((after - first > least_frames) | (skipped[after] > skipped[first]))
        & (path[first] != boundary)
        & (path[after] != boundary)
    )
    middles = (first[is_pause] + after[is_pause]) // 2
    found = log_probabilities.copy()
    found[middles] = UNLIKELY
    found[middles, boundary] = 0.0
    return found


def of_pause(num_frames: int, symbols: int) -> LogProbabilities:
    """Log-probabilities (T, V) of frames that are not computed: only the blank is possible."""
    found = np.full((num_frames, symbols), -np.inf, dtype=np.float32)
    found[:, BLANK_ID] = 0.0
    return found


def words_as_known(
    parts: Iterable[LogProbabilities],
    decode: Callable[[LogProbabilities], Hypothesis],
    grid: FrameGrid,
) -> Iterator[Word]:
    """The words of a recording whose log-probabilities (T', V) come in parts, each word when no
    later part can make it longer.

    Decoded from the beginning of the last word on, so the work does not grow with what was said
    before. Greedy decoding gives the words of the whole recording; a search with a language model
    begins again at each part.
    """
    waiting: LogProbabilities | None = None
    first_frame = 0
    for part in parts:
        waiting = part if waiting is None else np.concatenate([waiting, part])
        words = decode(waiting).words
        for word in words[:-1]:
            yield _later(word, first_frame, grid)
        done = frame_at(words[-1].start, grid) if words else len(waiting)
        waiting = waiting[done:]
        first_frame += done
    for word in decode(waiting).words if waiting is not None else ():
        yield _later(word, first_frame, grid)


def _later(word: Word, frames: int, grid: FrameGrid) -> Word:
    offset = seconds(grid.start_sample(frames))
    return replace(word, start=word.start + offset, end=word.end + offset)
