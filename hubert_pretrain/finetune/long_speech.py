"""Speech of any length through a network in bounded memory: overlapping chunks, each computed as an
utterance of its own, of whose frames the middle is used.

Attention is quadratic in time, so a recording of an hour cannot be computed whole; in chunks, work
grows with its length and memory does not. Everything inside a chunk is that of an utterance: a norm
over time (Base) and the normalisation of the waveform (Large) see the chunk with its context, not
the recording. That is what training has seen, and it follows a recording whose loudness changes;
frames differ from those of the whole recording (docs/evaluation.md has numbers). Speech that is not
longer than a chunk is computed whole. S samples, T frames.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from hubert_pretrain.data.audio_stream import Waveform
from hubert_pretrain.decoding.hypothesis import Hypothesis, LogProbabilities, Word, frame_at
from hubert_pretrain.decoding.spelling import BLANK_ID
from hubert_pretrain.errors import ConfigError
from hubert_pretrain.features.chunking import plan_chunks
from hubert_pretrain.frames import FrameGrid, samples, seconds

UTTERANCE_SECONDS_KEY = "utterance_seconds"
"""Key of a checkpoint's "extra": length of the longest utterance that it was fine-tuned on."""
UNLIKELY = -20.0
"""Log-probability of the other symbols where a pause ends a word."""


@dataclass(frozen=True)
class Chunking:
    """Lengths of chunks."""

    chunk_seconds: float = 20.0
    """Speech of one forward pass, context included."""
    context_seconds: float = 3.0
    """On each side of the frames that are used."""
    pause_seconds: float = 0.6
    """A longer pause between two symbols of characters ends a word; 0: only the model says so."""

    @staticmethod
    def of_utterances(longest: float) -> Chunking:
        """For a model that was trained on utterances of up to so many seconds: chunks of about
        twice that, at least 5 s and at most the default, which suits LibriSpeech. Far longer
        chunks than any utterance have more errors (docs/evaluation.md).
        """
        default = Chunking()
        chunk = min(max(2.0 * longest, 5.0), default.chunk_seconds)
        context = default.context_seconds * chunk / default.chunk_seconds
        return Chunking(round(chunk, 2), round(context, 2))

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
    """A part of a recording."""

    waveform: Waveform  # (S',)
    first_frame: int  # of the part, counted from the beginning of the recording
    used: slice  # its frames that are used
    is_last: bool


def chunks(
    blocks: Iterable[Waveform], grid: FrameGrid, chunking: Chunking
) -> Iterator[SpeechChunk]:
    """The chunks of `plan_chunks` of a recording that arrives in blocks, each as soon as its audio
    is there. The last one holds the samples after its last frame too.

    Memory: two chunks and a block.
    """
    length, context = chunking.frames(grid)
    enough = grid.num_samples(length + 1)  # there is a frame after the chunk
    buffer = np.zeros(0, dtype=np.float32)
    origin = 0  # frame at which the buffer begins
    start = 0  # frame at which the next chunk begins
    covered = 0
    for block in blocks:
        buffer = np.concatenate([buffer, block])
        while len(buffer) - (start - origin) * grid.hop >= enough:
            first = grid.start_sample(start - origin)
            stop = start + length - context
            yield SpeechChunk(
                buffer[first : first + grid.num_samples(length)],
                start,
                slice(covered - start, stop - start),
                is_last=False,
            )
            # The last chunk may begin before the next: it is as long as the others.
            buffer = buffer[first:]
            origin = start
            covered = stop
            start = covered - context
    num_frames = origin + grid.num_frames(len(buffer))
    *_, last = plan_chunks(num_frames, length, context)
    first = grid.start_sample(last.start - origin)
    used = slice(covered - last.start, None)
    yield SpeechChunk(buffer[first:], last.start, used, is_last=True)


def with_pauses(
    log_probabilities: LogProbabilities, boundary: int, least_frames: int
) -> LogProbabilities:
    """Log-probabilities (T, V) with the boundary of words as the best symbol in the middle of each
    pause: at least this many frames in which the blank is best, between two other symbols.

    A model that was trained on sentences has seen no boundary between two of them, and joins the
    last word of one with the first of the next.
    """
    path = log_probabilities.argmax(axis=1)
    spoken = np.flatnonzero(path != BLANK_ID)
    first = spoken[:-1]
    after = spoken[1:]
    is_pause = (
        (after - first > least_frames) & (path[first] != boundary) & (path[after] != boundary)
    )
    middles = (first[is_pause] + after[is_pause]) // 2
    found = log_probabilities.copy()
    found[middles] = UNLIKELY
    found[middles, boundary] = 0.0
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
