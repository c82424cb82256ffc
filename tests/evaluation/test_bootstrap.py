"""Intervals against kaldialign's bootstrap, and against the distributions that they estimate."""

from __future__ import annotations

import numpy as np
import pytest

from hubert_pretrain.evaluation.bootstrap import Bootstrap, Sampling, ratio
from hubert_pretrain.evaluation.texts import analyse_texts
from hubert_pretrain.evaluation.utterances import ScoredUtterances


def spoken(utterances: int, seed: int = 0, speakers: int = 0) -> ScoredUtterances:
    """Random words, some of them wrong."""
    source = np.random.default_rng(seed)
    references = []
    predictions = []
    for _ in range(utterances):
        words = source.choice(list("abcdefgh"), source.integers(1, 12)).tolist()
        given = [word if source.random() > 0.2 else "x" for word in words]
        if source.random() < 0.3:
            given = given[1:]
        if source.random() < 0.3:
            given.append("y")
        references.append(" ".join(words))
        predictions.append(" ".join(given))
    return ScoredUtterances(
        [f"u{number}" for number in range(utterances)],
        references,
        predictions,
        [f"s{number % speakers}" if speakers else "" for number in range(utterances)],
        source.integers(8000, 160000, utterances),
    )


def test_wer_and_interval_equal_those_of_kaldialign() -> None:
    kaldialign = pytest.importorskip("kaldialign")
    scored = spoken(300)
    expected = kaldialign.bootstrap_wer_ci(
        [text.split() for text in scored.references],
        [text.split() for text in scored.predictions],
        replications=4000,
    )
    found = analyse_texts(scored, Sampling(resamples=4000)).scores["wer"]["utterance"]
    assert found.value == pytest.approx(expected["wer"], abs=1e-3)  # the mean of its resamples
    assert found.low == pytest.approx(expected["ci95min"], abs=2e-3)
    assert found.high == pytest.approx(expected["ci95max"], abs=2e-3)


def test_a_mean_has_the_interval_of_the_normal_distribution() -> None:
    values = np.random.default_rng(1).normal(5.0, 2.0, 400)
    counts = np.stack([values, np.ones_like(values)], axis=1)
    names = [str(number) for number in range(400)]
    found = Bootstrap(names, Sampling(resamples=4000, confidence=0.9)).of_sums(counts, ratio)
    half = 1.645 * values.std() / np.sqrt(400)
    assert found.value == pytest.approx(values.mean())
    assert found.low == pytest.approx(values.mean() - half, abs=0.03)
    assert found.high == pytest.approx(values.mean() + half, abs=0.03)


def test_both_ways_of_resampling_agree() -> None:
    """Sums of counts, and rows: the same draws, so the same interval."""
    values = np.random.default_rng(2).random(60)
    speakers = [f"s{number % 7}" for number in range(60)]
    bootstrap = Bootstrap(speakers, Sampling(resamples=200))
    counts = np.stack([values, np.ones_like(values)], axis=1)
    by_sums = bootstrap.of_sums(counts, ratio)
    (by_rows,) = bootstrap.of_rows(lambda rows: values[rows].mean(keepdims=True))
    for name in ("value", "low", "high"):
        assert getattr(by_sums, name) == pytest.approx(getattr(by_rows, name))


def test_draws_in_blocks_are_those_of_one_block(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(3).random((50, 2))
    bootstrap = Bootstrap([str(number) for number in range(50)], Sampling(resamples=101))
    whole = bootstrap.of_sums(values, ratio)
    monkeypatch.setattr("hubert_pretrain.evaluation.bootstrap._MOST_DRAWS", 350)
    assert bootstrap.of_sums(values, ratio) == whole


def test_speakers_that_differ_widen_the_interval() -> None:
    """Half of the speakers are always wrong: 400 utterances tell no more than 8 voices."""
    wrong = np.array([number % 8 < 4 for number in range(400)], dtype=float)
    counts = np.stack([wrong, np.ones(400)], axis=1)
    sampling = Sampling(resamples=500)
    by_utterance = Bootstrap([str(number) for number in range(400)], sampling)
    by_speaker = Bootstrap([str(number % 8) for number in range(400)], sampling)
    narrow = by_utterance.of_sums(counts, ratio)
    wide = by_speaker.of_sums(counts, ratio)
    assert narrow.value == wide.value == 0.5
    assert wide.high - wide.low > 3 * (narrow.high - narrow.low)


def test_a_resample_without_words_has_no_part() -> None:
    """One reference with words among empty ones: many resamples have nothing to divide by."""
    counts = np.array([[1.0, 2.0], [1.0, 0.0], [0.0, 0.0]])
    found = Bootstrap(["a", "b", "c"], Sampling(resamples=200)).of_sums(counts, ratio)
    assert found.value == 1.0
    assert np.isfinite([found.low, found.high]).all()


def test_a_single_unit_has_no_width() -> None:
    found = Bootstrap(["a"], Sampling()).of_sums(np.array([[1.0, 4.0]]), ratio)
    assert (found.value, found.low, found.high) == (0.25, 0.25, 0.25)
