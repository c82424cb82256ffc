"""Error counts against jiwer and kaldialign, and the tables that are made of them."""

from __future__ import annotations

import jiwer
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hubert_pretrain.evaluation.bootstrap import Sampling
from hubert_pretrain.evaluation.texts import analyse_texts, count_errors, edits_between
from hubert_pretrain.evaluation.utterances import ScoredUtterances

words = st.lists(st.sampled_from("abcd"), max_size=8)


def scored(*rows: tuple[str, str], speakers: str = "", seconds: float = 1.0) -> ScoredUtterances:
    return ScoredUtterances(
        [f"u{number}" for number in range(len(rows))],
        [reference for reference, _ in rows],
        [hypothesis for _, hypothesis in rows],
        list(speakers) or [""] * len(rows),
        np.full(len(rows), int(16000 * seconds)),
    )


@given(words, words)
def test_edits_are_as_few_as_kaldialign_needs(reference: list[str], hypothesis: list[str]) -> None:
    kaldialign = pytest.importorskip("kaldialign")
    found = edits_between(reference, hypothesis)
    assert len(found) == kaldialign.edit_distance(reference, hypothesis)["total"]
    inserted = sum(spoken == "" for spoken, _ in found)
    deleted = sum(written == "" for _, written in found)
    assert len(hypothesis) - len(reference) == inserted - deleted


@given(st.lists(st.tuples(words.filter(bool), words), min_size=1, max_size=5))
def test_counts_are_those_of_jiwer(pairs: list[tuple[list[str], list[str]]]) -> None:
    references = [" ".join(reference) for reference, _ in pairs]
    hypotheses = [" ".join(hypothesis) for _, hypothesis in pairs]
    for unit, process in (
        ("words", jiwer.process_words),
        ("characters", jiwer.process_characters),
    ):
        expected = process(references, hypotheses)
        found = count_errors(references, hypotheses, unit).totals()
        assert (found["substitutions"], found["deletions"], found["insertions"]) == (
            expected.substitutions,
            expected.deletions,
            expected.insertions,
        )


def test_the_rate_is_over_all_words() -> None:
    """Not the mean of the utterances' rates; insertions into an empty reference count."""
    analysis = analyse_texts(
        scored(("A", "B"), ("A B C D", "A B C D"), ("", "X")), Sampling(resamples=10)
    )
    assert analysis.scores["wer"]["utterance"].value == pytest.approx(2 / 5)
    assert analysis.counts["words"] == {
        "substitutions": 1,
        "deletions": 0,
        "insertions": 1,
        "reference": 5,
    }
    assert analysis.scores["sentence_error_rate"]["utterance"].value == pytest.approx(2 / 3)


def test_empty_hypotheses_are_a_share_of_the_references_with_text() -> None:
    analysis = analyse_texts(scored(("A", ""), ("B", "B"), ("", "")), Sampling(resamples=10))
    assert analysis.scores["empty"]["utterance"].value == 0.5
    assert "speaker" not in analysis.scores["wer"]


def test_confusions_are_counted_and_ordered() -> None:
    analysis = analyse_texts(
        scored(("TO BE", "TWO BE"), ("TO GO", "TWO"), ("OR", "OAR"), ("A", "A UM")),
        Sampling(resamples=10),
    )
    tables = analysis.tables
    assert tables["substituted words"].rows == [("TO", "TWO", 2), ("OR", "OAR", 1)]
    assert tables["deleted words"].rows == [("GO", 1)]
    assert tables["inserted words"].rows == [("UM", 1)]
    assert ("<space>", 1) in tables["deleted characters"].rows
    assert ("W", 1) in tables["inserted characters"].rows


def test_groups_and_the_worst_come_first() -> None:
    rows = [("A B", "A B"), ("A B", "X Y"), ("A B", "A Y"), ("A", "A")]
    analysis = analyse_texts(scored(*rows, speakers="mmff", seconds=7.0), Sampling(resamples=10))
    by_speaker = analysis.tables["by speaker"]
    assert by_speaker.header == ("speaker", "utterances", "hours", "wer", "cer")
    assert [row[0] for row in by_speaker.rows] == ["m", "f"]
    assert [row[3] for row in by_speaker.rows] == pytest.approx([0.5, 1 / 3])
    assert [row[:2] for row in analysis.tables["by length"].rows] == [("5-10 s", 4)]
    assert [row[0] for row in analysis.tables["worst utterances"].rows] == ["u1", "u2"]
    assert set(analysis.scores["wer"]) == {"utterance", "speaker"}


def test_an_utterance_of_each_length_is_in_one_range() -> None:
    lengths = np.array([0, 15999, 16000, 80000, 10**7])
    scored_ = ScoredUtterances(list("abcde"), [""] * 5, [""] * 5, [""] * 5, lengths)
    found = {name: rows.tolist() for name, rows in scored_.by_length().items()}
    assert found == {"0-1 s": [0, 1], "1-2 s": [2], "5-10 s": [3], "60 s and more": [4]}


def test_columns_of_different_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="columns of lengths"):
        ScoredUtterances(["a"], ["x", "y"], ["x"], [""], np.array([1]))
