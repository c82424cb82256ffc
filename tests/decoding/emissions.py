"""CTC log-probabilities for tests. T frames, V vocabulary."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from hubert_pretrain.decoding.greedy import collapse

CHARACTERS = ("<pad>", "|", "A", "B", "C", "D", "E")


def emission(
    seed: int, num_frames: int, num_symbols: int, peak: float = 3.0
) -> NDArray[np.float32]:
    """(T, V) with a symbol in one of three frames, as much more probable as `peak` says."""
    draw = np.random.default_rng(seed)
    symbols = np.where(draw.random(num_frames) < 0.3, draw.integers(1, num_symbols, num_frames), 0)
    logits = draw.normal(size=(num_frames, num_symbols))
    logits[np.arange(num_frames), symbols] += peak
    return np.asarray(logits - np.log(np.exp(logits).sum(1, keepdims=True)), np.float32)


def spelling_out(
    text: Sequence[str], symbols: tuple[str, ...], sure: float = 0.9
) -> NDArray[np.float32]:
    """(T, V) in which each symbol of a text has two frames, and a blank follows."""
    path = [index for symbol in text for index in (symbols.index(symbol),) * 2 + (0,)]
    rest = (1 - sure) / (len(symbols) - 1)
    values = np.full((len(path), len(symbols)), rest, np.float32)
    values[np.arange(len(path)), path] = sure
    return np.log(values)


def all_labellings(log_probabilities: NDArray[np.float32]) -> dict[tuple[int, ...], float]:
    """The log-probability of each labelling, the sum over all its paths, by enumeration."""
    num_frames, num_symbols = log_probabilities.shape
    found: dict[tuple[int, ...], float] = {}
    for path in itertools.product(range(num_symbols), repeat=num_frames):
        ids = tuple(collapse(path))
        score = float(log_probabilities[np.arange(num_frames), path].sum())
        found[ids] = float(np.logaddexp(found.get(ids, -np.inf), score))
    return found
