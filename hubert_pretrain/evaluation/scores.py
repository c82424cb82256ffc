"""Intervals of any scores: of tasks that have no error analysis of their own. N utterances."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from hubert_pretrain.evaluation.analysis import Analysis, Table, groups
from hubert_pretrain.evaluation.bootstrap import Sampling
from hubert_pretrain.evaluation.utterances import ScoredUtterances

Score = Callable[[Sequence[str], Sequence[str]], Mapping[str, float]]
"""References and predictions -> scores by name."""


def analyse_scores(
    scored: ScoredUtterances,
    sampling: Sampling,
    score: Score,
    names: Sequence[str],
    *,
    higher_is_better: bool,
) -> Analysis:
    """The named scores with intervals, by speaker and by length.

    Args:
        names: of the scores, the main one first.
        higher_is_better: direction of the main one.
    """

    def value(name: str, rows: NDArray[np.int64]) -> float:
        references = [scored.references[row] for row in rows.tolist()]
        predictions = [scored.predictions[row] for row in rows.tolist()]
        return float(score(references, predictions)[name])

    bootstraps = scored.bootstraps(sampling)
    return Analysis(
        {
            name: {
                unit: bootstrap.of_rows(partial(value, name))
                for unit, bootstrap in bootstraps.items()
            }
            for name in names
        },
        sampling,
        tables=groups(
            scored, {names[0]: partial(value, names[0])}, higher_is_better=higher_is_better
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
