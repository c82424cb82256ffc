"""Units as a segmentation of speech: their boundaries and their sequence against phones.

Letters: T frames, K clusters, P phones.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class BoundaryScores:
    """Boundaries where the unit changes, against boundaries where the phone changes."""

    precision: float
    """Share of the unit boundaries that are phone boundaries."""
    recall: float
    """Share of the phone boundaries that are unit boundaries."""

    @property
    def f1(self) -> float:
        """Harmonic mean of both."""
        total = self.precision + self.recall
        return 2 * self.precision * self.recall / total if total else 0.0

    @property
    def r_value(self) -> float:
        """1 minus the mean distance from the ideal, which punishes too many boundaries (Räsänen et
        al. 2009, "An improved speech segmentation quality measure: the R-value")."""
        if not self.precision:
            return 0.0
        over = self.recall / self.precision - 1.0
        ideal = math.hypot(1.0 - self.recall, over)
        no_over = (self.recall - 1.0 - over) / math.sqrt(2.0)
        return 1.0 - (abs(ideal) + abs(no_over)) / 2.0


def boundaries(ids: NDArray[np.integer]) -> NDArray[np.int64]:
    """Frames (1 ... T - 1) whose id is not that of the frame before."""
    return np.flatnonzero(ids[1:] != ids[:-1]) + 1


def phone_error_rate(
    units: Sequence[NDArray[np.integer]],
    phones: Sequence[NDArray[np.integer]],
    phone_of_unit: NDArray[np.integer],
) -> float:
    """Edit distance between the phones of the units and the phones, by the number of phones.

    Each unit stands for a phone (many units to one phone); equal neighbours are one.

    Args:
        units: (T,) ids of each utterance.
        phones: (T,) phone ids of each utterance.
        phone_of_unit: (K,) phone id.
    """
    from rapidfuzz.distance import Levenshtein

    errors = 0
    length = 0
    for of_units, of_phones in zip(units, phones, strict=True):
        reference = collapsed(of_phones)
        errors += Levenshtein.distance(collapsed(phone_of_unit[of_units]), reference)
        length += len(reference)
    return errors / max(1, length)


def collapsed(ids: NDArray[np.integer]) -> list[int]:
    """The ids, each run of equal ones once."""
    if not len(ids):
        return []
    return [int(each) for each in ids[np.concatenate([[0], boundaries(ids)])]]
