"""How good predictions are: word and letter error rates over a corpus, accuracy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any


def word_error_rate(references: Sequence[str], hypotheses: Sequence[str]) -> float:
    """Word substitutions, deletions and insertions over the words of all references.

    Utterances without reference words count with their insertions (jiwer alone refuses them). Where
    no reference has any word, it is 0 for silence and infinite otherwise.
    """
    import jiwer

    return _error_rate(jiwer.process_words, lambda text: len(text.split()), references, hypotheses)


def character_error_rate(references: Sequence[str], hypotheses: Sequence[str]) -> float:
    """The same over characters, single spaces between words included."""
    import jiwer

    return _error_rate(jiwer.process_characters, len, references, hypotheses)


def accuracy(references: Sequence[str], predictions: Sequence[str]) -> float:
    """Share of predictions that equal their reference."""
    _check_lengths(references, predictions)
    return sum(map(str.__eq__, references, predictions)) / len(references)


def _error_rate(
    align: Callable[..., Any],
    length: Callable[[str], int],
    references: Sequence[str],
    hypotheses: Sequence[str],
) -> float:
    _check_lengths(references, hypotheses)
    pairs = [
        (" ".join(said.split()), " ".join(heard.split()))
        for said, heard in zip(references, hypotheses, strict=True)
    ]
    spoken = [pair for pair in pairs if pair[0]]
    errors = sum(length(heard) for said, heard in pairs if not said)
    if not spoken:
        return float("inf") if errors else 0.0
    found = align([said for said, _ in spoken], [heard for _, heard in spoken])
    errors += found.substitutions + found.deletions + found.insertions
    return float(errors / sum(length(said) for said, _ in spoken))


def _check_lengths(references: Sequence[str], hypotheses: Sequence[str]) -> None:
    if len(references) != len(hypotheses) or not references:
        raise ValueError(
            f"found {len(references)} references and {len(hypotheses)} hypotheses; expected as many of each, and at least one"
        )
