"""Forced alignment: the times of a known text. T frames, U symbols, V vocabulary."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from hubert_pretrain.decoding.hypothesis import LogProbabilities, Word, seconds_of_frames
from hubert_pretrain.decoding.spelling import BLANK_ID, Spelling
from hubert_pretrain.errors import DataError, HubertPretrainError
from hubert_pretrain.frames import MODEL_GRID, FrameGrid

MAX_CELLS = 2_000_000_000
"""Limit of T x U: the search holds a byte for each frame and each symbol or blank."""


@dataclass(frozen=True)
class Alignment:
    """Times of the words of a text and of their symbols."""

    words: tuple[Word, ...]
    symbols: tuple[Word, ...]
    score: float
    """Mean over the frames of the log-probability of the best path: near 0 where the text fits the
    audio."""


def align(
    log_probabilities: LogProbabilities,
    ids: Sequence[int],
    spelling: Spelling,
    *,
    grid: FrameGrid = MODEL_GRID,
) -> Alignment:
    """The most probable times of U symbols.

    CTC marks a symbol in few frames and says the blank between them. Blanks inside a word are
    shared by the symbols on both sides; those between words belong to none.

    Args:
        log_probabilities: (T, V).
        ids: of the text, boundaries between words included, without blanks.
        grid: of the frames.

    Raises:
        DataError: the frames cannot spell the text, or there are too many of both.
        HubertPretrainError: torchaudio cannot be imported.
    """
    if not ids:
        return Alignment((), (), float(log_probabilities[:, BLANK_ID].mean()))
    needed = len(ids) + sum(left == right for left, right in pairwise(ids))
    if needed > len(log_probabilities):
        raise DataError(
            f"the text needs {needed} frames, the audio has {len(log_probabilities)}; check that "
            "they belong together"
        )
    if 2 * len(log_probabilities) * len(ids) > MAX_CELLS:
        raise DataError(
            f"{len(log_probabilities)} frames and {len(ids)} symbols are too many to align at "
            "once; cut the recording into utterances"
        )
    path = best_path(log_probabilities, ids)
    values = np.take_along_axis(log_probabilities, path[:, None], 1)[:, 0]
    starts = np.flatnonzero(np.diff(path, prepend=-1))
    ends = np.append(starts[1:], len(path))
    spoken = path[starts] != BLANK_ID
    starts = starts[spoken]
    ends = ends[spoken]
    peaks = np.array([values[start:end].max() for start, end in zip(starts, ends, strict=True)])
    words = []
    symbols = []
    for text, first, after in spelling.words(ids):
        edges = _edges(starts[first:after], ends[first:after])
        words.append(_word(text, edges[0], edges[-1], peaks[first:after], grid))
        symbols += [
            _word(spelling.symbols[ids[place]], *edge, peaks[place : place + 1], grid)
            for place, edge in zip(range(first, after), pairwise(edges), strict=True)
        ]
    return Alignment(tuple(words), tuple(symbols), float(values.mean()))


def best_path(log_probabilities: LogProbabilities, ids: Sequence[int]) -> Any:
    """The most probable path (T,) that spells U ids."""
    import torch

    try:
        from torchaudio.functional import forced_align
    except (ImportError, OSError, RuntimeError) as error:
        raise HubertPretrainError(
            f"alignment needs a torchaudio that fits torch {torch.__version__} "
            f"({' '.join(str(error).split())[:80]}); install torch and torchaudio together"
        ) from error
    path, _ = forced_align(
        torch.from_numpy(np.asarray(log_probabilities, np.float32))[None],
        torch.tensor([list(ids)], dtype=torch.int32),
        blank=BLANK_ID,
    )
    return path[0].numpy()


def _edges(starts: Any, ends: Any) -> list[int]:
    """First frame of each symbol of a word, and the frame after the last: between two symbols in
    the middle of the blanks.
    """
    between = (ends[:-1] + starts[1:] + 1) // 2
    return [int(starts[0]), *between.tolist(), int(ends[-1])]


def _word(text: str, first: int, after: int, peaks: Any, grid: FrameGrid) -> Word:
    start, end = seconds_of_frames(first, after, grid)
    return Word(text, start, end, min(1.0, float(np.exp(peaks.mean()))))
