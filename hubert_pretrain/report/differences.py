"""Differences of scores between runs on the same utterances, with paired intervals.

The intervals of two scores may overlap although one run is better on nearly every utterance: both
share the hard ones. So utterances are drawn once for both runs, and the difference is computed
again. N utterances.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hubert_pretrain.evaluation.bootstrap import Bootstrap, Floats, Sampling, ratio
from hubert_pretrain.evaluation.report import UTTERANCES
from hubert_pretrain.pipeline.workspace import Workspace

MOST_UTTERANCES = 50_000
"""Utterances of a split that are read: those at its beginning."""
ERRORS = ("substitutions", "deletions", "insertions")

Counts = dict[str, tuple[float, float]]
"""Errors and words, or trials, of each utterance; for classes 1 or 0, and 1."""


def of_scores(workspaces: Sequence[Workspace]) -> dict[str, list[dict[str, Any] | None]]:
    """By `task/split`, for each run the difference of its error rate to that of the first run
    that was scored; None for that run, and for those without the same utterances.
    """
    if len(workspaces) < 2:
        return {}
    folders = [each.root / "evaluate" for each in workspaces]
    names = sorted(
        {
            str(path.parent.relative_to(root))
            for root in folders
            for path in root.glob("*/*/meta.json")
        }
    )
    found = {}
    for name in names:
        scored = [_counts(folder / name) for folder in folders]
        differences = [None if counts is None else _to_first(scored, counts) for counts in scored]
        if any(differences):
            found[name] = differences
    return found


def _to_first(scored: Sequence[Counts | None], counts: Counts) -> dict[str, Any] | None:
    first = next(each for each in scored if each is not None)
    if first is counts or set(first) != set(counts):
        return None
    return difference(first, counts)


def difference(first: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """The error rate of `other` minus that of `first`, on the same utterances, with its 95 %
    interval.
    """
    ids = sorted(first)
    pairs: NDArray[np.float64] = np.array([[*first[each], *other[each]] for each in ids])  # (N, 4)

    def statistic(sums: Floats) -> Floats:
        return ratio(sums[:, 2:]) - ratio(sums[:, :2])

    return Bootstrap(ids, Sampling()).of_sums(pairs, statistic).as_json()


def _counts(folder: Path) -> Counts | None:
    """Of an evaluated split; None where it has no utterances with errors, or no readable ones."""
    try:
        with open(folder / UTTERANCES, encoding="utf-8") as file:
            rows = [json.loads(line) for line in islice(file, MOST_UTTERANCES)]
    except (OSError, ValueError):
        return None
    if rows and "words" in rows[0]:
        return {
            row["id"]: (float(sum(row[kind] for kind in ERRORS)), float(row["words"]))
            for row in rows
        }
    if rows and "trials" in rows[0]:
        return {row["id"]: (float(row["errors"]), float(row["trials"])) for row in rows}
    if rows and "right" in rows[0]:
        return {row["id"]: (float(not row["right"]), 1.0) for row in rows}
    return None
