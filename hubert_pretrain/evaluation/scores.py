"""Intervals of any scores: of tasks that have no error analysis of their own. N utterances."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from hubert_pretrain.evaluation.analysis import MOST_WORST, Analysis, Table, groups
from hubert_pretrain.evaluation.bootstrap import Floats, Ints, Sampling
from hubert_pretrain.evaluation.utterances import ScoredUtterances


def analyse_scores(
    scored: ScoredUtterances,
    sampling: Sampling,
    score: Callable[[Ints], Mapping[str, float]],
    names: Sequence[str],
    *,
    higher_is_better: bool,
    errors: Floats | None = None,
) -> Analysis:
    """The named scores with intervals; the main one by speaker and by length; the utterances with
    the largest errors.

    Args:
        score: numbers of utterances, some repeated -> scores by name.
        names: of the scores, the main one first.
        higher_is_better: direction of the main one.
        errors: of each utterance (N,), of any unit; None: they have none.
    """

    def values(rows: Ints) -> Floats:
        found = score(rows)
        return np.array([found[name] for name in names], dtype=np.float64)

    by_unit = {
        unit: bootstrap.of_rows(values) for unit, bootstrap in scored.bootstraps(sampling).items()
    }
    columns: list[Sequence[Any]] = [scored.ids, scored.speakers, scored.seconds]
    header = ["id", "speaker", "seconds"]
    tables = groups(
        scored,
        {names[0]: lambda rows: score(rows)[names[0]]},
        higher_is_better=higher_is_better,
    )
    if errors is not None:
        columns.append(errors.tolist())
        header.append("error")
        tables["worst utterances"] = _worst(scored, errors)
    return Analysis(
        {
            name: {unit: estimates[place] for unit, estimates in by_unit.items()}
            for place, name in enumerate(names)
        },
        sampling,
        tables=tables,
        utterances=Table(
            (*header, "reference", "prediction"),
            list(zip(*columns, scored.references, scored.predictions, strict=True)),
        ),
    )


def _worst(scored: ScoredUtterances, errors: Floats) -> Table:
    """The utterances with the largest errors."""
    order = np.argsort(-errors, kind="stable")[:MOST_WORST].tolist()
    rows = [
        (scored.ids[row], float(errors[row]), scored.references[row], scored.predictions[row])
        for row in order
        if errors[row]
    ]
    return Table(("id", "error", "reference", "prediction"), rows)
