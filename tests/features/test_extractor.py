from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hubert_pretrain.features.extractor import packed_batches, padded_batches

lengths = st.lists(st.integers(1, 5000), max_size=70).map(
    lambda each: np.array(each, dtype=np.int64)
)


@given(
    num_samples=lengths,
    most=st.integers(1, 20_000),
    plan=st.sampled_from([packed_batches, padded_batches]),
)
def test_every_utterance_is_in_one_batch(num_samples: Any, most: int, plan: Any) -> None:
    batches = plan(num_samples, most)
    assert all(len(batch) for batch in batches)
    assert sorted(np.concatenate([[], *batches])) == list(range(len(num_samples)))


@given(num_samples=lengths, most=st.integers(1, 20_000))
def test_packed_batches_are_neighbours_within_the_bound(num_samples: Any, most: int) -> None:
    for batch in packed_batches(num_samples, most):
        assert len(batch) == 1 or num_samples[batch].sum() <= most
        assert (np.diff(batch) == 1).all()


@given(num_samples=lengths, most=st.integers(1, 20_000), padding=st.sampled_from([0.0, 0.1, 1.0]))
def test_padded_batches_have_little_padding(num_samples: Any, most: int, padding: float) -> None:
    for batch in padded_batches(num_samples, most, max_padding=padding):
        longest = num_samples[batch].max()
        shortest = num_samples[batch].min()
        assert len(batch) == 1 or len(batch) * longest <= most
        assert longest <= (1 + padding) * shortest


@pytest.mark.parametrize("plan", [packed_batches, padded_batches])
def test_full_batches_are_full(plan: Any) -> None:
    assert [len(batch) for batch in plan(np.full(10, 100), 400)] == [4, 4, 2]
