"""What ABX compares: phones in context where a corpus is aligned, words where each utterance is
one. P phones of an utterance.
"""

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
    """Every phone of aligned rows that has one before and one after it, and a frame of its own.

    Args:
        corpus: with alignments. rows: of its manifest, aligned. grid: of the frames. span: what is
        compared. triphone: the phone with both neighbours, as in Libri-light. phone: it alone, in
        their context.
    """
    return [item for row in rows.tolist() for item in _phones_of(corpus, row, grid, span)]


def _phones_of(corpus: Corpus, row: int, grid: FrameGrid, span: Span) -> Iterator[Item]:
    alignments = corpus.alignments
    utterance = corpus.manifest[row]
    assert alignments is not None
    numbers, starts, ends = alignments.intervals(row)
    names = [alignments.phones[number] for number in numbers.tolist()]
    last = grid.num_frames(utterance.num_samples)
    for place in range(1, len(names) - 1):
        first, final = (place - 1, place + 1) if span == "triphone" else (place, place)
        start, stop = _frames_between(int(starts[first]), int(ends[final]), grid)
        if stop > start and stop <= last:
            yield Item(
                row,
                start,
                stop,
                names[place],
                (names[place - 1], names[place + 1]),
                utterance.speaker,
            )


def word_items(
    corpus: Corpus, grid: FrameGrid, rows: NDArray[np.int64] | None = None
) -> list[Item]:
    """Every utterance that is one word (its text, else its label), whole: spoken digits, commands.
    No context, no alignment needed.

    Words inside sentences would need an alignment; utterances of several words give nothing.
    `rows`: which to look at; None: all.
    """
    items = []
    for row in (corpus.manifest.rows() if rows is None else rows).tolist():
        utterance = corpus.manifest[row]
        word = utterance.text.strip() or utterance.label
        if word and len(word.split()) == 1 and (frames := grid.num_frames(utterance.num_samples)):
            items.append(Item(row, 0, int(frames), word, (), utterance.speaker))
    return items


def _frames_between(start: int, end: int, grid: FrameGrid) -> tuple[int, int]:
    """Frames [first, stop) whose centres lie in samples [start, end)."""
    centre = grid.centre_sample(0)
    return max(0, -(-(start - centre) // grid.hop)), max(0, -(-(end - centre) // grid.hop))
