"""Word and character error rates over a corpus; accuracy and F1 of classes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any


def word_error_rate(references: Sequence[str], hypotheses: Sequence[str]) -> float:
    """Word substitutions, deletions and insertions over the words of all references.

    Utterances without reference words count with their insertions (jiwer alone refuses them). Where
    no reference has any word, it is 0 without hypotheses and infinite otherwise.
    """
    import jiwer

    return _error_rate(jiwer.process_words, lambda text: len(text.split()), references, hypotheses)


def character_error_rate(references: Sequence[str], hypotheses: Sequence[str]) -> float:
    """The same over characters, single spaces between words included."""
    import jiwer

    return _error_rate(jiwer.process_characters, len, references, hypotheses)


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


def _error_rate(
    align: Callable[..., Any],
    length: Callable[[str], int],
    references: Sequence[str],
    hypotheses: Sequence[str],
) -> float:
    """Errors over the length of the references.

    Args:
        align: of jiwer.
        length: number of units (words or characters) of a text.
    """
    _check_lengths(references, hypotheses)
    pairs = [
        (" ".join(reference.split()), " ".join(hypothesis.split()))
        for reference, hypothesis in zip(references, hypotheses, strict=True)
    ]
    # jiwer refuses empty references; everything predicted for them is an insertion.
    errors = sum(length(hypothesis) for reference, hypothesis in pairs if not reference)
    with_text = [pair for pair in pairs if pair[0]]
    if not with_text:
        return float("inf") if errors else 0.0
    found = align(
        [reference for reference, _ in with_text], [hypothesis for _, hypothesis in with_text]
    )
    errors += found.substitutions + found.deletions + found.insertions
    return float(errors / sum(length(reference) for reference, _ in with_text))


def _check_lengths(references: Sequence[str], hypotheses: Sequence[str]) -> None:
    if len(references) != len(hypotheses) or not references:
        raise ValueError(
            f"found {len(references)} references and {len(hypotheses)} hypotheses; expected as "
            "many of each, and at least one"
        )
