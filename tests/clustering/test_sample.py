from __future__ import annotations

import numpy as np
import pytest

from hubert_pretrain.clustering.sample import choose_rows
from hubert_pretrain.errors import DataError
from hubert_pretrain.frames import samples, seconds

LENGTHS = np.random.default_rng(0).integers(32_000, 400_000, 5000)
TRAIN = np.arange(1000, 4000)
HOURS = seconds(int(LENGTHS[TRAIN].sum())) / 3600


def hours(rows: np.ndarray) -> float:
    return seconds(int(LENGTHS[rows].sum())) / 3600


def choose(fraction: float = 0.25, max_hours: float = 100.0, seed: int = 1, rows: np.ndarray = TRAIN) -> np.ndarray:
    return choose_rows(LENGTHS, rows, fraction=fraction, max_hours=max_hours, seed=seed)


def test_a_share_of_whole_training_utterances_chosen_by_the_seed() -> None:
    rows = choose()
    assert set(rows) <= set(TRAIN)
    assert np.all(np.diff(rows) > 0)
    assert hours(rows) == pytest.approx(0.25 * HOURS, abs=0.01)
    assert np.array_equal(rows, choose())
    assert not np.array_equal(rows, choose(seed=2))


def test_everything_and_the_limit() -> None:
    assert np.array_equal(choose(fraction=1.0), TRAIN)
    assert 1.9 < hours(choose(max_hours=2.0)) <= 2.0
    assert len(choose(max_hours=1e-6)) == 1


def test_never_less_than_an_hour_so_small_corpora_are_used_whole() -> None:
    assert hours(choose(fraction=1e-6)) == pytest.approx(1.0, abs=0.01)
    few = TRAIN[:20]
    assert LENGTHS[few].sum() < samples(3600)
    assert np.array_equal(choose(fraction=0.1, rows=few), few)


def test_no_training_utterances_is_refused() -> None:
    with pytest.raises(DataError, match="none in split 'train'"):
        choose(rows=TRAIN[:0])
