"""ABX against its definition, written out triplet by triplet and cell by cell."""

from __future__ import annotations

import collections
import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hubert_pretrain.clustering import abx as module
from hubert_pretrain.clustering.abx import Cell, Item, abx, pair_distances

# -- the definition


def naive_dtw(costs: list[list[float]]) -> float:
    """The mean cost on the cheapest path, by the recurrence."""
    rows = len(costs)
    columns = len(costs[0])
    best: dict[tuple[int, int], tuple[float, int]] = {}
    for i, j in itertools.product(range(rows), range(columns)):
        before = [
            best[place] for place in ((i - 1, j - 1), (i - 1, j), (i, j - 1)) if place in best
        ]
        total, steps = min(before, key=lambda pair: pair[0]) if before else (0.0, 0)
        best[i, j] = total + costs[i][j], steps + 1
    total, steps = best[rows - 1, columns - 1]
    return total / steps


def naive_angle(x: np.ndarray, y: np.ndarray) -> float:
    return (
        math.acos(max(-1.0, min(1.0, float(x @ y) / (math.sqrt(x @ x) * math.sqrt(y @ y)))))
        / math.pi
    )


def naive_edit(one: list[int], other: list[int]) -> float:
    one, other = ([key for key, _ in itertools.groupby(ids)] for ids in (one, other))
    table = {
        (i, j): max(i, j) for i in range(len(one) + 1) for j in range(len(other) + 1) if 0 in (i, j)
    }
    for i, j in itertools.product(range(1, len(one) + 1), range(1, len(other) + 1)):
        table[i, j] = min(
            table[i - 1, j] + 1,
            table[i, j - 1] + 1,
            table[i - 1, j - 1] + (one[i - 1] != other[j - 1]),
        )
    return table[len(one), len(other)] / max(len(one), len(other))


def naive_score(items: list[Item], distances: np.ndarray, *, across: bool) -> float | None:
    """Every cell (phones a and b, context, speaker, speaker of x) and every triplet of it; a mean
    per speaker, pair, and over pairs.
    """
    numbers = range(len(items))
    by_pair: dict[tuple[str, str], dict[str, list[float]]] = {}
    speakers = sorted({item.speaker for item in items})
    for one, other in itertools.permutations(sorted({item.label for item in items}), 2):
        for context in sorted({item.context for item in items}):
            for speaker, listener in itertools.product(speakers, speakers):
                if (speaker != listener) is not across:
                    continue

                def tokens(label: str, who: str, where: tuple[str, ...] = context) -> list[int]:
                    return [
                        n
                        for n in numbers
                        if (items[n].label, items[n].speaker, items[n].context)
                        == (label, who, where)
                    ]

                wrong = [
                    (distances[b, x] < distances[a, x]) + 0.5 * (distances[b, x] == distances[a, x])
                    for a, b, x in itertools.product(
                        tokens(one, speaker), tokens(other, speaker), tokens(one, listener)
                    )
                    if a != x
                ]
                if wrong:
                    by_pair.setdefault((one, other), {}).setdefault(speaker, []).append(
                        float(np.mean(wrong))
                    )
    scores = [
        np.mean([np.mean(cells) for cells in by_speaker.values()])
        for by_speaker in by_pair.values()
    ]
    return float(np.mean(scores)) if scores else None


# -- parity


@given(
    st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=6),
    st.integers(0, 999),
)
@settings(max_examples=30)
def test_distances_equal_their_definitions(lengths: list[tuple[int, int]], seed: int) -> None:
    draw = np.random.default_rng(seed)
    frames = [(draw.normal(size=(a, 5)), draw.normal(size=(b, 5))) for a, b in lengths]
    expected = [
        naive_dtw([[naive_angle(x, y) for y in other] for x in one]) for one, other in frames
    ]
    np.testing.assert_allclose(pair_distances(frames, "angular"), expected, atol=1e-12)
    ids = [(draw.integers(3, size=(a, 1)), draw.integers(3, size=(b, 1))) for a, b in lengths]
    expected = [
        naive_dtw([[float(x != y) for y in other[:, 0]] for x in one[:, 0]]) for one, other in ids
    ]
    np.testing.assert_allclose(pair_distances(ids, "units"), expected, atol=1e-12)
    expected = [naive_edit(one[:, 0].tolist(), other[:, 0].tolist()) for one, other in ids]
    np.testing.assert_allclose(pair_distances(ids, "edit"), expected, atol=1e-12)


