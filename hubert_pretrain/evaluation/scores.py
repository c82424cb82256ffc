"""Intervals of any scores: of tasks that have no error analysis of their own. N utterances."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from hubert_pretrain.evaluation.analysis import Analysis, Table, groups
from hubert_pretrain.evaluation.bootstrap import Floats, Ints, Sampling
from hubert_pretrain.evaluation.utterances import ScoredUtterances


def analyse_scores(
    scored: ScoredUtterances,
    sampling: Sampling,
    score: Callable[[Ints], Mapping[str, float]],
    names: Sequence[str],
    *,
    higher_is_better: bool,
) -> Analysis:
    """The named scores with intervals; the main one by speaker and by length.

    Args:
        score: numbers of utterances, some repeated -> scores by name.
        names: of the scores, the main one first.
        higher_is_better: direction of the main one.
    """

    def values(rows: Ints) -> Floats:
        found = score(rows)
        return np.array([found[name] for name in names], dtype=np.float64)

    by_unit = {
        unit: bootstrap.of_rows(values) for unit, bootstrap in scored.bootstraps(sampling).items()
    }
    return Analysis(
        {
            name: {unit: estimates[place] for unit, estimates in by_unit.items()}
            for place, name in enumerate(names)
        },
        sampling,
        tables=groups(
            scored,
            {names[0]: lambda rows: score(rows)[names[0]]},
            higher_is_better=higher_is_better,
        ),
        utterances=Table(
            ("id", "speaker", "seconds", "reference", "prediction"),
            list(
                zip(
                    scored.ids,
                    scored.speakers,
                    scored.seconds,
                    scored.references,
                    scored.predictions,
                    strict=True,
                )
            ),
        ),
    )
