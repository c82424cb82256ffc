"""Scores of trials against scikit-learn's ROC curve, and their intervals by speaker."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.interpolate import interp1d
from scipy.optimize import brentq
from sklearn.metrics import roc_curve

from hubert_pretrain.evaluation.bootstrap import Bootstrap, Sampling
from hubert_pretrain.evaluation.trials import Ranked, Trials, analyse_trials
from hubert_pretrain.evaluation.utterances import ScoredUtterances


def random_trials(count: int, seed: int, digits: int = 9) -> tuple[np.ndarray, np.ndarray]:
    """Scores, with ties where they have few digits, and kinds."""
    source = np.random.default_rng(seed)
    is_target = source.random(count) < 0.3
    return np.round(source.normal(size=count) + 1.5 * is_target, digits), is_target


def by_scikit_learn(scores: np.ndarray, is_target: np.ndarray, weights: np.ndarray) -> list[float]:
    accepted, found, _ = roc_curve(is_target, scores, sample_weight=weights)
    eer = brentq(lambda x: 1.0 - x - interp1d(accepted, found)(x), 0.0, 1.0)
    accepted, found, _ = roc_curve(
        is_target, scores, sample_weight=weights, drop_intermediate=False
    )
    return [eer, float((0.01 * (1 - found) + 0.99 * accepted).min() / 0.01)]


@pytest.mark.parametrize("digits", [9, 1, 0])
def test_rates_are_those_of_a_roc_curve(digits: int) -> None:
    for seed in range(5):
        scores, is_target = random_trials(300, seed, digits)
        weights = np.stack([np.ones(300), np.random.default_rng(seed).integers(0, 4, 300)])
        found = Ranked(scores, is_target).rates(weights.astype(float))
        expected = [by_scikit_learn(scores, is_target, each) for each in weights]
        assert found == pytest.approx(np.array(expected), abs=1e-9)


def test_rates_of_easy_cases() -> None:
    kinds = np.array([True, True, False, False])
    places = np.zeros(4, np.int64)
    for scores, expected in (
        ([4.0, 3.0, 2.0, 1.0], (0.0, 0.0)),
        ([1.0, 2.0, 3.0, 4.0], (1.0, 1.0)),
        ([1.0, 1.0, 1.0, 1.0], (0.5, 1.0)),
    ):
        trials = Trials(places, places, kinds, np.array(scores))
        assert trials.rates() == pytest.approx(expected)
    ranked = Ranked(np.array([4.0, 3.0, 2.0, 1.0]), kinds)
    assert ranked.threshold() == 3.0
    assert np.isnan(ranked.rates(kinds[None].astype(float))).all()  # only targets


def scored_trials(speakers: int, each: int, seed: int) -> tuple[ScoredUtterances, Trials]:
    """All pairs of utterances; a speaker is easy or hard as a whole."""
    source = np.random.default_rng(seed)
    names = np.repeat([f"s{number}" for number in range(speakers)], each)
    centres = source.normal(size=(speakers, 6)).repeat(each, axis=0)
    noise = source.uniform(0.1, 2.5, size=(speakers, 1)).repeat(each, axis=0)
    values = centres + noise * source.normal(size=centres.shape)
    values /= np.linalg.norm(values, axis=1, keepdims=True)
    first, second = np.triu_indices(len(names), 1)
    scored = ScoredUtterances(
        [f"u{number}" for number in range(len(names))],
        names.tolist(),
        names.tolist(),
        names.tolist(),
        np.full(len(names), 16000),
    )
    scores = (values @ values.T)[first, second]
    return scored, Trials(first, second, names[first] == names[second], scores)


def test_a_pair_is_drawn_as_often_as_both_of_its_speakers() -> None:
    scored, trials = scored_trials(4, 3, 0)
    bootstrap = Bootstrap(scored.speakers, Sampling(resamples=20))
    seen: list[np.ndarray] = []

    def statistic(weights: np.ndarray) -> np.ndarray:
        seen.extend(weights)
        return weights.sum(axis=1, keepdims=True)

    (estimate,) = bootstrap.of_pairs(trials.first, trials.second, statistic)
    assert estimate.value == len(trials)
    draws = np.concatenate(list(bootstrap._draws()))
    assert len(seen) == 21
    for times, weights in zip(draws, seen, strict=False):
        for pair, weight in enumerate(weights):
            one, other = (
                int(scored.speakers[end[pair]][1:]) for end in (trials.first, trials.second)
            )
            assert weight == (times[one] if one == other else times[one] * times[other])


def test_the_interval_by_speaker_holds_the_truth() -> None:
    """Over draws of new speakers, with the width that they have; utterances alone are too sure."""
    truth = np.mean([scored_trials(40, 8, seed)[1].rates()[0] for seed in range(100, 120)])
    covered = []
    wider = []
    for seed in range(20):
        scored, trials = scored_trials(12, 8, seed)
        found = analyse_trials(scored, trials, Sampling(resamples=100)).scores["eer"]
        covered.append(found["speaker"].low <= truth <= found["speaker"].high)
        wide, narrow = (found[unit].high - found[unit].low for unit in ("speaker", "utterance"))
        wider.append(wide > narrow)
    assert sum(covered) >= 15
    assert sum(wider) >= 12


def test_speakers_and_hard_trials_are_named() -> None:
    scored, trials = scored_trials(3, 2, 1)
    found = analyse_trials(scored, trials, Sampling(resamples=20))
    assert found.counts["trials"] == 15
    assert found.counts["targets"] == 3
    rows = {row[0]: row[1:4] for row in found.tables["by speaker"].rows}
    assert rows == {f"s{number}": (2, 9, 1) for number in range(3)}
    kind, score, *pair = found.tables["hardest trials"].rows[0]
    assert kind == "target"
    assert score == trials.scores[trials.is_target].min()
    assert {int(name[1:]) // 2 for name in pair} in [{0}, {1}, {2}]
    wrong = (trials.scores >= found.counts["threshold"]) != trials.is_target
    errors = [row[found.utterances.header.index("errors")] for row in found.utterances.rows]
    assert sum(errors) == 2 * wrong.sum()
    assert [row[3] for row in found.utterances.rows] == [5] * 6
