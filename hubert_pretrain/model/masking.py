"""Which frames are hidden: the reference's span sampler (fairseq's compute_mask_indices, static lengths, mask version 2), seeded.

NumPy only: masks are made by the loader's processes. T frames; True = hidden.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hubert_pretrain.errors import DataError

Mask = NDArray[np.bool_]


def span_mask(num_frames: int, *, probability: float, span_frames: int, min_spans: int, generator: np.random.Generator) -> Mask:
    """Spans of `span_frames` frames from random starts; they may overlap and run over the end, where they are cut.

    The number of spans is `probability * num_frames / span_frames`, rounded up or down at random so that its mean is exact, and at least
    `min_spans`. For probability .8, 10 frames and T = 781 that hides .567 of the frames on average (1 - (1 - .8 / 10)^10).
    The same sampler makes channel masks (`num_frames` = width, `min_spans` = 0).

    Returns (T,) bool. At least one frame stays visible, however short the row.
    """
    count = max(min_spans, int(probability * num_frames / span_frames + generator.random()))
    mask = np.zeros(num_frames, dtype=np.bool_)
    if count == 0:
        return mask
    # In a row too short for so many full spans the starts may lie nearer to the end, where spans are cut, so that enough starts exist.
    starts = num_frames - span_frames if num_frames - span_frames > count else count + 1
    hidden = generator.choice(starts, size=count, replace=False)[:, None] + np.arange(span_frames)
    mask[hidden[hidden < num_frames]] = True
    if mask.all():  # the reference stops here with an error: possible only for rows about as short as one span
        mask[generator.integers(num_frames)] = False
    return mask


def fixed_count(mask: Mask, count: int, *, span_frames: int, generator: np.random.Generator) -> Mask:
    """A copy of `mask` with exactly `count` hidden frames.

    Too many: random single frames are shown again, as the reference does when it equalises the rows of a batch. Too few: whole spans are
    added at random until there are enough, then trimmed in the same way.
    Raises DataError when `count` is more than the frames that there are.
    """
    if count > len(mask):
        raise DataError(f"{count} of {len(mask)} frames cannot be hidden; the count must be at most the number of frames")
    mask = mask.copy()
    while mask.sum() < count:
        start = generator.choice(np.flatnonzero(~mask))
        mask[start : start + span_frames] = True
    hidden = np.flatnonzero(mask)
    mask[generator.choice(hidden, size=len(hidden) - count, replace=False)] = False
    return mask


def expected_count(num_frames: int, *, probability: float, span_frames: int, min_spans: int, rows: int = 8, trials: int = 200) -> int:
    """Hidden frames per row that the reference has on average after it cut every row of a batch to the smallest count.

    The mean over `trials` simulated batches of the minimum over `rows` rows: .530 of T = 781 for probability .8 and spans of 10. A pure
    function: the simulation is seeded by its arguments.
    """
    generator = np.random.Generator(np.random.PCG64([num_frames, span_frames, min_spans, rows]))
    sampler = {"probability": probability, "span_frames": span_frames, "min_spans": min_spans}
    counts = [[int(span_mask(num_frames, **sampler, generator=generator).sum()) for _ in range(rows)] for _ in range(trials)]  # type: ignore[arg-type]
    return max(1, min(num_frames - 1, round(float(np.mean(np.min(counts, axis=1))))))
