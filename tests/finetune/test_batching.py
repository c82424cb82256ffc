"""Padded bucket sampler of fine-tuning."""

from __future__ import annotations

import numpy as np
import pytest

from hubert_pretrain.finetune.batching import PaddedBucketSampler
from hubert_pretrain.frames import samples


def _plan(lengths: np.ndarray, seed: int = 1, **settings: float) -> PaddedBucketSampler:
    values = {"batch_seconds": 32.0, "micro_batch_seconds": 16.0} | settings
    return PaddedBucketSampler(np.arange(len(lengths)) + 7, lengths, seed=seed, **values)


@pytest.fixture
def lengths() -> np.ndarray:
    return np.random.default_rng(0).integers(samples(0.5), samples(9), 300)


def test_a_micro_batch_depends_on_seed_and_number_only(lengths: np.ndarray) -> None:
    forwards = _plan(lengths)
    backwards = _plan(lengths)
    other = _plan(lengths, seed=2)
    found = {index: backwards.micro_batch(index).rows.tolist() for index in reversed(range(200))}
    assert all(forwards.micro_batch(index).rows.tolist() == rows for index, rows in found.items())
    assert any(other.micro_batch(index).rows.tolist() != rows for index, rows in found.items())


def test_every_utterance_fits_its_shape_with_little_padding(lengths: np.ndarray) -> None:
    plan = _plan(lengths)
    for index in range(200):
        batch = plan.micro_batch(index)
        inside = lengths[batch.rows - 7] / batch.num_samples
        assert (inside <= 1).all()
        assert (inside >= 0.85).all()
        assert batch.num_samples * len(batch.rows) <= samples(16)
    assert plan.padding < 0.15


def test_all_utterances_are_seen_about_equally_often(lengths: np.ndarray) -> None:
    plan = _plan(lengths)
    epochs = 20
    per_epoch = sum(bucket.per_epoch for bucket in plan.buckets)
    seen = np.concatenate([plan.micro_batch(index).rows for index in range(epochs * per_epoch)])
    counts = np.bincount(seen - 7, minlength=len(lengths))
    assert counts.min() >= 0.5 * epochs
    assert counts.max() <= 1.5 * epochs + 1
    for bucket in plan.buckets:  # inside a bucket nobody is preferred
        assert np.ptp(counts[bucket.rows - 7]) <= 1


def test_the_utterances_of_a_step_are_known_before_it(lengths: np.ndarray) -> None:
    plan = _plan(lengths, batch_seconds=64.0)
    assert plan.micro_batches == 4
    for step in range(20):
        batches = [plan.micro_batch(step * 4 + n) for n in range(4)]
        assert {batch.step for batch in batches} == {step}
        assert plan.utterances(step) == sum(len(batch.rows) for batch in batches)


def test_an_utterance_longer_than_a_micro_batch_is_one_of_its_own() -> None:
    plan = _plan(np.array([samples(40), samples(1), samples(1)]))
    assert sorted(len(bucket.rows) for bucket in plan.buckets) == [1, 2]
    assert {plan.micro_batch(index).num_samples for index in range(10)} == {samples(40), samples(1)}


def test_one_utterance_is_enough() -> None:
    assert _plan(np.array([samples(1)])).micro_batch(123).rows.tolist() == [7]


@pytest.mark.parametrize("count", [280, 2_763, 28_539])
def test_librispeech_is_padded_by_less_than_five_percent(count: int) -> None:
    # As train-clean-100 and its ten and one hour subsets: most between 13 and 16 s, a flat tail of
    # shorter ones, a few of up to 24.5.
    draw = np.random.default_rng(3)
    choice = draw.random(count)
    most = np.where(
        choice < 0.65, draw.normal(14.6, 1.0, count), draw.uniform(1.4, 14.6, count)
    ).clip(1.4, 17.0)
    lengths = (
        np.where(choice > 0.9995, draw.uniform(17.0, 24.5, count), most) * samples(1)
    ).astype(np.int64)
    plan = _plan(lengths, batch_seconds=1600.0, micro_batch_seconds=200.0)
    assert plan.padding < 0.05
    batches = [plan.micro_batch(index) for index in range(0, 2_000, 7)]
    padded = sum(len(batch.rows) * batch.num_samples for batch in batches)
    assert 1 - sum(int(lengths[batch.rows - 7].sum()) for batch in batches) / padded < 0.05
