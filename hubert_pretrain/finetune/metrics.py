"""Scores: word and character error rates over a corpus; accuracy, F1 and average precision of
classes; agreement of numbers. N utterances, K classes or outputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hubert_pretrain.evaluation.texts import count_errors


def word_error_rate(references: Sequence[str], hypotheses: Sequence[str]) -> float:
    """Word substitutions, deletions and insertions over the words of all references.

    Utterances without reference words count with their insertions. Where no reference has any word,
    it is 0 without hypotheses and infinite otherwise.
    """
    _check_lengths(references, hypotheses)
    return count_errors(references, hypotheses, "words").rate()


def character_error_rate(references: Sequence[str], hypotheses: Sequence[str]) -> float:
    """The same over characters, single spaces between words included."""
    _check_lengths(references, hypotheses)
    return count_errors(references, hypotheses, "characters").rate()


def share_of_empty(references: Sequence[str], hypotheses: Sequence[str]) -> float:
    """Share of the references with text whose hypothesis has none."""
    _check_lengths(references, hypotheses)
    pairs = zip(references, hypotheses, strict=True)
    found = [not hypothesis for reference, hypothesis in pairs if reference]
    return sum(found) / max(1, len(found))


def accuracy(references: Sequence[str], predictions: Sequence[str]) -> float:
    """Share of predictions that equal their reference."""
    _check_lengths(references, predictions)
    return sum(map(str.__eq__, references, predictions)) / len(references)


def unweighted_accuracy(references: Sequence[str], predictions: Sequence[str]) -> float:
    """Mean over the classes of the references of the share that is right: 1 / K by chance, and for
    a model that always says the same.
    """
    from sklearn.metrics import recall_score

    _check_lengths(references, predictions)
    classes = sorted(set(references))
    return float(
        recall_score(references, predictions, labels=classes, average="macro", zero_division=0)
    )


def macro_f1(references: Sequence[str], predictions: Sequence[str]) -> float:
    """Mean of the F1 of each class that occurs."""
    from sklearn.metrics import f1_score

    _check_lengths(references, predictions)
    return float(f1_score(references, predictions, average="macro", zero_division=0))


def mean_average_precision(truth: NDArray[np.bool_], scores: NDArray[Any]) -> float:
    """Mean over the classes that occur of the average precision of ranking utterances by score;
    `truth` and `scores` are (N, K). 0 when no class occurs.
    """
    from sklearn.metrics import average_precision_score

    present = truth.any(0)
    if not present.any():
        return 0.0
    return float(average_precision_score(truth[:, present], scores[:, present], average="macro"))


def multi_label_f1(truth: NDArray[np.bool_], predicted: NDArray[np.bool_], average: str) -> float:
    """F1 of sets of classes (N, K): over all decisions ("micro"), or the mean over the classes that
    occur ("macro").
    """
    from sklearn.metrics import f1_score

    present = truth.any(0) | predicted.any(0)
    if not present.any():
        return 0.0
    return float(
        f1_score(truth[:, present], predicted[:, present], average=average, zero_division=0)
    )


def exact_match(truth: NDArray[np.bool_], predicted: NDArray[np.bool_]) -> float:
    """Share of utterances whose sets of classes (N, K) are equal."""
    return float((truth == predicted).all(1).mean())


def pearson(truth: NDArray[Any], predicted: NDArray[Any]) -> float:
    """Correlation of numbers (N, K) over utterances, mean over outputs; 0 for an output that is
    always the same.
    """
    deviations = truth.std(0) * predicted.std(0)
    return float((_covariance(truth, predicted) / np.where(deviations > 0, deviations, 1.0)).mean())


def concordance(truth: NDArray[Any], predicted: NDArray[Any]) -> float:
    """Concordance correlation coefficient (Lin 1989) of numbers (N, K), mean over outputs: 1 only
    where they are equal, less than `pearson` where scale or offset differ.
    """
    spread = truth.var(0) + predicted.var(0) + (truth.mean(0) - predicted.mean(0)) ** 2
    agreement = 2 * _covariance(truth, predicted) / np.where(spread > 0, spread, 1.0)
    return float(np.where(spread > 0, agreement, 1.0).mean())


def _covariance(truth: NDArray[Any], predicted: NDArray[Any]) -> NDArray[np.float64]:
    centred = (truth - truth.mean(0)) * (predicted - predicted.mean(0))
    return np.asarray(centred.mean(0), dtype=np.float64)


def _check_lengths(references: Sequence[str], hypotheses: Sequence[str]) -> None:
    if len(references) != len(hypotheses) or not references:
        raise ValueError(
            f"found {len(references)} references and {len(hypotheses)} hypotheses; expected as "
            "many of each, and at least one"
        )
