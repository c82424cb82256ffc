"""Greedy CTC decoding: the best path. T frames, U symbols, V vocabulary."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING

import numpy as np

from hubert_pretrain.decoding.hypothesis import Hypothesis, LogProbabilities, hypothesis_of
from hubert_pretrain.decoding.spelling import BLANK_ID, Spelling
from hubert_pretrain.frames import MODEL_GRID, FrameGrid

if TYPE_CHECKING:
    from torch import Tensor


def greedy_decode(logits: Tensor) -> list[int]:
    """The ids of the best path through ``logits`` (T, V), repeats merged and blanks removed."""
    return collapse(logits.argmax(dim=-1).tolist())


def collapse(path: Sequence[int]) -> list[int]:
    """Ids that a path of T symbols spells: equal neighbours are merged, blanks removed (Graves et
    al. 2006, section 3.1).
    """
    return [symbol for symbol, _ in groupby(path) if symbol != BLANK_ID]


class GreedyDecoder:
    """The best symbol of each frame."""

    def __init__(self, symbols: Sequence[str], *, grid: FrameGrid = MODEL_GRID) -> None:
        """
        Args:
            symbols: of the model's V outputs, the blank first.
            grid: of the frames, for times.
        """
        self.spelling = Spelling(symbols)
        self.grid = grid

    def decode(self, log_probabilities: LogProbabilities) -> Hypothesis:
        """The text of the best path of one utterance (T, V); its score is that path's."""
        path = log_probabilities.argmax(axis=1)  # (T,)
        begins = np.flatnonzero(np.diff(path, prepend=-1))
        onsets = begins[path[begins] != BLANK_ID]
        score = float(np.take_along_axis(log_probabilities, path[:, None], 1).sum())
        return hypothesis_of(
            path[onsets].tolist(),
            onsets.tolist(),
            score,
            log_probabilities,
            self.spelling,
            self.grid,
        )

    def decode_batch(self, batch: Sequence[LogProbabilities]) -> list[Hypothesis]:
        """The text of the best path of each utterance."""
        return [self.decode(each) for each in batch]

    def n_best(self, log_probabilities: LogProbabilities) -> list[Hypothesis]:
        """The best path alone."""
        return [self.decode(log_probabilities)]
