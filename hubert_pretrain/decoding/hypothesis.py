"""Results of decoding, and the protocol of decoders. T frames, V vocabulary."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from hubert_pretrain.decoding.spelling import BLANK_ID, Spelling
from hubert_pretrain.frames import MODEL_GRID, FrameGrid, samples, seconds

LogProbabilities = NDArray[np.floating]
"""(T, V) natural logarithms, the blank first."""


@dataclass(frozen=True)
class Word:
    """A word of a hypothesis."""

    text: str
    start: float
    """Seconds from the first sample."""
    end: float
    confidence: float
    """0 to 1: geometric mean over its symbols of the symbol's largest probability in its frames."""


@dataclass(frozen=True)
class Hypothesis:
    """A text for an utterance."""

    text: str
    score: float
    """Natural logarithm: of the acoustic probability, plus the weighted language model and the
    scores of words."""
    words: tuple[Word, ...]
    confidence: float
    """Geometric mean of that of all symbols; 1 for an empty text."""
    ids: tuple[int, ...]
    """The symbols, U."""


class Decoder(Protocol):
    """CTC log-probabilities -> text."""

    def decode(self, log_probabilities: LogProbabilities) -> Hypothesis:
        """The best hypothesis of one utterance (T, V)."""
        ...

    def decode_batch(self, batch: Sequence[LogProbabilities]) -> list[Hypothesis]:
        """The best hypothesis of each utterance."""
        ...

    def n_best(self, log_probabilities: LogProbabilities) -> list[Hypothesis]:
        """Several hypotheses of one utterance, the best first."""
        ...


def hypothesis_of(
    ids: Sequence[int],
    onsets: Sequence[int],
    score: float,
    log_probabilities: LogProbabilities,
    spelling: Spelling,
    grid: FrameGrid = MODEL_GRID,
    names: Mapping[tuple[int, ...], str] | None = None,
) -> Hypothesis:
    """A hypothesis from U symbols and the frames in which they begin.

    A symbol lasts while it is more probable than the blank, at most up to the next.

    Args:
        names: words that are written in another way than their symbols, by their symbols.
    """
    ends = [*onsets[1:], len(log_probabilities)][: len(onsets)]
    spans = [
        (first, _last_frame(log_probabilities, index, first, end))
        for index, first, end in zip(ids, onsets, ends, strict=True)
    ]
    peaks = [
        float(log_probabilities[first:after, index].max())
        for index, (first, after) in zip(ids, spans, strict=True)
    ]
    names = names or {}
    words = tuple(
        Word(
            names.get(tuple(ids[first:after]), text),
            *seconds_of_frames(spans[first][0], spans[after - 1][1], grid),
            _mean(peaks[first:after]),
        )
        for text, first, after in spelling.words(ids)
    )
    text = " ".join(word.text for word in words)
    return Hypothesis(text, score, words, _mean(peaks), tuple(ids))


def seconds_of_frames(first: int, after: int, grid: FrameGrid) -> tuple[float, float]:
    """Start and end of frames: half a hop on each side of their centres, so that the interval of a
    frame holds its centre, and those of neighbours touch.
    """
    before = grid.window // 2 - grid.hop // 2
    return (
        seconds(grid.start_sample(first) + before),
        seconds(grid.start_sample(after) + before),
    )


def frame_at(start: float, grid: FrameGrid) -> int:
    """The frame whose interval begins at this second: the inverse of `seconds_of_frames`."""
    before = grid.window // 2 - grid.hop // 2
    return (samples(start) - before) // grid.hop


def _last_frame(log_probabilities: LogProbabilities, index: int, first: int, end: int) -> int:
    """The frame after the last of a symbol that begins at `first`."""
    mine = log_probabilities[first + 1 : end, index]
    weaker = np.flatnonzero(mine <= log_probabilities[first + 1 : end, BLANK_ID])
    return first + 1 + int(weaker[0]) if len(weaker) else end


def _mean(log_values: Sequence[float]) -> float:
    return min(1.0, float(np.exp(np.mean(log_values)))) if log_values else 1.0
