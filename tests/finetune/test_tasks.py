"""The CTC and the classification task."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from hubert_pretrain.data.corpus import Corpus
from hubert_pretrain.errors import ConfigError, DataError
from hubert_pretrain.finetune.classify import ClassifyTask
from hubert_pretrain.finetune.ctc import CtcTask
from hubert_pretrain.finetune.task import gather_examples
from hubert_pretrain.frames import MODEL_GRID

SPLITS = {"train_split": "train", "valid_split": "valid", "test_split": "test"}


def _examples(task: CtcTask | ClassifyTask, corpus: Corpus, **splits: str) -> list:
    return gather_examples(task, corpus.manifest, MODEL_GRID, SPLITS | splits, "finetune.x")


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
    assert "2 of" in caplog.text
    assert "left out" in caplog.text


def test_many_transcripts_that_do_not_fit_are_an_error(corpus_with: Callable[..., Corpus]) -> None:
    with pytest.raises(
        DataError,
        match=r"one longer than their frames can spell; the first is 'utterance-.*"
        "max_dropped_fraction",
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


def test_unseen_class(corpus_with: Callable[..., Corpus]) -> None:
    corpus = corpus_with(
        speaker=lambda number: (
            f"speaker-{number}" if number % 6 < 2 else ("pure", "buzzing")[number % 2]
        )
    )
    with pytest.raises(
        DataError, match=r"split 'test' has \d+ speaker values that training has not"
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
    name, table = ctc.table(["a", "b"], ["A B", "C"], ["A B", "D"])
    assert name == "hypotheses.tsv"
    assert table.splitlines() == [
        "id\treference\thypothesis\twer",
        "a\tA B\tA B\t0.0000",
        "b\tC\tD\t1.0000",
    ]
    name, table = ClassifyTask().table(["a"], ["x"], ["y"])
    assert name == "predictions.tsv"
    assert table.splitlines()[1] == "a\tx\ty\tFalse"


def test_prediction_of_a_class_and_of_text(corpus: Corpus) -> None:
    speakers = ClassifyTask(label="speaker")
    ctc = CtcTask()
    _examples(speakers, corpus)
    _examples(ctc, corpus)
    assert speakers.predict(torch.tensor([[0.1, 0.9]])) == "pure"
    path = torch.tensor([[0, *ctc.vocabulary.ids("AB A"), 0]])
    assert ctc.predict(torch.nn.functional.one_hot(path, len(ctc.vocabulary)).float()) == "AB A"
