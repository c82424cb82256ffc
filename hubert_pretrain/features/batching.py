"""Which utterances of a group are computed together: pure functions of their lengths.

So the batches of a block of targets are the same on any number of workers and ranks, and after a kill. Places are indices into the group.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Batches = list[NDArray[np.int64]]
"""Places (B,) of the utterances of each batch; together every place of the group once."""

MAX_PADDING = 0.1
"""Share of the shortest utterance of a padded batch by which the longest may be longer: more padding costs more than a smaller batch."""


def packed(num_samples: NDArray[np.int64], max_samples: int) -> Batches:
    """Neighbours, for features that lay utterances behind one another: at most `max_samples` together, or a single utterance."""
    batches: Batches = []
    start, total = 0, 0
    for place, length in enumerate(map(int, num_samples)):
        if place > start and total + length > max_samples:
            batches.append(np.arange(start, place))
            start, total = place, 0
        total += length
    return [*batches, np.arange(start, len(num_samples))] if len(num_samples) else []


def padded(num_samples: NDArray[np.int64], max_samples: int, *, max_padding: float = MAX_PADDING) -> Batches:
    """Similar lengths, for networks that pad: at most `max_samples` with the padding, or a single utterance. Longest first.

    `max_padding=0` puts only equally long utterances together.
    """
    batches: Batches = []
    order = np.argsort(-num_samples, kind="stable")
    start = 0
    for index in range(1, len(order) + 1):
        longest = int(num_samples[order[start]])
        full = (index - start + 1) * longest > max_samples
        if index == len(order) or full or longest > (1 + max_padding) * int(num_samples[order[index]]):
            batches.append(order[start:index])
            start = index
    return batches
