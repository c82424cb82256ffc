"""Confidence intervals of scores by the bootstrap: utterances, or whole speakers, are drawn with
replacement as often as there are of them, and the score is computed again (Bisani & Ney 2004).

Letters: N utterances, U units that are drawn, R resamples, C counts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hubert_pretrain.seeds import generator

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_MOST_DRAWS = 1 << 22
"""Draws (R x U) in memory at a time."""


@dataclass(frozen=True)
class Sampling:
    """The draws of a bootstrap."""

    resamples: int = 1000
    confidence: float = 0.95
    """Share of the resamples between the ends of an interval."""
    seed: int = 0


@dataclass(frozen=True)
class Estimate:
    """A score and its interval, both in the unit of the score."""

    value: float
    low: float
    high: float

    def as_json(self) -> dict[str, float]:
        """Plain values."""
        return {"value": self.value, "low": self.low, "high": self.high}


class Bootstrap:
    """The same draws for every score of some utterances."""

    def __init__(self, units: Sequence[str], sampling: Sampling) -> None:
        """units: of each utterance, the unit that is drawn as a whole: its id, or its speaker."""
        names, numbers = np.unique(np.asarray(units, dtype=object).astype(str), return_inverse=True)
        self.units: Ints = numbers.reshape(-1)
        self.n_units = len(names)
        self.sampling = sampling

    def of_sums(self, counts: Any, statistic: Callable[[Floats], Floats]) -> Estimate:
        """A score that depends on sums over utterances, such as errors / words.

        Args:
            counts: (N, C), an array or a sparse one of scipy.
            statistic: (R, C) sums -> (R,) scores.
        """
        from scipy import sparse

        ones = np.ones(len(self.units))
        places = (self.units, np.arange(len(self.units)))
        by_unit = sparse.csr_array((ones, places), shape=(self.n_units, len(self.units))) @ counts
        total = np.asarray(by_unit.sum(axis=0)).reshape(1, -1)
        drawn = [statistic(np.asarray(draws @ by_unit)) for draws in self._draws()]
        return self._estimate(float(statistic(total)[0]), np.concatenate(drawn))

    def of_rows(self, statistic: Callable[[Ints], Floats]) -> list[Estimate]:
        """Any other scores. `statistic`: numbers of utterances, some repeated -> scores."""
        members = np.argsort(self.units, kind="stable")
        ends = np.cumsum(np.bincount(self.units, minlength=self.n_units))[:-1]
        of_unit = np.split(members, ends)
        drawn = []
        for draws in self._draws():
            for times in draws:
                rows = [np.tile(of_unit[unit], times[unit]) for unit in np.flatnonzero(times)]
                drawn.append(statistic(np.concatenate(rows)))
        values = statistic(np.arange(len(self.units)))
        return [
            self._estimate(float(value), column)
            for value, column in zip(values, np.stack(drawn, axis=1), strict=True)
        ]

    def of_pairs(
        self, first: Ints, second: Ints, statistic: Callable[[Floats], Floats]
    ) -> list[Estimate]:
        """Scores of M pairs of utterances. A pair of two units is drawn as often as both together,
        one within a unit as often as that.

        Args:
            first, second: (M,) numbers of utterances.
            statistic: (R, M) weights of the pairs -> (R, scores).
        """
        ends = self.units[first], self.units[second]
        within = ends[0] == ends[1]
        at_once = max(1, _MOST_DRAWS // max(1, len(first)))
        drawn = []
        for draws in self._draws():
            for start in range(0, len(draws), at_once):
                times = draws[start : start + at_once]
                others = np.where(within, 1, times[:, ends[1]])
                drawn.append(statistic((times[:, ends[0]] * others).astype(np.float64)))
        values = statistic(np.ones((1, len(first))))[0]
        return [
            self._estimate(float(value), column)
            for value, column in zip(values, np.concatenate(drawn).T, strict=True)
        ]

    def _draws(self) -> Iterator[Ints]:
        """Blocks (R, U) of the times that each unit is drawn."""
        source = generator(self.sampling.seed, "bootstrap")
        at_once = max(1, _MOST_DRAWS // self.n_units)
        even = np.full(self.n_units, 1.0 / self.n_units)
        for first in range(0, self.sampling.resamples, at_once):
            count = min(at_once, self.sampling.resamples - first)
            yield source.multinomial(self.n_units, even, size=count)

    def _estimate(self, value: float, drawn: Floats) -> Estimate:
        """Percentile interval. A resample without a score (no words in it) has no part in it."""
        drawn = drawn[np.isfinite(drawn)]
        if not len(drawn):
            return Estimate(value, value, value)
        tail = (1.0 - self.sampling.confidence) / 2
        low, high = np.quantile(drawn, [tail, 1.0 - tail])
        return Estimate(value, float(low), float(high))


def ratio(sums: Floats) -> Floats:
    """Statistic of counts (C = 2): the first over the second. Without any of the second it is 0
    where the first is 0, else infinite.
    """
    over, under = sums.T
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(under > 0, over / under, np.where(over > 0, np.inf, 0.0))
