"""The CTC and the classification task."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import pytest
import torch

from hubert_pretrain.data.corpus import Corpus
from hubert_pretrain.errors import ConfigError, DataError
from hubert_pretrain.finetune.classify import ClassifyTask
from hubert_pretrain.finetune.ctc import CtcTask
from hubert_pretrain.finetune.task import Results, gather_examples, some_hours
from hubert_pretrain.frames import MODEL_GRID
from tests.finetune.conftest import split_of

SPLITS = {"train_split": "train", "valid_split": "valid", "test_split": "test"}


def _examples(task: CtcTask | ClassifyTask, corpus: Corpus, **splits: str) -> list:
    return gather_examples(task, corpus, MODEL_GRID, SPLITS | splits, "finetune.x")


def test_vocabulary_and_labels_of_every_split(corpus: Corpus) -> None:
    task = CtcTask()
    train, valid, test = _examples(task, corpus)
    assert task.vocabulary.symbols[:3] == ("<pad>", "<unk>", "|")
    assert [len(part) for part in (train, valid, test)] == [
        len(corpus.manifest.rows(split)) for split in ("train", "valid", "test")
    ]
    for row, text, ids in zip(train.rows, train.references, train.labels, strict=True):
        assert task.vocabulary.text(ids) == text == " ".join(corpus.manifest[int(row)].text.split())


def test_classes_are_those_of_training(corpus: Corpus) -> None:
    task = ClassifyTask(label="speaker")
    train, _, test = _examples(task, corpus)
    assert task.classes == ["buzzing", "pure"]
    assert {tuple(ids) for ids in train.labels} == {(0,), (1,)}
    assert test.references == [corpus.manifest[int(row)].speaker for row in test.rows]


def test_no_transcripts(corpus_with: Callable[..., Corpus]) -> None:
    with pytest.raises(
        DataError, match=r"none of the \d+ utterances of split 'train' has a transcript"
    ):
        _examples(CtcTask(), corpus_with(text=" ?! "))


def test_a_few_transcripts_that_do_not_fit_are_left_out(
    corpus_with: Callable[..., Corpus], caplog: pytest.LogCaptureFixture
) -> None:
    unusual = {12 + 3: "A" * 500, 20 + 2: ""}
    corpus = corpus_with(text=lambda number: unusual.get(number, "AB A"))
    splits = [corpus.manifest[row].split for row in range(len(corpus.manifest))]
    train, *_ = _examples(CtcTask(max_dropped_fraction=0.5), corpus)
    assert len(train) == splits.count("train") - 2
    assert "1 have no transcript ('utterance-022') and 1 have a transcript " in caplog.text
    assert "left out" in caplog.text


def test_many_transcripts_that_do_not_fit_are_an_error(corpus_with: Callable[..., Corpus]) -> None:
    with pytest.raises(
        DataError,
        match=r"8 have a transcript longer than their frames can spell \('utterance-.*, ...; the "
        "first has .*max_dropped_fraction",
    ):
        _examples(CtcTask(), corpus_with(text="AB" * 200))


def test_test_keeps_what_training_would_drop(
    corpus_with: Callable[..., Corpus], caplog: pytest.LogCaptureFixture
) -> None:
    corpus = corpus_with(text=lambda number: {0: "", 1: "ZZ"}.get(number % 6, "AB"))
    _, _, test = _examples(CtcTask(), corpus)
    assert len(test) == len(corpus.manifest.rows("test"))
    assert {"ZZ", ""} == set(test.references)
    assert "characters of these transcripts are in no training transcript" in caplog.text
    assert (
        "4 of the 8 utterances of split 'test' have no transcript ('utterance-000'" in caplog.text
    )


def test_training_utterances_without_transcript_are_named(
    corpus_with: Callable[..., Corpus],
) -> None:
    text = {4: "", 5: "AB" * 200}
    with pytest.raises(
        DataError,
        match=r"of 8 training utterances 1 have no transcript \('utterance-004'\) and 1 have a "
        r"transcript longer than their frames can spell \('utterance-005'; the first has \d+ f",
    ):
        _examples(CtcTask(), corpus_with(text=lambda number: text.get(number, "ABC")))


def test_unseen_class(corpus_with: Callable[..., Corpus]) -> None:
    corpus = corpus_with(
        speaker=lambda number: (
            f"speaker-{number}" if number % 6 < 2 else ("pure", "buzzing")[number % 2]
        )
    )
    with pytest.raises(
        DataError,
        match=r"split 'test' has \d+ speaker values that training has not \(speaker-0, .*\), in "
        r"8 of its 8 utterances, the first is 'utterance-000'; classes must",
    ):
        _examples(ClassifyTask(label="speaker"), corpus)
    assert len(_examples(ClassifyTask(label="speaker"), corpus, test_split="valid")[2]) == len(
        corpus.manifest.rows("valid")
    )


def test_one_class_and_no_class(corpus_with: Callable[..., Corpus]) -> None:
    corpus = corpus_with(speaker="only", label=lambda number: "x" if number % 2 else "")
    with pytest.raises(DataError, match="at least two classes"):
        _examples(ClassifyTask(label="speaker"), corpus)
    with pytest.raises(DataError, match="have no label, the first is 'utterance-"):
        _examples(ClassifyTask(label="label"), corpus)


def test_label_column_must_exist() -> None:
    with pytest.raises(ConfigError, match="did you mean 'speaker'"):
        ClassifyTask(label="speakers")


def test_empty_split_names_those_that_are_not(corpus: Corpus) -> None:
    with pytest.raises(
        DataError,
        match=r"split 'dev' has no utterances, only train, valid, test have; "
        "set finetune.x.test_split",
    ):
        _examples(CtcTask(), corpus, test_split="dev")


def test_tables_of_predictions(corpus: Corpus) -> None:
    ctc = CtcTask()
    tables = ctc.tables(Results.of_texts(["A B", "C"], ["A B", "D"], ["a", "b"]))
    assert list(tables) == ["hypotheses.tsv"]
    assert tables["hypotheses.tsv"].splitlines() == [
        "id\treference\thypothesis\twer",
        "a\tA B\tA B\t0.0000",
        "b\tC\tD\t1.0000",
    ]
    tables = ClassifyTask().tables(
        Results.of_texts(["x", "y", "x"], ["y", "y", "y"], ["a", "b", "c"])
    )
    assert tables["predictions.tsv"].splitlines()[1] == "a\tx\ty\tFalse"
    assert tables["confusion.tsv"].splitlines() == [
        "reference\tprediction\tutterances",
        "x\ty\t2",
        "y\ty\t1",
    ]


def test_prediction_of_a_class_and_of_text(corpus: Corpus) -> None:
    speakers = ClassifyTask(label="speaker")
    ctc = CtcTask()
    _examples(speakers, corpus)
    _examples(ctc, corpus)
    assert speakers.predict(torch.tensor([[0.1, 0.9]])).text == "pure"
    path = torch.tensor([[0, *ctc.vocabulary.ids("AB A"), 0]])
    logits = torch.nn.functional.one_hot(path, len(ctc.vocabulary)).float()
    assert ctc.predict(logits).text == "AB A"


def test_transcripts_that_frames_cannot_spell_are_named_and_have_no_loss(
    corpus_with: Callable[..., Corpus], caplog: pytest.LogCaptureFixture
) -> None:
    corpus = corpus_with(text=lambda number: "AB" * 200 if number == 6 else "AB")
    _, _, test = _examples(CtcTask(), corpus)
    position = corpus.manifest.take("id", test.rows).to_pylist().index("utterance-006")
    assert test.without_loss == {position}
    assert test.references[position] == "AB" * 200  # still to be scored
    assert re.search(
        r"1 of 8 utterances of split 'test' have a transcript longer than their frames can spell "
        r"\('utterance-006'\); the first has \d+ frames where 400 are needed",
        caplog.text,
    )


def test_a_split_of_nothing_but_such_transcripts_is_an_error(
    corpus_with: Callable[..., Corpus],
) -> None:
    corpus = corpus_with(text=lambda number: "AB" * 200 if split_of(number) == "valid" else "AB")
    with pytest.raises(DataError, match=r"split 'valid' have .* check that texts belong to"):
        _examples(CtcTask(), corpus)


def test_tags_in_transcripts_are_counted(
    corpus_with: Callable[..., Corpus], caplog: pytest.LogCaptureFixture
) -> None:
    task = CtcTask()
    corpus = corpus_with(text=lambda number: "[laughter] AB <unk>" if number == 4 else "AB")
    train, *_ = _examples(task, corpus)
    assert set(train.references) == {"AB"}
    assert "split 'train': 1 of 8 transcripts hold tags, which are dropped" in caplog.text
    splits = task.reports()["normalisation.json"]["splits"]
    assert splits["train"]["tags"] == {"[laughter]": 1, "<unk>": 1}
    assert set(splits) == {"train", "valid", "test"}


def test_a_model_that_says_nothing_or_always_the_same() -> None:
    (silent,) = CtcTask().warnings(Results.of_texts(["A", "B"], ["", ""]))
    assert silent.startswith("all 2 hypotheses are empty: the model says only the blank yet")
    assert CtcTask().warnings(Results.of_texts(["A", "B"], ["", "A"])) == []
    assert CtcTask().score(Results.of_texts(["A", "B", ""], ["", "B", ""]))["empty"] == 0.5
    (constant,) = ClassifyTask().warnings(Results.of_texts(["a", "b"], ["a", "a"]))
    assert constant.startswith("all 2 predictions are 'a', which 50% of the utterances are")
    assert ClassifyTask().warnings(Results.of_texts(["a", "b"], ["a", "b"])) == []


def test_scores_of_unequal_classes() -> None:
    references = ["a"] * 9 + ["b"]
    scores = ClassifyTask().score(Results.of_texts(references, ["a"] * 10))
    assert scores["accuracy"] == scores["largest_class"] == 0.9
    assert scores["unweighted_accuracy"] == 0.5
    assert scores["macro_f1"] == pytest.approx(0.5 * 18 / 19)


def test_labels_that_are_not_the_classes_that_they_should_be(
    corpus_with: Callable[..., Corpus], caplog: pytest.LogCaptureFixture
) -> None:
    labels = ["Happy", "happy", "nan", "sad"]
    corpus = corpus_with(label=lambda number: "rare" if number == 4 else labels[number % 4])
    task = ClassifyTask(label="label")
    task.fit(corpus, corpus.manifest.rows("train"), MODEL_GRID)
    assert re.search(
        r"1 label values have several spellings, .*'Happy' \(\d\) = 'happy'", caplog.text
    )
    assert re.search(r"that mean no value are classes: 'nan' \(\d utterances\)", caplog.text)
    assert re.search(r"have fewer than 3 training utterances: .*'rare' \(1\)", caplog.text)


def test_voices_of_the_test_that_training_knows(
    corpus_with: Callable[..., Corpus], caplog: pytest.LogCaptureFixture
) -> None:
    corpus = corpus_with(label=lambda number: "xy"[number % 2])
    _examples(ClassifyTask(label="label"), corpus)
    assert (
        "8 of 8 test utterances are of 2 speakers that training has too (buzzing, pure)"
        in caplog.text
    )
    caplog.clear()
    _examples(ClassifyTask(label="speaker"), corpus)
    assert "speakers that training has too" not in caplog.text


def test_some_hours_of_labels_are_a_part_of_more() -> None:
    lengths = np.random.default_rng(1).integers(16000, 160000, size=300)
    rows = np.arange(50, 350)
    previous = set()
    for hours in (0.00001, 0.01, 0.1, 0.2):
        chosen = some_hours(rows, lengths, hours)
        assert np.all(np.diff(chosen) > 0)
        assert previous <= set(chosen.tolist())
        held = int(lengths[chosen - 50].sum())
        assert held <= hours * 3600 * 16000 or len(chosen) == 1
        assert held > hours * 3600 * 16000 - 160000
        previous = set(chosen.tolist())
    assert len(some_hours(rows, lengths, 100.0)) == 300


def test_a_task_learns_from_some_hours_only(corpus_with: Callable[..., Corpus]) -> None:
    corpus = corpus_with(text=lambda number: "AB")
    splits = {"train_split": "train", "valid_split": "valid", "test_split": "test"}
    sizes = [
        len(gather_examples(CtcTask(), corpus, MODEL_GRID, splits, "finetune.asr", hours)[0])
        for hours in (0.0, 1e-9, 1.0)
    ]
    assert sizes == [8, 1, 8]
