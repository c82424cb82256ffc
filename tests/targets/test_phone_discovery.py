"""Units as phones: mappings, boundaries in regions, and the scores of utterances."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hubert_pretrain.errors import DataError
from hubert_pretrain.targets.phone_discovery import (
    found,
    many_to_one,
    one_to_one,
    score_units,
)


@given(st.integers(0, 2**31), st.integers(1, 4), st.integers(1, 5))
def test_one_to_one_is_the_best_of_all_mappings(seed: int, n_units: int, n_phones: int) -> None:
    joint = np.random.default_rng(seed).integers(0, 20, (n_units, n_phones))
    mapping = one_to_one(joint)
    used = [phone for phone in mapping if phone < n_phones]
    assert len(set(used)) == len(used) == min(n_units, n_phones)
    right = sum(joint[unit, phone] for unit, phone in enumerate(mapping) if phone < n_phones)
    size = max(n_units, n_phones)
    square = np.zeros((size, size), dtype=int)
    square[:n_units, :n_phones] = joint
    best = max(
        sum(square[unit, phone] for unit, phone in enumerate(order))
        for order in permutations(range(size))
    )
    assert right == best
    assert (joint[np.arange(n_units), many_to_one(joint)] == joint.max(axis=1)).all()


@given(
    st.lists(st.integers(1, 60), unique=True, max_size=12),
    st.lists(st.integers(1, 60), unique=True, max_size=12),
)
def test_a_region_ends_half_way_to_its_neighbour(detected: list[int], reference: list[int]) -> None:
    detected = sorted(detected)
    reference = sorted(reference)
    hits = 0
    for place, boundary in enumerate(reference):
        first = boundary - 2
        last = boundary + 2
        if place > 0:
            first = max(first, (reference[place - 1] + boundary) // 2 + 1)
        if place + 1 < len(reference):
            last = min(last, (boundary + reference[place + 1]) // 2)
        hits += any(first <= each <= last for each in detected)
    assert found(np.array(detected, int), np.array(reference, int)) == hits
    assert hits <= min(len(detected), len(reference))


def test_perfect_units_have_no_errors_and_every_further_switch_is_one() -> None:
    phones = np.repeat([0, 1, 2, 0], 10)  # 100 ms each
    units = np.repeat([5, 3, 4, 5], 5)
    perfect = score_units([units], [phones], n_units=6, n_phones=3)
    assert perfect.pnmi == pytest.approx(1.0)
    for scores in (perfect.many_to_one, perfect.one_to_one):
        assert (scores.phone_error_rate, scores.f1, scores.r_value) == (0.0, 1.0, 1.0)
    assert (perfect.mean_run_ms, perfect.mean_phone_ms) == (100.0, 100.0)
    switching = units.copy()
    switching[2] = 3
    worse = score_units([switching], [phones], n_units=6, n_phones=3)
    assert worse.many_to_one.phone_error_rate == 2 / 4  # two insertions
    assert (worse.many_to_one.precision, worse.many_to_one.recall) == (3 / 5, 1.0)
    # 0 -> two units: one of them stands for no phone.
    split = np.repeat([5, 3, 4, 1], 5)
    several = score_units([split], [phones], n_units=6, n_phones=3)
    assert several.many_to_one.phone_error_rate == 0.0
    assert several.one_to_one.phone_error_rate == 1 / 4
    assert several.pnmi == pytest.approx(1.0)


def test_steps_without_a_phone_do_not_count() -> None:
    phones = np.array([-1, -1, *[0] * 10, *[1] * 10, -1, -1])
    units = np.array([7, *[2] * 5, *[1] * 5, 7])
    scores = score_units([units], [phones], n_units=8, n_phones=2)
    assert scores.many_to_one.phone_error_rate == 0.0
    with pytest.raises(DataError, match="1 utterances of units have no phone"):
        score_units([units], [np.full(24, -1)], n_units=8, n_phones=2)