@pytest.mark.parametrize("seed", range(6))
def test_the_score_equals_its_definition(seed: int) -> None:
    draw = np.random.default_rng(seed)
    centres = draw.normal(size=(4, 6))
    items = []
    values = {}
    for number in range(50):
        phone = int(draw.integers(4))
        length = int(draw.integers(2, 6))
        item = Item(
            number,
            0,
            length,
            "abcd"[phone],
            (str(draw.integers(2)),),
            f"speaker {draw.integers(3)}",
        )
        items.append(item)
        values[number] = centres[phone] + draw.normal(size=(length, 6)) * 1.5
    pairs = list(itertools.product(range(50), range(50)))
    distances = np.array(
        [naive_dtw([[naive_angle(x, y) for y in values[j]] for x in values[i]]) for i, j in pairs]
    ).reshape(50, 50)
    distances = np.triu(distances) + np.triu(distances, 1).T
    score = abx(
        items, lambda item: values[item.row], distance="angular", max_tokens=50, max_cells=10_000
    )
    assert score.within == pytest.approx(naive_score(items, distances, across=False), abs=1e-9)
    assert score.across == pytest.approx(naive_score(items, distances, across=True), abs=1e-9)
    assert 0 < score.within < 0.5
    assert min(score.cells_within, score.cells_across) > 10


# -- behaviour


def many(tokens: int, n_speakers: int = 2) -> list[Item]:
    return [Item(n, 0, 3, "ab"[n % 2], ("x", "y"), f"{n // 2 % n_speakers}") for n in range(tokens)]


def test_error_of_perfect_useless_and_inverted_values() -> None:
    items = many(24)
    perfect = abx(items, lambda item: np.full((3, 1), item.label == "a"), distance="units")
    assert (perfect.within, perfect.across) == (0.0, 0.0)
    useless = abx(items, lambda item: np.zeros((3, 1)), distance="units")
    assert (useless.within, useless.across) == (0.5, 0.5)
    speaker_only = abx(
        items,
        lambda item: np.array([[1.0, 0.0] if item.speaker == "0" else [0.0, 1.0]]),
        distance="angular",
    )
    assert (speaker_only.within, speaker_only.across) == (0.5, 0.5)


def test_nothing_to_compare_is_none() -> None:
    score = abx(many(24, n_speakers=1), lambda item: np.zeros((3, 1)), distance="units")
    assert score.across is None
    assert score.cells_across == 0
    assert abx([], lambda item: np.zeros((3, 1)), distance="edit").within is None
    other_contexts = [Item(n, 0, 3, "ab"[n % 2], (str(n),), "s") for n in range(10)]
    assert abx(other_contexts, lambda item: np.zeros((3, 1)), distance="edit").within is None


def test_the_selection_of_items_depends_on_the_seed_only() -> None:
    draw = np.random.default_rng(0)
    items = [Item(n, 0, 2, "abcdef"[n % 6], (str(n % 7),), str(n % 5)) for n in range(800)]
    values = {n: draw.normal(size=(2, 4)) for n in range(800)}

    def score(seed: int) -> tuple[float | None, int]:
        found = abx(
            items,
            lambda item: values[item.row],
            distance="angular",
            max_tokens=2,
            max_cells=40,
            seed=seed,
        )
        return found.within, found.cells_within

    assert score(1) == score(1)
    assert score(1)[1] == 40
    assert score(1)[0] != score(2)[0]


def test_a_sample_of_cells_is_drawn_from_all_of_them() -> None:
    """Every cell is as likely as the others, and with more than enough all are there, in order."""
    draw = np.random.default_rng(0)
    items = [
        Item(n, 0, 1, "abcde"[draw.integers(5)], (str(draw.integers(2)),), str(draw.integers(4)))
        for n in range(60)
    ]
    groups = module._group_items(items, 5, 0)
    for series in (module._cells_within, module._cells_across):
        every = [cell.key for cell in module._sample_cells(series(groups), 10**6, 0, "x")]
        assert len(every) == sum(each.num_cells for each in series(groups))
        seen = collections.Counter(
            cell.key
            for seed in range(400)
            for cell in module._sample_cells(series(groups), 10, seed, "x")
        )
        assert set(seen) == set(every)
        mean = 4000 / len(every)
        for key, times in collections.Counter(every).items():
            expected = mean * times
            assert abs(seen[key] - expected) < 6 * expected**0.5


@pytest.mark.parametrize("size", [1_000, 10_000])
def test_cells_that_are_not_compared_are_not_made(
    size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their number grows with the square of the speakers and of the labels."""
    made = []
    monkeypatch.setattr(
        module, "Cell", lambda *args, **named: made.append(1) or Cell(*args, **named)
    )
    draw = np.random.default_rng(0)
    words = draw.integers(0, size // 20, size).tolist()
    items = [Item(n, 0, 1, str(word), (), str(n % 20)) for n, word in enumerate(words)]
    score = abx(items, lambda item: np.zeros((1, 1)), distance="units", max_cells=50)
    assert (score.cells_within, score.cells_across) == (50, 50)
    assert len(made) == 100
