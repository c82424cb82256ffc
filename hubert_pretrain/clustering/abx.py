"""ABX discriminability (Schatz et al. 2013): given items A and X of one category and B of another,
is A closer to X than B?

The measure of the ZeroSpeech challenges and of Libri-light (arXiv:1912.07315, section 4.1). An item
is a stretch of speech: A and X are the same phone, B is another one, all in the same context (the
phones before and after). Within speakers, all three are from one speaker; across speakers, X is
from another. The score is the error rate: the share of triplets in which B is closer, 0.5 at
chance. Errors are averaged in the order of Libri-light's program: over the triplets of a cell (pair
of phones, context, speaker, and for X its speaker), over the cells of a pair of phones and a
speaker, over the speakers of a pair, over pairs. So neither frequent phones nor talkative speakers
dominate.

Letters: B pairs of a batch, T and T' frames of two items, D width of a frame, N codebooks.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from hubert_pretrain.seeds import generator

Distance = Literal["angular", "units", "edit"]
"""Distance between two items.

angular: mean angle, over pi, between frames (T, D) along the best alignment (dynamic time warping).
units: mean share of the N codebooks whose ids differ, between ids (T, N), along the best alignment.
edit: Levenshtein distance of ids (T, N) without repetitions, over the length of the longer item.
"""
PAIRS_AT_ONCE = 512
"""Pairs of items whose distances are computed together."""


@dataclass(frozen=True)
class Item:
    """A stretch of speech with its category, context and speaker."""

    row: int
    """Row of the manifest."""
    start: int
    """First frame."""
    stop: int
    """Frame after the last."""
    label: str
    """Category: the phone, or the word."""
    context: tuple[str, ...]
    """Must be equal for A, B and X: the phones around the item, or nothing."""
    speaker: str


@dataclass(frozen=True)
class AbxScore:
    """Error rates, and the numbers of cells that they average. None where there is no cell."""

    within: float | None
    across: float | None
    cells_within: int
    cells_across: int


@dataclass(frozen=True)
class Cell:
    """Items to compare: each triplet (a, b, x) with a from `a`, b from `b` and x from `x`, where a
    and x are different items.
    """

    key: tuple[str, str, str]
    """A's label, B's label, their speaker."""
    a: list[int]
    b: list[int]
    x: list[int]


@dataclass(frozen=True)
class CellSeries:
    """The cells of one label, context and speaker of A."""

    num_cells: int
    make: Callable[[int], Cell]
    """The cell of a number below `num_cells`."""


Groups = dict[tuple[str, ...], dict[str, dict[str, list[int]]]]
"""context -> speaker -> label -> numbers of items."""


def abx(
    items: Sequence[Item],
    values: Callable[[Item], NDArray[np.generic]],
    *,
    distance: Distance,
    max_tokens: int = 5,
    max_cells: int = 2000,
    seed: int = 0,
) -> AbxScore:
    """ABX error rates within and across speakers.

    Args:
        items: candidates; those without a frame are ignored.
        values: returns an item's frames (T, D), or ids (T, N).
        distance: see `Distance`.
        max_tokens: most items per speaker, label and context, drawn by the seed. (ZeroSpeech: 10
            within, 5 of X across.)
        max_cells: most cells within, and most cells across, drawn by the seed. With the default an
            hour of speech takes seconds.
        seed: of both draws.
    """
    items = [item for item in items if item.stop > item.start]
    groups = _group_items(items, max_tokens, seed)
    within = _sample_cells(_cells_within(groups), max_cells, seed, "within")
    across = _sample_cells(_cells_across(groups), max_cells, seed, "across")
    return AbxScore(
        within=_error_rate(within, items, values, distance),
        across=_error_rate(across, items, values, distance),
        cells_within=len(within),
        cells_across=len(across),
    )


# -- cells


def _group_items(items: Sequence[Item], max_tokens: int, seed: int) -> Groups:
    groups: Groups = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    for number, item in enumerate(items):
        groups[item.context][item.speaker][item.label].append(number)
    for context, speakers in groups.items():
        for speaker, labels in speakers.items():
            for label, tokens in labels.items():
                if len(tokens) > max_tokens:
                    draw = generator(seed, "abx", *context, speaker, label)
                    chosen = draw.choice(len(tokens), max_tokens, replace=False)
                    labels[label] = sorted(int(tokens[index]) for index in chosen)
    return groups


def _cells_within(groups: Groups) -> Iterator[CellSeries]:
    """A and X are two items of a label, B is one of another; all from one speaker."""
    for speakers in groups.values():
        for speaker, labels in speakers.items():
            names = list(labels)
            for place, name in enumerate(names):
                if len(labels[name]) >= 2:
                    make = partial(_cell_within, speaker, labels, names, place)
                    yield CellSeries(len(names) - 1, make)


def _cell_within(
    speaker: str, labels: dict[str, list[int]], names: list[str], place: int, number: int
) -> Cell:
    label = names[place]
    other = _others(names, place, number)
    return Cell((label, other, speaker), a=labels[label], b=labels[other], x=labels[label])


def _cells_across(groups: Groups) -> Iterator[CellSeries]:
    """A and B are from one speaker, X is from another."""
    for speakers in groups.values():
        speakers_of = defaultdict(list)  # label -> the speakers who have it
        for speaker, labels in speakers.items():
            for label in labels:
                speakers_of[label].append(speaker)
        # label -> place in that list of the speaker whose turn it is
        own_places: dict[str, Iterator[int]] = defaultdict(count)
        for labels in speakers.values():
            names = list(labels)
            for place, label in enumerate(names):
                make = partial(
                    _cell_across,
                    speakers,
                    speakers_of[label],
                    next(own_places[label]),
                    names,
                    place,
                )
                yield CellSeries((len(names) - 1) * (len(speakers_of[label]) - 1), make)


def _cell_across(
    speakers: dict[str, dict[str, list[int]]],
    known: list[str],
    own: int,
    names: list[str],
    place: int,
    number: int,
) -> Cell:
    label = names[place]
    speaker = known[own]
    number, number_of_x = divmod(number, len(known) - 1)
    other = _others(names, place, number)
    x = speakers[_others(known, own, number_of_x)][label]
    labels = speakers[speaker]
    return Cell((label, other, speaker), a=labels[label], b=labels[other], x=x)


def _others(names: list[str], place: int, number: int) -> str:
    """The `number`-th of the names without the one at `place`."""
    return names[number + (number >= place)]


def _sample_cells(series: Iterator[CellSeries], most: int, seed: int, kind: str) -> list[Cell]:
    """At most `most` cells of all series, drawn uniformly, in their order.

    Cells are counted and not made: their number grows with the square of labels and speakers.
    """
    found = list(series)
    ends = np.cumsum([each.num_cells for each in found], dtype=np.int64)
    total = int(ends[-1]) if found else 0
    numbers = np.arange(min(total, most), dtype=np.int64)
    if total > most:
        draw = generator(seed, "abx cells", kind)
        numbers = np.sort(draw.choice(total, most, replace=False, shuffle=False))
    places = np.searchsorted(ends, numbers, side="right")
    starts = ends - [each.num_cells for each in found]
    return [
        found[place].make(int(number - starts[place]))
        for place, number in zip(places.tolist(), numbers.tolist(), strict=True)
    ]


# -- errors


def _error_rate(
    cells: Sequence[Cell],
    items: Sequence[Item],
    values: Callable[[Item], NDArray[np.generic]],
    distance: Distance,
) -> float | None:
    """Error rate over cells, averaged per cell, per speaker and per pair of labels."""
    if not cells:
        return None
    distances = _distances_of_cells(cells, items, values, distance)
    errors: dict[tuple[str, str], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for cell in cells:
        label, other, speaker = cell.key
        errors[label, other][speaker].append(_cell_error(cell, distances))
    of_pairs = []
    for of_speakers in errors.values():
        of_pairs.append(np.mean([np.mean(of_cells) for of_cells in of_speakers.values()]))
    return float(np.mean(of_pairs))


def _distances_of_cells(
    cells: Sequence[Cell],
    items: Sequence[Item],
    values: Callable[[Item], NDArray[np.generic]],
    distance: Distance,
) -> dict[tuple[int, int], float]:
    """Distance of every pair of items (smaller number first) that some cell compares."""
    pairs: set[tuple[int, int]] = set()
    for cell in cells:
        for x in cell.x:
            for token in (*cell.a, *cell.b):
                if token != x:
                    pairs.add((min(token, x), max(token, x)))
    ordered = sorted(pairs)
    used = {number for pair in ordered for number in pair}
    of_items = {number: values(items[number]) for number in sorted(used)}
    distances = pair_distances([(of_items[i], of_items[j]) for i, j in ordered], distance)
    return dict(zip(ordered, distances.tolist(), strict=True))


def _cell_error(cell: Cell, distances: dict[tuple[int, int], float]) -> float:
    """Share of the triplets of a cell in which B is closer to X than A; ties count half."""

    def between(one: int, other: int) -> float:
        return distances[min(one, other), max(one, other)]

    wrong = 0.0
    triplets = 0
    for x in cell.x:
        to_b = np.array([between(b, x) for b in cell.b])
        for a in cell.a:
            if a == x:
                continue
            to_a = between(a, x)
            wrong += float((to_b < to_a).sum() + 0.5 * (to_b == to_a).sum())
            triplets += len(to_b)
    return wrong / triplets


# -- distances


def pair_distances(
    pairs: Sequence[tuple[NDArray[np.generic], NDArray[np.generic]]], distance: Distance
) -> NDArray[np.float64]:
    """The distance of each pair of items: (pairs,)."""
    result = np.empty(len(pairs))
    # Pairs of similar size together, which keeps the padding small.
    order = sorted(range(len(pairs)), key=lambda i: (len(pairs[i][0]), len(pairs[i][1])))
    for begin in range(0, len(order), PAIRS_AT_ONCE):
        numbers = order[begin : begin + PAIRS_AT_ONCE]
        batch = [pairs[number] for number in numbers]
        if distance == "edit":
            batch = [(_deduplicate(one), _deduplicate(other)) for one, other in batch]
        lengths = np.array([(len(one), len(other)) for one, other in batch])  # (B, 2)
        costs = _pad([_costs(one, other, distance) for one, other in batch])  # (B, T, T')
        if distance == "edit":
            result[numbers] = edit_distances(costs, lengths)
        else:
            result[numbers] = warped_means(costs, lengths)
    return result


def _costs(
    one: NDArray[np.generic], other: NDArray[np.generic], distance: Distance
) -> NDArray[np.generic]:
    """Cost of aligning each frame of one item with each frame of another: (T, T')."""
    if distance == "angular":
        return angles(one, other)
    differs = one[:, None] != other[None]  # (T, T', N)
    return differs.any(axis=2) if distance == "edit" else differs.mean(axis=2)


def angles(one: NDArray[np.generic], other: NDArray[np.generic]) -> NDArray[np.float64]:
    """Angles between frames (T, D) and (T', D), over pi: (T, T') in [0, 1]."""
    cosines = _unit_length(one) @ _unit_length(other).T
    return np.arccos(np.clip(cosines, -1, 1)) / np.pi


def _unit_length(frames: NDArray[np.generic]) -> NDArray[np.float64]:
    exact = frames.astype(np.float64)
    return exact / np.maximum(np.linalg.norm(exact, axis=1, keepdims=True), 1e-12)


def warped_means(costs: NDArray[np.float64], lengths: NDArray[np.int64]) -> NDArray[np.float64]:
    """Mean cost along the cheapest path of dynamic time warping: costs (B, T, T'), of which
    `lengths` (B, 2) are valid -> (B,).

    A step advances in one item or in both. The mean is over the steps of the path; among equally
    cheap steps the one in both is taken.
    """
    batch, rows, columns = costs.shape
    # total[:, i, j] and steps[:, i, j]: cost and length of the best path to frames i - 1, j - 1.
    total = np.full((batch, rows + 1, columns + 1), np.inf)
    steps = np.zeros((batch, rows + 1, columns + 1))
    total[:, 0, 0] = 0
    for i in range(1, rows + 1):
        for j in range(1, columns + 1):
            # Predecessors: both items advance, the first does, the second does.
            total_before = np.stack(
                [total[:, i - 1, j - 1], total[:, i - 1, j], total[:, i, j - 1]], axis=1
            )  # (B, 3)
            steps_before = np.stack(
                [steps[:, i - 1, j - 1], steps[:, i - 1, j], steps[:, i, j - 1]], axis=1
            )
            best = total_before.argmin(axis=1)[:, None]
            best_total = np.take_along_axis(total_before, best, 1)[:, 0]
            total[:, i, j] = best_total + costs[:, i - 1, j - 1]
            steps[:, i, j] = np.take_along_axis(steps_before, best, 1)[:, 0] + 1
    ends = np.arange(batch), lengths[:, 0], lengths[:, 1]
    return np.asarray(total[ends] / steps[ends])


def edit_distances(differs: NDArray[np.float64], lengths: NDArray[np.int64]) -> NDArray[np.float64]:
    """Levenshtein distance over the length of the longer item: `differs` (B, T, T') of 0 and 1, of
    which `lengths` (B, 2) are valid -> (B,).
    """
    batch, rows, columns = differs.shape
    # total[:, i, j]: distance of the first i ids of one item and the first j of the other.
    total = np.zeros((batch, rows + 1, columns + 1))
    total[:, :, 0] = np.arange(rows + 1)
    total[:, 0, :] = np.arange(columns + 1)
    for i in range(1, rows + 1):
        for j in range(1, columns + 1):
            inserted = np.minimum(total[:, i - 1, j], total[:, i, j - 1]) + 1
            substituted = total[:, i - 1, j - 1] + differs[:, i - 1, j - 1]
            total[:, i, j] = np.minimum(substituted, inserted)
    distances = total[np.arange(batch), lengths[:, 0], lengths[:, 1]]
    return np.asarray(distances / lengths.max(axis=1))


def _pad(costs: Sequence[NDArray[np.generic]]) -> NDArray[np.float64]:
    """Matrices (T, T') of different sizes as one array (B, max T, max T'), padded with 0."""
    rows = max(each.shape[0] for each in costs)
    columns = max(each.shape[1] for each in costs)
    padded = np.zeros((len(costs), rows, columns))
    for number, each in enumerate(costs):
        padded[number, : each.shape[0], : each.shape[1]] = each
    return padded


def _deduplicate(ids: NDArray[np.generic]) -> NDArray[np.generic]:
    """Ids (T, N) without repetitions of the frame before."""
    is_new = (ids[1:] != ids[:-1]).any(axis=1)
    return ids[np.concatenate([[True], is_new])]
