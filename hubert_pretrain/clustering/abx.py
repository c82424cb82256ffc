"""ABX: of three stretches of speech A, B and X, of which X says the same as A, is A nearer to X
than B is? (Schatz et al. 2013)

The measure of the ZeroSpeech challenges and of Libri-light (arXiv:1912.07315, section 4.1): A and X
are one phone, B is another, in the same context (the phones before and after). Within speakers all
three are of one speaker, across speakers X is of another. The score is the share of triplets that
go wrong, 0.5 for features that know nothing: averaged over the triplets of a cell (pair of phones,
context, speaker, and for X across its speaker), then over the cells of a pair of phones and a
speaker, over the speakers of a pair, and over pairs, in the order of Libri-light's program, so that
neither frequent phones nor talkative speakers decide alone.

B pairs of a batch, T frames, D width, N codebooks.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from hubert_pretrain.seeds import generator

Distance = Literal["angular", "units", "edit"]
"""Between two items. angular: angle between frames (T, D), over pi, warped. units: share of the N
codebooks whose ids differ, between ids (T, N), warped. edit: Levenshtein's, of ids (T, N) with
repetitions removed, over the length of the longer."""
PAIRS_AT_ONCE = 512


@dataclass(frozen=True)
class Item:
    """A stretch of speech: where it lies, and what is said in it by whom."""

    row: int
    """Of the manifest."""
    start: int
    """First frame."""
    stop: int
    """Frame after the last."""
    what: str
    """The phone, or the word."""
    context: tuple[str, ...]
    """What must be the same for A, B and X, such as the phones around it."""
    speaker: str


@dataclass(frozen=True)
class AbxScore:
    """Shares of triplets that go wrong, and how many cells they come from. None where there is no
    cell.
    """

    within: float | None
    across: float | None
    cells_within: int
    cells_across: int


@dataclass(frozen=True)
class Cell:
    """Tokens to compare: each triplet (a, b, x) with a of `a`, b of `b` and x of `x`; where `a` is
    `x`, a and x are different tokens.
    """

    key: tuple[str, str, str]
    """A's phone, B's phone, their speaker."""
    a: list[int]
    b: list[int]
    x: list[int]


def abx(
    items: Sequence[Item],
    values: Callable[[Item], NDArray[np.generic]],
    *,
    distance: Distance,
    max_tokens: int = 5,
    max_cells: int = 2000,
    seed: int = 0,
) -> AbxScore:
    """Scores items within and across speakers.

    Args:
        items: all that may be compared; those with less than one frame are left out. values: an
        item's frames (T, D), or ids (T, N). distance: see `Distance`. max_tokens: of one speaker,
        phone and context are looked at, chosen by the seed. (ZeroSpeech: 10 within, 5 of X across.)
        max_cells: at most so many cells within and so many across, chosen by the seed: the score of
        an hour of speech takes seconds. seed: for both choices.
    """
    items = [item for item in items if item.stop > item.start]
    groups = _groups(items, max_tokens, seed)
    scores: list[float | None] = []
    counts: list[int] = []
    for kind, cells in (("within", _cells_within(groups)), ("across", _cells_across(groups))):
        chosen = _sample(cells, max_cells, seed, kind)
        scores.append(
            _score(
                chosen,
                [
                    values(item) if used else None
                    for item, used in zip(items, _used(chosen, len(items)), strict=True)
                ],
                distance,
            )
        )
        counts.append(len(chosen))
    return AbxScore(scores[0], scores[1], counts[0], counts[1])


Groups = dict[tuple[str, ...], dict[str, dict[str, list[int]]]]
"""context -> speaker -> phone -> numbers of items."""


def _groups(items: Sequence[Item], max_tokens: int, seed: int) -> Groups:
    groups: Groups = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    for number, item in enumerate(items):
        groups[item.context][item.speaker][item.what].append(number)
    for context, speakers in groups.items():
        for speaker, phones in speakers.items():
            for phone, tokens in phones.items():
                if len(tokens) > max_tokens:
                    draw = generator(seed, "abx", *context, speaker, phone)
                    phones[phone] = sorted(
                        int(tokens[i]) for i in draw.choice(len(tokens), max_tokens, replace=False)
                    )
    return groups


def _cells_within(groups: Groups) -> Iterator[Cell]:
    """A and X are two tokens of a phone, B one of another; all of one speaker."""
    for speakers in groups.values():
        for speaker, phones in speakers.items():
            for one, tokens in phones.items():
                if len(tokens) > 1:
                    yield from (
                        Cell((one, other, speaker), tokens, phones[other], tokens)
                        for other in phones
                        if other != one
                    )


def _cells_across(groups: Groups) -> Iterator[Cell]:
    """A and B of one speaker, X of another."""
    for speakers in groups.values():
        for speaker, phones in speakers.items():
            for one, tokens in phones.items():
                sources = [
                    others[one]
                    for name, others in speakers.items()
                    if name != speaker and one in others
                ]
                for other in phones:
                    if other != one:
                        yield from (
                            Cell((one, other, speaker), tokens, phones[other], x) for x in sources
                        )


def _sample(cells: Iterator[Cell], count: int, seed: int, kind: str) -> list[Cell]:
    """At most `count` cells, each equally likely to be among them (reservoir sampling), in their
    order.
    """
    chosen = [(number, cell) for number, cell in enumerate(islice(cells, count))]
    draw = generator(seed, "abx cells", kind)
    for number, cell in enumerate(cells, start=count):
        if (place := int(draw.integers(number + 1))) < count:
            chosen[place] = number, cell
    return [cell for _, cell in sorted(chosen, key=lambda pair: pair[0])]


def _used(cells: Sequence[Cell], count: int) -> NDArray[np.bool_]:
    used = np.zeros(count, dtype=bool)
    for cell in cells:
        used[[*cell.a, *cell.b, *cell.x]] = True
    return used


def _score(
    cells: Sequence[Cell], values: Sequence[NDArray[np.generic] | None], distance: Distance
) -> float | None:
    if not cells:
        return None
    pairs = sorted(
        {
            tuple(sorted((token, x)))
            for cell in cells
            for x in cell.x
            for token in (*cell.a, *cell.b)
            if token != x
        }
    )
    found = dict(
        zip(
            pairs,
            pair_distances([(values[i], values[j]) for i, j in pairs], distance).tolist(),
            strict=True,
        )
    )  # type: ignore[misc]
    speakers: dict[tuple[str, str], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for cell in cells:
        one, other, speaker = cell.key
        speakers[one, other][speaker].append(_cell_error(cell, found))
    return float(
        np.mean(
            [
                np.mean([np.mean(errors) for errors in of_pair.values()])
                for of_pair in speakers.values()
            ]
        )
    )


def _cell_error(cell: Cell, found: dict[tuple[int, ...], float]) -> float:
    def between(one: int, other: int) -> float:
        return found[(one, other) if one < other else (other, one)]

    wrong = 0.0
    triplets = 0
    for x in cell.x:
        to_b = np.array([between(b, x) for b in cell.b])
        for a in cell.a:
            if a != x:
                to_a = between(a, x)
                wrong += float((to_b < to_a).sum() + 0.5 * (to_b == to_a).sum())
                triplets += len(to_b)
    return wrong / triplets


# -- distances
# --------------------------------------------------------------------------------------------------------------------


def pair_distances(
    pairs: Sequence[tuple[NDArray[np.generic], NDArray[np.generic]]], distance: Distance
) -> NDArray[np.float64]:
    """The distance of each pair of items, (pairs,)."""
    order = sorted(range(len(pairs)), key=lambda i: (len(pairs[i][0]), len(pairs[i][1])))
    result = np.empty(len(pairs))
    for begin in range(0, len(order), PAIRS_AT_ONCE):
        numbers = order[begin : begin + PAIRS_AT_ONCE]
        batch = [pairs[i] for i in numbers]
        if distance == "edit":
            batch = [
                (_without_repetitions(one), _without_repetitions(other)) for one, other in batch
            ]
        lengths = np.array([(len(one), len(other)) for one, other in batch])
        costs = _stack([_costs(one, other, distance) for one, other in batch])
        result[numbers] = (
            edit_distances(costs, lengths) if distance == "edit" else warped_means(costs, lengths)
        )
    return result


def _costs(
    one: NDArray[np.generic], other: NDArray[np.generic], distance: Distance
) -> NDArray[np.generic]:
    if distance == "angular":
        return angles(one, other)
    different = one[:, None] != other[None]  # (T, T', N)
    return different.any(axis=2) if distance == "edit" else different.mean(axis=2)


def angles(one: NDArray[np.generic], other: NDArray[np.generic]) -> NDArray[np.float64]:
    """Angle between frames (T, D) and (T', D), over pi: (T, T') in [0, 1]."""
    first, second = (
        x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
        for x in (one.astype(np.float64), other.astype(np.float64))
    )
    return np.arccos(np.clip(first @ second.T, -1, 1)) / np.pi


def warped_means(costs: NDArray[np.float64], lengths: NDArray[np.int64]) -> NDArray[np.float64]:
    """Mean cost along the cheapest path of dynamic time warping: costs (B, T, T'), of which (T, T')
    of `lengths` (B, 2) hold -> (B,).

    A step goes one frame on in either or in both; the mean is over the frames of the path, of
    equally cheap steps the one in both.
    """
    batch, rows, columns = costs.shape
    total = np.full((batch, rows + 1, columns + 1), np.inf)
    steps = np.zeros((batch, rows + 1, columns + 1))
    total[:, 0, 0] = 0
    for i in range(1, rows + 1):
        for j in range(1, columns + 1):
            ways = np.stack(
                [total[:, i - 1, j - 1], total[:, i - 1, j], total[:, i, j - 1]], axis=1
            )  # (B, 3)
            best = ways.argmin(axis=1)[:, None]
            lengths_so_far = np.stack(
                [steps[:, i - 1, j - 1], steps[:, i - 1, j], steps[:, i, j - 1]], axis=1
            )
            total[:, i, j] = np.take_along_axis(ways, best, 1)[:, 0] + costs[:, i - 1, j - 1]
            steps[:, i, j] = np.take_along_axis(lengths_so_far, best, 1)[:, 0] + 1
    ends = np.arange(batch), lengths[:, 0], lengths[:, 1]
    return np.asarray(total[ends] / steps[ends])


def edit_distances(
    different: NDArray[np.float64], lengths: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Levenshtein's distance over the length of the longer one: 0 or 1 (B, T, T') and `lengths` (B,
    2) -> (B,).
    """
    batch, rows, columns = different.shape
    total = np.zeros((batch, rows + 1, columns + 1))
    total[:, :, 0], total[:, 0, :] = np.arange(rows + 1), np.arange(columns + 1)
    for i in range(1, rows + 1):
        for j in range(1, columns + 1):
            changed = np.minimum(total[:, i - 1, j], total[:, i, j - 1]) + 1
            total[:, i, j] = np.minimum(
                total[:, i - 1, j - 1] + different[:, i - 1, j - 1], changed
            )
    return np.asarray(total[np.arange(batch), lengths[:, 0], lengths[:, 1]] / lengths.max(axis=1))


def _stack(costs: Sequence[NDArray[np.generic]]) -> NDArray[np.float64]:
    rows, columns = (max(each.shape[axis] for each in costs) for axis in (0, 1))
    stacked = np.zeros((len(costs), rows, columns))
    for number, each in enumerate(costs):
        stacked[number, : each.shape[0], : each.shape[1]] = each
    return stacked


def _without_repetitions(ids: NDArray[np.generic]) -> NDArray[np.generic]:
    return ids[np.concatenate([[True], (ids[1:] != ids[:-1]).any(axis=1)])]
