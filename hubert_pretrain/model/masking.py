"""The span sampler of the reference (fairseq's compute_mask_indices, mask version 2), seeded. Its
settings: `SpanMask` in config.py.

NumPy only: masks are made by the loader's processes. T frames; True = masked. `transformers` trains
exported models with another sampler: model/spec_augment.py.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hubert_pretrain.errors import ConfigError, DataError, did_you_mean
from hubert_pretrain.model.config import SPAN_LENGTHS, SpanMask

Mask = NDArray[np.bool_]


def span_mask(num_frames: int, spans: SpanMask, generator: np.random.Generator) -> Mask:
    """Mask spans of frames from random starts.

    Spans may overlap and run over the end, where they are cut. The number of spans is
    `probability * num_frames / span_frames`, rounded up or down at random so that its mean is
    exact, and at least `min_spans`. For probability .8, 10 frames and T = 781 that masks .567 of
    the frames on average (1 - (1 - .8 / 10)^10). With `overlap=False` spans that find no room are
    left out, so fewer frames are masked.

    Returns (T,) bool. At least one frame stays unmasked, however short the row: where every frame
    would be masked, one drawn at random is unmasked again, so that a short utterance does not end
    the training. The reference stops there with an error ("the entire sequence is masked"); rows
    that it accepts are the same here. Raises ConfigError when `lengths` has no such value.
    """
    expected = spans.probability * num_frames / spans.span_frames
    count = max(spans.min_spans, int(expected + generator.random()))
    mask = np.zeros(num_frames, dtype=np.bool_)
    if count == 0:
        return mask
    sizes = _lengths(count, spans, generator)
    if spans.overlap:
        # In a row too short for so many full spans the starts may lie nearer to the end, where
        # spans are cut, so that enough starts exist.
        starts = num_frames - sizes.min()
        if starts <= count:
            starts = count + 1
        begin = generator.choice(starts, size=count, replace=False)
    else:
        begin, sizes = _apart(num_frames, sizes, spans.min_space, generator)
    offsets = np.arange(sizes.max(initial=0))
    masked = (begin[:, None] + offsets)[offsets < sizes[:, None]]
    mask[masked[masked < num_frames]] = True
    if mask.all():
        mask[generator.integers(num_frames)] = False
    return mask


def _lengths(count: int, spans: SpanMask, generator: np.random.Generator) -> NDArray[np.int64]:
    """(count,) frames of each span."""
    mean = spans.span_frames
    other = spans.length_other
    if spans.lengths == "static":
        return np.full(count, mean)
    if spans.lengths == "uniform":
        return generator.integers(int(other), 2 * mean, size=count, endpoint=True)
    if spans.lengths == "normal":
        return np.maximum(1, np.rint(generator.normal(mean, other, size=count))).astype(np.int64)
    if spans.lengths == "poisson":
        return generator.poisson(mean, size=count)
    raise ConfigError(
        f"lengths of spans is {spans.lengths!r}, but one of {', '.join(SPAN_LENGTHS)} was expected"
        f"{did_you_mean(spans.lengths, SPAN_LENGTHS)}"
    )


def _apart(
    num_frames: int, sizes: NDArray[np.int64], space: int, generator: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Starts and sizes of spans that keep `space` frames apart: each, longest first, goes into a
    free stretch chosen by its length.

    (The reference, which current NumPy breaks here, also leaves the last frame of a row free and
    fills tight stretches less often.)
    """
    free = [(0, num_frames)]
    placed = []
    for size in sorted(sizes.tolist(), reverse=True):
        room = np.array(
            [stop - start if stop - start >= max(size, 1) else 0 for start, stop in free]
        )
        if not room.any():
            break
        start, stop = free.pop(generator.choice(len(free), p=room / room.sum()))
        begin = int(generator.integers(start, stop - size, endpoint=True))
        placed.append((begin, size))
        free += [(start, begin - space), (begin + size + space, stop)]
    begins = [begin for begin, _ in placed]
    placed_sizes = [size for _, size in placed]
    return np.array(begins, dtype=np.int64), np.array(placed_sizes, dtype=np.int64)


def fixed_count(
    mask: Mask, count: int, *, span_frames: int, generator: np.random.Generator
) -> Mask:
    """A copy of `mask` with exactly `count` masked frames.

    Too many: random single frames are unmasked, as the reference does when it equalises the rows
    of a batch. Too few: whole spans are added at random until there are enough, then trimmed in the
    same way.
    Raises DataError when `count` is more than the frames that there are.
    """
    if count > len(mask):
        raise DataError(
            f"{count} of {len(mask)} frames cannot be masked; the count must be at most the number "
            "of frames"
        )
    mask = mask.copy()
    while mask.sum() < count:
        start = generator.choice(np.flatnonzero(~mask))
        mask[start : start + span_frames] = True
    masked = np.flatnonzero(mask)
    mask[generator.choice(masked, size=len(masked) - count, replace=False)] = False
    return mask


def expected_count(num_frames: int, spans: SpanMask, *, rows: int = 8, trials: int = 200) -> int:
    """Masked frames per row that the reference has on average after it cut every row of a batch to
    the smallest count.

    The mean over `trials` simulated batches of the minimum over `rows` rows: .530 of T = 781 for
    probability .8 and spans of 10. A pure function: the simulation is seeded by its arguments.
    """
    seed = [num_frames, spans.span_frames, spans.min_spans, rows]
    generator = np.random.Generator(np.random.PCG64(seed))
    counts = [
        [int(span_mask(num_frames, spans, generator).sum()) for _ in range(rows)]
        for _ in range(trials)
    ]
    return max(1, min(num_frames - 1, round(float(np.mean(np.min(counts, axis=1))))))
