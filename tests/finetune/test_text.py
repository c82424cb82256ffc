"""Vocabulary of a CTC model."""

from __future__ import annotations

import pytest

from hubert_pretrain.errors import ArtefactError
from hubert_pretrain.finetune.text import (
    BLANK,
    BOUNDARY,
    UNKNOWN,
    Vocabulary,
    frames_needed,
)


def test_vocabulary_starts_with_the_blank_and_holds_the_letters_of_training_only() -> None:
    vocabulary = Vocabulary.of_texts(["CAB A", "D'A"])
    assert vocabulary.symbols == (BLANK, UNKNOWN, BOUNDARY, "'", "A", "B", "C", "D")
    assert vocabulary.text(vocabulary.ids("CAB D'A")) == "CAB D'A"


def test_unknown_characters_are_kept_apart_and_counted() -> None:
    vocabulary = Vocabulary.of_texts(["AB"])
    assert vocabulary.ids("A Z") == [3, 2, 1]
    assert vocabulary.count_unknown(["A Z", "XZ"]) == {"Z": 2, "X": 1}


@pytest.mark.parametrize(
    "symbols",
    [(), ("A", BLANK, UNKNOWN, BOUNDARY), (BLANK, UNKNOWN, BOUNDARY, "A", "A")],
)
def test_a_vocabulary_without_what_decoding_needs_is_refused(symbols: tuple[str, ...]) -> None:
    with pytest.raises(ArtefactError, match="not a CTC vocabulary"):
        Vocabulary(symbols)


def test_equal_neighbours_need_a_blank_between() -> None:
    assert [frames_needed(ids) for ids in ([], [3], [3, 4], [3, 3], [3, 3, 3, 4, 4])] == [
        0,
        1,
        2,
        3,
        8,
    ]
