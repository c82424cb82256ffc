from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hubert_pretrain.clustering.quality import (
    adjusted_mutual_information,
    count_pairs,
    entropy,
    perplexity,
    phone_quality,
    run_lengths,
)


def test_clusters_that_are_phones_are_perfect() -> None:
    quality = phone_quality(np.diag([5, 3, 9]))
    assert (quality.phone_purity, quality.cluster_purity, quality.frames) == (1.0, 1.0, 17)
    assert quality.pnmi == pytest.approx(1.0)


def test_independent_clusters_have_no_information() -> None:
    quality = phone_quality(np.outer([1, 2, 3], [10, 30]))
    assert quality.pnmi == pytest.approx(0.0, abs=1e-12)
    assert quality.phone_purity == pytest.approx(0.75)
    assert quality.cluster_purity == pytest.approx(0.5)


def test_the_definitions_of_the_paper_by_hand() -> None:
    """Section 4.3, written out as sums over the joint distribution."""
    joint = np.array([[4, 1, 0], [2, 2, 6]])
    p = joint / joint.sum()
    phone_purity = sum(p[z].sum() * max(p[z] / p[z].sum()) for z in range(2))
    cluster_purity = sum(p[:, y].sum() * max(p[:, y] / p[:, y].sum()) for y in range(3))
    information = sum(
        p[z, y] * math.log(p[z, y] / (p[z].sum() * p[:, y].sum()))
        for z in range(2)
        for y in range(3)
        if p[z, y] > 0
    )
    phone_entropy = -sum(q * math.log(q) for q in p.sum(0))
    quality = phone_quality(joint)
    assert quality.phone_purity == pytest.approx(phone_purity)
    assert quality.cluster_purity == pytest.approx(cluster_purity)
    assert quality.pnmi == pytest.approx(information / phone_entropy)


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(-1, 3)), min_size=1, max_size=60))
def test_equals_scikit_learn(pairs: list[tuple[int, int]]) -> None:
    from sklearn.metrics import mutual_info_score

    ids, phones = np.array(pairs).T
    joint = count_pairs(ids.astype(np.uint16), phones, 5, 4)
    assert joint.sum() == (phones >= 0).sum()
    quality = phone_quality(joint)
    if entropy(joint.sum(0)) > 0:
        information = mutual_info_score(phones[phones >= 0], ids[phones >= 0])
        assert quality.pnmi == pytest.approx(information / entropy(joint.sum(0)), abs=1e-9)


def test_nothing_to_measure_is_none() -> None:
    empty = phone_quality(np.zeros((5, 3), dtype=np.int64))
    assert (empty.phone_purity, empty.cluster_purity, empty.pnmi, empty.frames) == (
        None,
        None,
        None,
        0,
    )
    assert phone_quality(np.array([[3], [4]])).pnmi is None, (
        "a single phone has no uncertainty to remove"
    )


def test_entropy_and_perplexity() -> None:
    assert entropy(np.full(8, 5)) == pytest.approx(math.log(8))
    assert perplexity(np.full(8, 5)) == pytest.approx(8)
    assert entropy(np.array([7, 0])) == 0.0
    assert entropy(np.zeros(3, dtype=np.int64)) == 0.0


@given(
    st.integers(2, 9), st.integers(2, 9), st.integers(1, 400), st.floats(0, 1), st.integers(0, 99)
)
def test_adjusted_mutual_information_equals_scikit_learn(
    rows: int, columns: int, frames: int, noise: float, seed: int
) -> None:
    from sklearn.metrics import adjusted_mutual_info_score

    draw = np.random.default_rng(seed)
    one = draw.integers(rows, size=frames)
    other = np.where(
        draw.random(frames) < noise, draw.integers(columns, size=frames), one % columns
    )
    joint = count_pairs(one, other, rows, columns)
    assert adjusted_mutual_information(joint) == pytest.approx(
        adjusted_mutual_info_score(one, other), abs=1e-9
    )


def test_adjusted_mutual_information_of_many_clusters_and_frames() -> None:
    """Against the sum over all terms, in a case that leaves many of them out."""
    from sklearn.metrics import adjusted_mutual_info_score

    draw = np.random.default_rng(0)
    one = np.minimum(draw.geometric(0.05, size=60_000), 60) - 1
    other = np.where(draw.random(60_000) < 0.7, draw.integers(40, size=60_000), one % 40)
    joint = count_pairs(one, other, 60, 40)
    assert adjusted_mutual_information(joint) == pytest.approx(
        adjusted_mutual_info_score(one, other), abs=1e-9
    )
    unrelated = count_pairs(one, draw.permutation(other), 60, 40)
    assert adjusted_mutual_information(unrelated) == pytest.approx(0, abs=2e-3)


@given(st.lists(st.integers(0, 2), max_size=30))
def test_runs_of_equal_ids(ids: list[int]) -> None:
    starts, lengths = run_lengths(np.array(ids, dtype=np.uint16))
    expected = [(value, len(list(group))) for value, group in itertools.groupby(ids)]
    assert [(ids[start], length) for start, length in zip(starts, lengths, strict=True)] == expected
    pairs = np.stack([np.array(ids, dtype=np.uint16), np.zeros(len(ids), dtype=np.uint16)], axis=1)
    assert run_lengths(pairs)[1].tolist() == lengths.tolist()
