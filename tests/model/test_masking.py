"""The span sampler: the statistics of reference.md 2.5, exact counts, short rows."""

from __future__ import annotations

import numpy as np
import pytest

from hubert_pretrain.errors import DataError
from hubert_pretrain.model.masking import expected_count, fixed_count, span_mask


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(seed))


@pytest.mark.parametrize(
    ("num_frames", "probability", "span", "min_spans", "expected"),
    [(781, 0.8, 10, 2, 0.567), (781, 0.65, 10, 2, 0.490), (768, 0.5, 64, 0, 0.404)],
)
def test_expected_share_of_hidden_frames(num_frames: int, probability: float, span: int, min_spans: int, expected: float) -> None:
    generator = rng()
    shares = [
        span_mask(num_frames, probability=probability, span_frames=span, min_spans=min_spans, generator=generator).mean()
        for _ in range(2000)
    ]
    assert np.mean(shares) == pytest.approx(expected, abs=0.004)


@pytest.mark.parametrize(("num_frames", "probability", "expected"), [(781, 0.8, 0.530), (781, 0.65, 0.456), (200, 0.8, 0.500)])
def test_expected_count_after_the_reference_equalises_eight_rows(num_frames: int, probability: float, expected: float) -> None:
    count = expected_count(num_frames, probability=probability, span_frames=10, min_spans=2)
    assert count / num_frames == pytest.approx(expected, abs=0.006)
    assert count == expected_count(num_frames, probability=probability, span_frames=10, min_spans=2)


def test_spans_are_whole_but_for_the_end() -> None:
    for seed in range(200):
        mask = span_mask(99, probability=0.3, span_frames=10, min_spans=1, generator=rng(seed))
        edges = np.flatnonzero(np.diff(np.concatenate([[False], mask, [False]]).astype(int)))
        assert all(length >= 10 for length in np.diff(edges)[::2])


def test_the_same_generator_gives_the_same_mask() -> None:
    draws = [span_mask(200, probability=0.8, span_frames=10, min_spans=2, generator=rng(seed)) for seed in (1, 1, 2)]
    assert (draws[0] == draws[1]).all()
    assert (draws[0] != draws[2]).any()


@pytest.mark.parametrize("num_frames", range(1, 30))
def test_short_rows_keep_a_visible_frame(num_frames: int) -> None:
    for seed in range(50):
        mask = span_mask(num_frames, probability=0.8, span_frames=10, min_spans=2, generator=rng(seed))
        assert mask.shape == (num_frames,)
        assert not mask.all()


def test_no_spans() -> None:
    assert not span_mask(100, probability=0.0, span_frames=10, min_spans=0, generator=rng()).any()


@pytest.mark.parametrize("count", [0, 1, 30, 50, 80, 98, 99])
def test_fixed_count_is_exact_and_changes_as_little_as_it_can(count: int) -> None:
    mask = span_mask(99, probability=0.65, span_frames=10, min_spans=2, generator=rng())
    fixed = fixed_count(mask, count, span_frames=10, generator=rng(1))
    assert fixed.sum() == count
    if count <= mask.sum():
        assert not (fixed & ~mask).any()


def test_fixed_count_of_more_frames_than_there_are() -> None:
    with pytest.raises(DataError, match="11 of 10 frames"):
        fixed_count(np.zeros(10, dtype=np.bool_), 11, span_frames=3, generator=rng())
