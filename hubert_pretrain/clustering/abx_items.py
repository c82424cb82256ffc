"""Items for ABX: phones in context of aligned utterances, or utterances of a single word."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from hubert_pretrain.clustering.abx import Item
from hubert_pretrain.data.corpus import Corpus
from hubert_pretrain.frames import FrameGrid

Span = Literal["phone", "triphone"]


def phone_items(
    corpus: Corpus, rows: NDArray[np.int64], grid: FrameGrid, span: Span = "triphone"
) -> list[Item]:
    """Every phone of aligned utterances that has a phone before and after it, and a frame.

    Args:
        corpus: a corpus with alignments.
        rows: aligned rows of its manifest.
        grid: of the frames.
        span: stretch that is compared. triphone: the phone with both neighbours, as in Libri-light.
            phone: the phone alone, in the context of its neighbours.
    """
    return [item for row in rows.tolist() for item in _phones_of(corpus, row, grid, span)]


def _phones_of(corpus: Corpus, row: int, grid: FrameGrid, span: Span) -> Iterator[Item]:
    alignments = corpus.alignments
    utterance = corpus.manifest[row]
    assert alignments is not None
    numbers, starts, ends = alignments.intervals(row)
    names = [alignments.phones[number] for number in numbers.tolist()]
    num_frames = grid.num_frames(utterance.num_samples)
    margin = 1 if span == "triphone" else 0
    for place in range(1, len(names) - 1):
        start, stop = _frames_between(int(starts[place - margin]), int(ends[place + margin]), grid)
        if start < stop <= num_frames:
            yield Item(
                row=row,
                start=start,
                stop=stop,
                label=names[place],
                context=(names[place - 1], names[place + 1]),
                speaker=utterance.speaker,
            )


def word_items(
    corpus: Corpus, grid: FrameGrid, rows: NDArray[np.int64] | None = None
) -> list[Item]:
    """Every utterance that is a single word (its text, else its label), as a whole: spoken digits,
    commands. Needs no alignment and no context.

    Utterances of several words are skipped: their words would need an alignment.

    Args:
        corpus: with texts or labels.
        grid: of the frames.
        rows: rows of the manifest; None for all.
    """
    items = []
    for row in (corpus.manifest.rows() if rows is None else rows).tolist():
        utterance = corpus.manifest[row]
        word = utterance.text.strip() or utterance.label
        num_frames = int(grid.num_frames(utterance.num_samples))
        if len(word.split()) == 1 and num_frames > 0:
            items.append(
                Item(
                    row=row,
                    start=0,
                    stop=num_frames,
                    label=word,
                    context=(),
                    speaker=utterance.speaker,
                )
            )
    return items


def _frames_between(start: int, end: int, grid: FrameGrid) -> tuple[int, int]:
    """Frames [first, stop) whose centres lie in the samples [start, end)."""
    centre = grid.centre_sample(0)
    first = -(-(start - centre) // grid.hop)
    stop = -(-(end - centre) // grid.hop)
    return max(0, first), max(0, stop)
