"""Randomness as pure functions: shuffles are bijections, draws depend on every part of the key."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hubert_pretrain import seeds


@given(st.integers(1, 5000), st.integers(0, 10))
def test_permute_is_a_bijection(size: int, seed: int) -> None:
    shuffled = seeds.permute(np.arange(size), size, seed, "epoch", 3)
    assert sorted(shuffled.tolist()) == list(range(size))


def test_permute_needs_no_neighbours() -> None:
    size = 200_000_000
    some = np.array([0, 1, 199_999_999, 12_345_678])
    together = seeds.permute(some, size, 1)
    alone = [int(seeds.permute(int(index), size, 1)[0]) for index in some]
    assert together.tolist() == alone
    assert all(0 <= index < size for index in alone)


def test_permute_mixes() -> None:
    shuffled = seeds.permute(np.arange(10_000), 10_000, 7)
    # Neighbours land far apart, and the shuffle is uncorrelated with the order it came from.
    assert np.abs(np.diff(shuffled)).mean() > 3000
    assert abs(np.corrcoef(shuffled, np.arange(10_000))[0, 1]) < 0.05


def test_permute_depends_on_the_key() -> None:
    assert (
        seeds.permute(np.arange(1000), 1000, 1) != seeds.permute(np.arange(1000), 1000, 2)
    ).mean() > 0.9


def test_permute_refuses_what_is_outside() -> None:
    with pytest.raises(ValueError, match="outside a shuffle of 3"):
        seeds.permute(3, 3, 0)


def test_derive_separates_its_parts() -> None:
    assert (
        len(
            {
                seeds.derive(1, 23),
                seeds.derive(12, 3),
                seeds.derive("1", "2", "3"),
                seeds.derive(123),
            }
        )
        == 4
    )


def test_numbers_are_the_same_on_every_machine_and_python() -> None:
    """Or a resumed run would draw other masks and another order."""
    assert seeds.derive(1, "mask", 2) == 1488096746212027389
    assert seeds.permute(np.array([0, 1, 199_999_999, 12_345_678]), 200_000_000, 1).tolist() == [
        55991905,
        115345410,
        42056966,
        57362842,
    ]
    assert seeds.permute(np.arange(10), 10, 7, "x").tolist() == [8, 5, 9, 6, 2, 7, 3, 0, 4, 1]


@pytest.mark.parametrize("size", [1, 2, 65, 1_000, 10**9])
def test_few_elements_are_permuted_as_many(size: int) -> None:
    index = np.arange(0, size, max(1, size // 400))
    one_by_one = [int(seeds.permute(number, size, 3, "x")[0]) for number in index.tolist()]
    assert seeds.permute(index, size, 3, "x").tolist() == one_by_one


def test_generator_repeats() -> None:
    assert (
        seeds.generator(1, "crop", 5).random(4).tolist()
        == seeds.generator(1, "crop", 5).random(4).tolist()
    )
    assert seeds.generator(1, "crop", 5).random() != seeds.generator(1, "crop", 6).random()
