"""Intervals over seeds and utterances, against the spread that repeated experiments show."""

from __future__ import annotations

import numpy as np
import pytest

from hubert_pretrain.evaluation.bootstrap import Bootstrap, Sampling, ratio
from hubert_pretrain.evaluation.repeats import compare

SAMPLING = Sampling(resamples=4000)


def counts(source: np.random.Generator, seeds: int, spread: float, mean: float = 0.4) -> list:
    """(N, 2) errors of 400 utterances of ten words, for each seed: utterances differ in difficulty
    for all seeds alike, and each seed has a rate of its own.
    """
    hard = source.normal(0.0, 0.1, 400)
    found = []
    for _ in range(seeds):
        rate = np.clip(mean + hard + source.normal(0.0, spread), 0, 1)
        found.append(np.stack([source.binomial(10, rate), np.full(400, 10)], axis=1))
    return found


def test_one_seed_is_the_bootstrap_over_utterances() -> None:
    (only,) = counts(np.random.default_rng(0), 1, 0.0)
    expected = Bootstrap([str(n) for n in range(400)], SAMPLING).of_sums(only, ratio)
    (found,) = compare({"a": [only]}, SAMPLING)
    assert found.by_seed == [pytest.approx(expected.value)]
    assert found.pooled.value == pytest.approx(expected.value)
    assert found.pooled.low == pytest.approx(expected.low, abs=2e-3)
    assert found.pooled.high == pytest.approx(expected.high, abs=2e-3)
    assert found.difference.as_json() == {"value": 0.0, "low": 0.0, "high": 0.0}


def test_the_interval_holds_the_spread_of_seeds() -> None:
    """With 30 seeds whose rates spread by .05, the mean spreads by .05 / sqrt(30) and more."""
    (found,) = compare({"a": counts(np.random.default_rng(1), 30, 0.05)}, SAMPLING)
    half = 1.96 * np.hypot(0.05 / np.sqrt(30), 0.1 / np.sqrt(400))
    assert (found.pooled.high - found.pooled.low) / 2 == pytest.approx(half, rel=0.25)
    assert found.pooled.low < np.mean(found.by_seed) < found.pooled.high


def test_differences_are_on_the_same_utterances() -> None:
    """Utterances that are hard for all cancel out: the difference is surer than either rate."""
    source = np.random.default_rng(2)
    first = counts(source, 1, 0.0)
    worse = [np.stack([np.minimum(each[:, 0] + 1, 10), each[:, 1]], axis=1) for each in first]
    found = compare({"first": first, "worse": worse}, SAMPLING)[1]
    difference = found.difference
    assert difference.value == pytest.approx(0.1)
    assert difference.low == pytest.approx(0.1) == difference.high
    assert found.pooled.high - found.pooled.low > 0.03


def test_settings_of_other_utterances_are_refused() -> None:
    first = counts(np.random.default_rng(3), 2, 0.0)
    with pytest.raises(ValueError, match=r"settings with \[399, 400\] utterances"):
        compare({"a": first, "b": [each[:399] for each in first]}, SAMPLING)
