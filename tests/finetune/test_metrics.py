"""Error rates and accuracy."""

from __future__ import annotations

import math

import pytest

from hubert_pretrain.finetune.metrics import accuracy, character_error_rate, word_error_rate


def test_error_rates_are_of_the_corpus_not_the_mean_of_utterances() -> None:
    references = ["A B C D E F", "X"]
    hypotheses = ["A B C D E F", "Y"]
    assert word_error_rate(references, hypotheses) == pytest.approx(1 / 7)
    assert character_error_rate(["AB CD"], ["AB D"]) == pytest.approx(1 / 5)


def test_an_empty_reference_counts_its_insertions() -> None:
    assert word_error_rate(["A B", ""], ["A B", "C"]) == pytest.approx(1 / 2)
    assert character_error_rate(["A B", ""], ["A B", "CD"]) == pytest.approx(2 / 3)
    assert word_error_rate([""], [""]) == 0.0
    assert math.isinf(word_error_rate([""], ["A"]))


def test_an_empty_hypothesis_deletes_everything() -> None:
    assert word_error_rate(["A B"], [""]) == 1.0


def test_double_spaces_are_no_errors() -> None:
    assert word_error_rate(["A B"], ["A  B"]) == character_error_rate(["A B"], [" A  B "]) == 0.0


def test_accuracy() -> None:
    assert accuracy(["a", "b", "c", "d"], ["a", "b", "x", "y"]) == 0.5


def test_nothing_to_score_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least one"):
        word_error_rate([], [])
    with pytest.raises(ValueError, match="2 references and 1 hypotheses"):
        accuracy(["a", "b"], ["a"])
