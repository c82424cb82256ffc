"""Scores of classes against scikit-learn; tables."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import f1_score, precision_recall_fscore_support, recall_score

from hubert_pretrain.evaluation.bootstrap import Sampling
from hubert_pretrain.evaluation.classes import analyse_classes
from hubert_pretrain.evaluation.scores import analyse_scores
from hubert_pretrain.evaluation.utterances import ScoredUtterances


def scored(references: list[str], predictions: list[str]) -> ScoredUtterances:
    count = len(references)
    return ScoredUtterances(
        [f"u{number}" for number in range(count)],
        references,
        predictions,
        [f"s{number % 3}" for number in range(count)],
        np.full(count, 16000),
    )


@pytest.fixture
def random() -> ScoredUtterances:
    source = np.random.default_rng(0)
    references = source.choice(list("abcd"), 120, p=[0.5, 0.3, 0.15, 0.05]).tolist()
    predictions = [
        each if source.random() < 0.6 else source.choice(list("abcde")) for each in references
    ]
    return scored(references, list(map(str, predictions)))


def test_scores_and_their_intervals_are_those_of_sklearn(random: ScoredUtterances) -> None:
    """The interval too: the same draws, each scored by sklearn."""
    sampling = Sampling(resamples=60)
    found = analyse_classes(random, sampling)

    def by_sklearn(rows: np.ndarray) -> dict[str, float]:
        references = [random.references[row] for row in rows]
        predictions = [random.predictions[row] for row in rows]
        known = sorted(set(references))
        return {
            "macro_f1": f1_score(references, predictions, average="macro", zero_division=0),
            "unweighted_accuracy": recall_score(
                references, predictions, labels=known, average="macro", zero_division=0
            ),
            "accuracy": np.mean([a == b for a, b in zip(references, predictions, strict=True)]),
        }

    names = ["accuracy", "unweighted_accuracy", "macro_f1"]
    expected = analyse_scores(random, sampling, by_sklearn, names, higher_is_better=True)
    for name in names:
        for unit in ("utterance", "speaker"):
            for part in ("value", "low", "high"):
                value = getattr(expected.scores[name][unit], part)
                assert getattr(found.scores[name][unit], part) == pytest.approx(value)


def test_the_table_by_class_is_that_of_sklearn(random: ScoredUtterances) -> None:
    table = analyse_classes(random, Sampling(resamples=2)).tables["by class"]
    classes = [row[0] for row in table.rows]
    precision, recall, f1, support = precision_recall_fscore_support(
        random.references, random.predictions, labels=classes, zero_division=0
    )
    for row, *expected in zip(table.rows, support, precision, recall, f1, strict=True):
        assert [row[1], *row[3:]] == pytest.approx(expected)


def test_the_matrix_has_a_row_per_reference() -> None:
    analysis = analyse_classes(scored(["a", "a", "b"], ["a", "b", "b"]), Sampling(resamples=2))
    matrix = analysis.tables["confusion matrix"]
    assert (matrix.header, matrix.rows) == (("reference", "a", "b"), [("a", 1, 1), ("b", 0, 1)])
    assert analysis.tables["confusions"].rows == [("a", "b", 1)]
    assert analysis.counts == {"classes": 2, "right": 2, "largest_class": pytest.approx(2 / 3)}


def test_the_speaker_with_most_mistakes_comes_first(random: ScoredUtterances) -> None:
    rows = analyse_classes(random, Sampling(resamples=2)).tables["by speaker"].rows
    values = [row[3] for row in rows]
    assert values == sorted(values)
    assert len(rows) == 3


def test_many_classes_have_no_matrix() -> None:
    names = [f"speaker {number}" for number in range(40)]
    analysis = analyse_classes(scored(names, names[::-1]), Sampling(resamples=2))
    assert "confusion matrix" not in analysis.tables
    assert len(analysis.tables["confusions"].rows) == 40
