"""Scores of classes: accuracy, macro F1, a table with a row per class, the confusion matrix. N
utterances, K classes.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hubert_pretrain.evaluation.analysis import Analysis, Table, groups
from hubert_pretrain.evaluation.bootstrap import Floats, Sampling, ratio
from hubert_pretrain.evaluation.utterances import ScoredUtterances

MOST_COLUMNS = 25
"""Largest confusion matrix; of more classes only the list of confusions is written."""


def analyse_classes(scored: ScoredUtterances, sampling: Sampling) -> Analysis:
    """Accuracy, its mean over classes and macro F1, each with intervals; and what is taken for
    what.
    """
    classes = sorted({*scored.references, *scored.predictions})
    number = {name: place for place, name in enumerate(classes)}
    truth = np.array([number[name] for name in scored.references])
    guess = np.array([number[name] for name in scored.predictions])
    right = truth == guess
    hits = np.stack([right, np.ones_like(right)], axis=1).astype(np.int64)
    by_class = _counts(truth, guess, len(classes))
    bootstraps = scored.bootstraps(sampling)
    scores = {
        "accuracy": {unit: each.of_sums(hits, ratio) for unit, each in bootstraps.items()},
        "unweighted_accuracy": {
            unit: each.of_sums(by_class, mean_recall) for unit, each in bootstraps.items()
        },
        "macro_f1": {unit: each.of_sums(by_class, macro_f1) for unit, each in bootstraps.items()},
    }
    (_, largest), *_ = Counter(scored.references).most_common(1)
    sums = np.asarray(by_class.sum(axis=0)).reshape(1, -1)
    confusions = Counter(zip(scored.references, scored.predictions, strict=True))
    return Analysis(
        scores,
        sampling,
        counts={
            "classes": len(set(scored.references)),
            "right": int(right.sum()),
            "largest_class": largest / len(scored),
        },
        tables={
            "by class": table_by_class(classes, sums),
            **_matrix(classes, confusions),
            "confusions": Table(
                ("reference", "prediction", "count"),
                [
                    (*pair, count)
                    for pair, count in sorted(
                        confusions.items(), key=lambda item: (-item[1], item[0])
                    )
                    if pair[0] != pair[1]
                ],
            ),
            **groups(
                scored,
                {"accuracy": lambda rows: float(right[rows].mean())},
                higher_is_better=True,
            ),
        },
        utterances=Table(
            ("id", "speaker", "seconds", "right", "reference", "prediction"),
            list(
                zip(
                    scored.ids,
                    scored.speakers,
                    scored.seconds,
                    right.tolist(),
                    scored.references,
                    scored.predictions,
                    strict=True,
                )
            ),
        ),
    )


def _counts(truth: NDArray[np.int64], guess: NDArray[np.int64], n_classes: int) -> Any:
    """(N, 3 K), sparse: right ones, references and predictions of each class."""
    from scipy import sparse

    rows = np.arange(len(truth))
    right = np.flatnonzero(truth == guess)
    places = np.concatenate([rows[right], rows, rows])
    columns = np.concatenate([truth[right], n_classes + truth, 2 * n_classes + guess])
    ones = np.ones(len(places))
    return sparse.csr_array((ones, (places, columns)), shape=(len(truth), 3 * n_classes))


def mean_recall(sums: Floats) -> Floats:
    """Statistic (R, 3 K) -> (R,): mean over the classes of the references of the share that is
    right.
    """
    right, references, _ = np.split(sums, 3, axis=1)
    return _mean(right, references, references > 0)


def macro_f1(sums: Floats) -> Floats:
    """Statistic (R, 3 K) -> (R,): mean F1 of the classes that occur."""
    right, references, predictions = np.split(sums, 3, axis=1)
    both = references + predictions
    return _mean(2 * right, both, both > 0)


def _mean(over: Floats, under: Floats, counts: NDArray[np.bool_]) -> Floats:
    """Mean of over / under along rows, where it counts."""
    shares = np.divide(over, under, out=np.zeros_like(over), where=counts)
    return np.asarray(shares.sum(axis=1) / counts.sum(axis=1))


def table_by_class(classes: list[str], sums: Floats) -> Table:
    """A row per class: counts, precision, recall, F1, from (1, 3 K) counts of right ones,
    references and predictions.
    """
    right, references, predictions = np.split(sums[0], 3)
    rows = []
    for name, hit, actual, predicted in zip(classes, right, references, predictions, strict=True):
        precision = float(hit / predicted) if predicted else 0.0
        recall = float(hit / actual) if actual else 0.0
        f1 = float(2 * hit / (actual + predicted)) if actual + predicted else 0.0
        rows.append((name, int(actual), int(predicted), precision, recall, f1))
    return Table(("class", "utterances", "predicted", "precision", "recall", "f1"), rows)


def _matrix(classes: list[str], confusions: Counter[tuple[str, str]]) -> dict[str, Table]:
    if len(classes) > MOST_COLUMNS:
        return {}
    rows = [
        (reference, *(confusions[reference, prediction] for prediction in classes))
        for reference in classes
    ]
    note = "A row per class of the references, a column per class of the predictions."
    return {"confusion matrix": Table(("reference", *classes), rows, note)}
