"""Which frames are hidden: the reference's span sampler (fairseq's compute_mask_indices, mask
version 2), seeded.

NumPy only: masks are made by the loader's processes. T frames; True = hidden. The sampler that
exported models use in `transformers` is another one: model/spec_augment.py.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from hubert_pretrain.errors import ConfigError, DataError, did_you_mean
from hubert_pretrain.model.config import SPAN_LENGTHS

Mask = NDArray[np.bool_]
Lengths = Literal["static", "uniform", "normal", "poisson"]
"""How long spans are. With L = `span_frames` and o = `length_other`: always L; uniform in o ... 2L;
normal around L with standard deviation o, at least 1; Poisson around L. (fairseq: mask_selection,
mask_length, mask_other.)"""


def span_mask(
    num_frames: int,
    *,
    probability: float,
    span_frames: int,
    min_spans: int,
    generator: np.random.Generator,
    lengths: Lengths = "static",
    length_other: float = 0.0,
    overlap: bool = True,
    min_space: int = 1,
) -> Mask:
    """Spans of `span_frames` frames from random starts; they may overlap and run over the end,
    where they are cut.

    The number of spans is `probability * num_frames / span_frames`, rounded up or down at random so
    that its mean is exact, and at least `min_spans`. For probability .8, 10 frames and T = 781 that
    hides .567 of the frames on average (1 - (1 - .8 / 10)^10). The same sampler makes channel masks
    (`num_frames` = width, `min_spans` = 0).

    lengths, length_other: spans of other lengths, see `Lengths`. overlap: False keeps spans apart,
    with at least `min_space` visible frames between them (fairseq: no_overlap, mask_min_space);
    those that find no room are left out, so less is hidden.

    Returns (T,) bool. At least one frame stays visible, however short the row: where every frame
    came to be hidden, one drawn at random is shown again, so that a short utterance ends no
    training. The reference stops there with an error ("the entire sequence is masked"); in every
    row where it does not, this changes nothing. Raises ConfigError when `lengths` has no such
    value.
    """
    count = max(min_spans, int(probability * num_frames / span_frames + generator.random()))
    mask = np.zeros(num_frames, dtype=np.bool_)
    if count == 0:
        return mask
    sizes = _lengths(count, lengths, span_frames, length_other, generator)
    if overlap:
        # In a row too short for so many full spans the starts may lie nearer to the end, where
        # spans are cut, so that enough starts exist.
        starts = num_frames - sizes.min() if num_frames - sizes.min() > count else count + 1
        begin = generator.choice(starts, size=count, replace=False)
    else:
        begin, sizes = _apart(num_frames, sizes, min_space, generator)
    offsets = np.arange(sizes.max(initial=0))
    hidden = (begin[:, None] + offsets)[offsets < sizes[:, None]]
    mask[hidden[hidden < num_frames]] = True
    if mask.all():
        mask[generator.integers(num_frames)] = False
    return mask


def _lengths(
    count: int, lengths: str, span: int, other: float, generator: np.random.Generator
) -> NDArray[np.int64]:
    """(count,) frames of each span."""
    if lengths == "static":
        return np.full(count, span)
    if lengths == "uniform":
        return generator.integers(int(other), 2 * span, size=count, endpoint=True)
    if lengths == "normal":
        return np.maximum(1, np.rint(generator.normal(span, other, size=count))).astype(np.int64)
    if lengths == "poisson":
        return generator.poisson(span, size=count)
    expected = f"one of {', '.join(SPAN_LENGTHS)} was expected{did_you_mean(lengths, SPAN_LENGTHS)}"
    raise ConfigError(f"lengths of spans is {lengths!r}, but {expected}")


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
    begins, kept = zip(*placed, strict=True) if placed else ((), ())
    return np.array(begins, dtype=np.int64), np.array(kept, dtype=np.int64)


def fixed_count(
    mask: Mask, count: int, *, span_frames: int, generator: np.random.Generator
) -> Mask:
    """A copy of `mask` with exactly `count` hidden frames.

    Too many: random single frames are shown again, as the reference does when it equalises the rows
    of a batch. Too few: whole spans are added at random until there are enough, then trimmed in the
    same way.
    Raises DataError when `count` is more than the frames that there are.
    """
    if count > len(mask):
        raise DataError(
            f"{count} of {len(mask)} frames cannot be hidden; the count must be at most the number of frames"
        )
    mask = mask.copy()
    while mask.sum() < count:
        start = generator.choice(np.flatnonzero(~mask))
        mask[start : start + span_frames] = True
    hidden = np.flatnonzero(mask)
    mask[generator.choice(hidden, size=len(hidden) - count, replace=False)] = False
    return mask


def expected_count(
    num_frames: int,
    *,
    probability: float,
    span_frames: int,
    min_spans: int,
    rows: int = 8,
    trials: int = 200,
    **lengths: Any,
) -> int:
    """Hidden frames per row that the reference has on average after it cut every row of a batch to
    the smallest count.

    The mean over `trials` simulated batches of the minimum over `rows` rows: .530 of T = 781 for
    probability .8 and spans of 10. A pure function: the simulation is seeded by its arguments.
    `lengths`: further arguments of `span_mask`.
    """
    generator = np.random.Generator(np.random.PCG64([num_frames, span_frames, min_spans, rows]))
    sampler: dict[str, Any] = {
        "probability": probability,
        "span_frames": span_frames,
        "min_spans": min_spans,
        **lengths,
    }
    counts = [
        [int(span_mask(num_frames, **sampler, generator=generator).sum()) for _ in range(rows)]
        for _ in range(trials)
    ]
    return max(1, min(num_frames - 1, round(float(np.mean(np.min(counts, axis=1))))))
