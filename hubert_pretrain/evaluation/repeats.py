"""Scores of one setting trained several times, once for each seed: intervals over seeds and
utterances, and differences between settings. S seeds, N utterances, R resamples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hubert_pretrain.evaluation.bootstrap import Estimate, Floats, Sampling, ratio
from hubert_pretrain.seeds import generator


@dataclass(frozen=True)
class Repeats:
    """A rate of one setting."""

    by_seed: list[float]
    pooled: Estimate
    """Of all seeds together. A resample draws seeds and utterances with replacement."""
    difference: Estimate
    """From the first setting, on the same utterances; 0 for the first."""


def compare(counts: Mapping[str, Sequence[NDArray[np.int64]]], sampling: Sampling) -> list[Repeats]:
    """The rate of each setting, in order.

    Args:
        counts: setting -> for each seed (N, 2), the errors of an utterance and its units, in one
            order of utterances for all settings.

    The draws of utterances are the same for all settings, because the utterances are the same;
    those of seeds are each setting's own.
    """
    stacked = {name: np.stack(of_seeds) for name, of_seeds in counts.items()}  # (S, N, 2)
    lengths = {each.shape[1] for each in stacked.values()}
    if len(lengths) != 1:
        raise ValueError(f"found settings with {sorted(lengths)} utterances, expected one number")
    utterances = _draws(lengths.pop(), sampling, "utterances")  # (R, N)
    found: list[Repeats] = []
    first_value = 0.0
    first_drawn: Floats = np.zeros(0)
    for name, each in stacked.items():
        value = float(ratio(each.sum(axis=(0, 1))[None])[0])
        seeds = _draws(len(each), sampling, "seeds", name)  # (R, S)
        sums = np.einsum("rs,rn,snc->rc", seeds, utterances, each, optimize=True)
        drawn = ratio(sums)
        if not found:
            first_value = value
            first_drawn = drawn
        found.append(
            Repeats(
                [float(ratio(of_seed.sum(axis=0)[None])[0]) for of_seed in each],
                _estimate(value, drawn, sampling),
                _estimate(value - first_value, drawn - first_drawn, sampling),
            )
        )
    return found


def _draws(count: int, sampling: Sampling, *key: str) -> NDArray[np.int64]:
    """(R, count): how often each is drawn."""
    source = generator(sampling.seed, "repeats", *key)
    return source.multinomial(count, np.full(count, 1.0 / count), size=sampling.resamples)


def _estimate(value: float, drawn: Floats, sampling: Sampling) -> Estimate:
    """Percentile interval."""
    tail = (1.0 - sampling.confidence) / 2
    low, high = np.quantile(drawn[np.isfinite(drawn)], [tail, 1.0 - tail])
    return Estimate(value, float(low), float(high))
