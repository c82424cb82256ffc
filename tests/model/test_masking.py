"""The span sampler: fairseq's statistics, exact counts, short rows."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from hubert_pretrain.errors import ConfigError, DataError
from hubert_pretrain.model.config import SpanMask
from hubert_pretrain.model.masking import Mask, expected_count, fixed_count, span_mask


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(seed))


@pytest.mark.parametrize(
    ("num_frames", "probability", "span", "min_spans", "expected"),
    [(781, 0.8, 10, 2, 0.567), (781, 0.65, 10, 2, 0.490), (768, 0.5, 64, 0, 0.404)],
)
def test_expected_share_of_masked_frames(
    num_frames: int, probability: float, span: int, min_spans: int, expected: float
) -> None:
    generator = rng()
    shares = [
        span_mask(num_frames, SpanMask(probability, span, min_spans), generator).mean()
        for _ in range(2000)
    ]
    assert np.mean(shares) == pytest.approx(expected, abs=0.004)


@pytest.mark.parametrize(
    ("num_frames", "probability", "expected"),
    [(781, 0.8, 0.530), (781, 0.65, 0.456), (200, 0.8, 0.500)],
)
def test_expected_count_after_the_reference_equalises_eight_rows(
    num_frames: int, probability: float, expected: float
) -> None:
    count = expected_count(num_frames, SpanMask(probability))
    assert count / num_frames == pytest.approx(expected, abs=0.006)
    assert count == expected_count(num_frames, SpanMask(probability))


def test_spans_are_whole_but_for_the_end() -> None:
    for seed in range(200):
        mask = span_mask(99, SpanMask(0.3, 10, 1), rng(seed))
        edges = np.flatnonzero(np.diff(np.concatenate([[False], mask, [False]]).astype(int)))
        assert all(length >= 10 for length in np.diff(edges)[::2])


def test_the_same_generator_gives_the_same_mask() -> None:
    draws = [span_mask(200, SpanMask(0.8, 10, 2), rng(seed)) for seed in (1, 1, 2)]
    assert (draws[0] == draws[1]).all()
    assert (draws[0] != draws[2]).any()


@pytest.mark.parametrize("num_frames", range(1, 30))
def test_short_rows_keep_an_unmasked_frame(num_frames: int) -> None:
    for seed in range(50):
        mask = span_mask(num_frames, SpanMask(0.8, 10, 2), rng(seed))
        assert mask.shape == (num_frames,)
        assert not mask.all()


def test_no_spans() -> None:
    assert not span_mask(100, SpanMask(0.0, 10, 0), rng()).any()


@pytest.mark.parametrize("count", [0, 1, 30, 50, 80, 98, 99])
def test_fixed_count_is_exact_and_changes_as_little_as_it_can(count: int) -> None:
    mask = span_mask(99, SpanMask(0.65, 10, 2), rng())
    fixed = fixed_count(mask, count, span_frames=10, generator=rng(1))
    assert fixed.sum() == count
    if count <= mask.sum():
        assert not (fixed & ~mask).any()


def test_fixed_count_of_more_frames_than_there_are() -> None:
    with pytest.raises(DataError, match="11 of 10 frames"):
        fixed_count(np.zeros(10, dtype=np.bool_), 11, span_frames=3, generator=rng())


SPANS = SpanMask(probability=0.65, span_frames=10, min_spans=2)


@pytest.mark.parametrize(
    ("lengths", "other", "mean", "shortest", "longest"),
    [
        ("static", 0, 10, 10, 10),
        ("uniform", 4, 12, 4, 20),
        ("normal", 3, 10, 1, 25),
        ("poisson", 0, 10, 0, 30),
    ],
)
def test_lengths_of_spans(
    lengths: str, other: float, mean: float, shortest: int, longest: int
) -> None:
    one_span = SpanMask(0.002, span_frames=10, min_spans=1, lengths=lengths, length_other=other)
    found = []
    for seed in range(400):
        found += runs(span_mask(5000, one_span, rng(seed)))  # one span in most rows
    assert np.mean(found) == pytest.approx(mean, rel=0.05)
    assert shortest <= min(found)
    assert max(found) <= longest
    assert len(set(found)) == 1 if lengths == "static" else len(set(found)) > 5


@pytest.mark.parametrize(
    ("lengths", "mean"), [("static", 10), ("uniform", 11.5), ("normal", 10), ("poisson", 10)]
)
def test_expected_share_with_other_lengths(lengths: str, mean: float) -> None:
    """n spans of mean length m at random starts leave (1 - m / T)^n unmasked, a little less as no
    two start at the same frame.
    """
    draw = rng()
    spans = replace(SPANS, lengths=lengths, length_other=3)
    shares = [span_mask(781, spans, draw).mean() for _ in range(1000)]
    assert np.mean(shares) == pytest.approx(1 - (1 - mean / 781) ** (0.65 * 781 / 10), abs=0.012)


@pytest.mark.parametrize("space", [0, 1, 5])
@pytest.mark.parametrize("lengths", ["static", "poisson"])
def test_spans_that_keep_apart(lengths: str, space: int) -> None:
    spans = replace(SPANS, overlap=False, min_space=space, lengths=lengths)
    for seed in range(100):
        mask = span_mask(200, spans, rng(seed))
        gaps = runs(~mask)[int(not mask[0]) :][
            : -1 if not mask[-1] else None
        ]  # between spans, not before and after
        assert all(gap >= space for gap in gaps)
        if lengths == "static" and space > 0:
            assert set(runs(mask)) == {10}


def test_spans_that_keep_apart_mask_the_requested_share() -> None:
    draw = rng()
    spans = replace(SPANS, overlap=False)
    shares = [span_mask(781, spans, draw).mean() for _ in range(300)]
    assert np.mean(shares) == pytest.approx(0.65, abs=0.01)


def test_unequal_rows_before_equalising_and_after() -> None:
    """Reference.md 2.5: .490 of the frames before, .456 after eight rows were cut to the
    shortest.
    """
    draw = rng()
    counts = np.array([[span_mask(781, SPANS, draw).sum() for _ in range(8)] for _ in range(300)])
    assert counts.mean() / 781 == pytest.approx(0.490, abs=0.003)
    assert counts.min(axis=1).mean() / 781 == pytest.approx(0.456, abs=0.004)


def test_expected_count_of_channels() -> None:
    count = expected_count(768, SpanMask(0.5, 64, 0))
    assert count / 768 == pytest.approx(0.325, abs=0.006)  # .404 before equalising


def test_expected_count_of_other_lengths() -> None:
    assert expected_count(781, SPANS) == pytest.approx(0.456 * 781, abs=4)
    apart = expected_count(781, replace(SPANS, overlap=False))
    assert apart > expected_count(781, replace(SPANS, lengths="poisson")) > 300


def test_lengths_that_do_not_exist() -> None:
    with pytest.raises(ConfigError, match=r"'poison'.*did you mean 'poisson'"):
        span_mask(100, replace(SPANS, lengths="poison"), rng())


def runs(mask: Mask) -> list[int]:
    """Lengths of the stretches of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], mask, [False]]).astype(int)))
    return np.diff(edges)[::2].tolist()
