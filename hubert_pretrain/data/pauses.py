"""Stretches of sound between pauses, by the energy of hops. T hops."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

LOUD_PERCENTILE = 95.0
"""The loud hops of a recording are those above it."""
_NOISE_PERCENTILE = 10.0
_ABOVE_NOISE = 6.0
_BELOW_LOUD = 20.0

Hops = NDArray[np.int64]


def stretches(is_loud: NDArray[np.bool_], pause: int) -> tuple[Hops, Hops]:
    """The first hop of each stretch, and that after its last: loud hops (T,), with less than
    `pause` quiet ones between two of them.
    """
    edges = np.flatnonzero(np.diff(is_loud, prepend=False, append=False))
    starts = edges[::2]
    ends = edges[1::2]
    if not len(starts):
        return starts, ends
    is_pause = starts[1:] - ends[:-1] >= pause
    return starts[np.append(True, is_pause)], ends[np.append(is_pause, True)]


def decibels(ratio: float) -> float:
    """A ratio of powers."""
    return float(10 ** (ratio / 10))


def quiet_level(powers: NDArray[np.floating], pause_db: float) -> float:
    """The power up to which hops (T,) are quiet: so many dB below the loud ones, or, where noise
    is louder, a little above it, if that is well below them.
    """
    quiet, loud = np.percentile(powers, [_NOISE_PERCENTILE, LOUD_PERCENTILE])
    noisy = min(quiet * decibels(_ABOVE_NOISE), loud * decibels(-_BELOW_LOUD))
    return float(max(loud * decibels(-pause_db), noisy))
