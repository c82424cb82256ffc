"""The task of labels of frames, on a corpus of tones with the letter at each time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from hubert_pretrain.config.schema import EvaluateConfig, Recipe, TrainerConfig
from hubert_pretrain.data.alignment import write_alignments
from hubert_pretrain.data.corpus import Corpus
from hubert_pretrain.errors import ArtefactError, ConfigError, DataError
from hubert_pretrain.evaluation.bootstrap import Sampling
from hubert_pretrain.evaluation.utterances import ScoredUtterances
from hubert_pretrain.finetune.frames import FramesTask, as_text, from_text, merged
from hubert_pretrain.finetune.task import Examples, Results, gather_examples
from hubert_pretrain.frames import MODEL_GRID
from hubert_pretrain.model.checkpoint import load_model
from hubert_pretrain.model.config import SpanMask
from hubert_pretrain.model.heads import FrameClassificationHead
from hubert_pretrain.stages import evaluate
from tests.finetune.conftest import LETTER_SAMPLES, TINY, make_corpus, make_workspace, run_task

SPLITS = {"train_split": "train", "valid_split": "valid", "test_split": "test"}
NODE = {"_target_": "hubert_pretrain.finetune.frames.FramesTask", "fold": {"D": "C"}}


def aligned(
    folder: Path, letters: Callable[[int, str], str] = lambda number, text: text, **changes: Any
) -> Corpus:
    """A corpus in which each letter lasts LETTER_SAMPLES, and a space has no phone.

    letters: number and text of an utterance -> its phones; "" for no alignment.
    """
    corpus = make_corpus(folder, **changes)
    found = []
    for row in range(len(corpus.manifest)):
        utterance = corpus.manifest[row]
        phones = letters(int(utterance.id.removeprefix("utterance-")), utterance.text)
        intervals = [
            (phone, place * LETTER_SAMPLES, (place + 1) * LETTER_SAMPLES)
            for place, phone in enumerate(phones)
            if phone != " "
        ]
        if intervals:
            found.append((row, intervals))
    write_alignments(folder / "alignments.arrow", found)
    return Corpus.open(folder)


def examples_of(task: FramesTask, corpus: Corpus) -> list[Examples]:
    return gather_examples(task, corpus, MODEL_GRID, SPLITS, "finetune.x")


def expected_frames(corpus: Corpus, row: int) -> list[str]:
    """The letter at the centre of each frame."""
    utterance = corpus.manifest[row]
    frames = range(MODEL_GRID.num_frames(utterance.num_samples))
    return [
        utterance.text[MODEL_GRID.centre_sample(frame) // LETTER_SAMPLES].strip()
        for frame in frames
    ]


def test_each_frame_has_the_phone_at_its_centre(tmp_path: Path) -> None:
    corpus = aligned(tmp_path / "corpus")
    task = FramesTask()
    for part in examples_of(task, corpus):
        for row, reference, labels in zip(part.rows, part.references, part.labels, strict=True):
            expected = expected_frames(corpus, int(row))
            names = [*task.classes, ""]
            assert [names[number] for number in labels] == expected
            assert from_text(reference) == merged((name, 1) for name in expected)
    assert task.classes == ["A", "B", "C", "D"]
    assert task.card() == {"classes": ["A", "B", "C", "D"]}
    assert as_text(from_text("A:3 :2 a:b:1")) == "A:3 :2 a:b:1"


def test_labels_are_folded_and_gaps_are_named(tmp_path: Path) -> None:
    corpus = aligned(tmp_path / "corpus", lambda number, text: text.replace("B", "1"))
    task = FramesTask(gap_label="sil", fold={"D": "C", "1": ""})
    train, *_ = examples_of(task, corpus)
    assert task.classes == ["A", "C", "sil"]
    assert all(len(ids) == ids_of_all.sum() for ids, ids_of_all in _with_labels(train))
    plain = FramesTask(stress="drop")  # a label of digits alone stays
    examples_of(plain, corpus)
    assert plain.classes == ["1", "A", "C", "D"]
    assert plain._folded("AH0") == "AH"


def _with_labels(examples: Examples) -> list[tuple[Any, np.ndarray]]:
    return [(ids, np.asarray(ids) >= 0) for ids in examples.labels]


def test_labels_come_from_a_file(tmp_path: Path) -> None:
    """The labels of alignments, written as text, give the same examples."""
    corpus = aligned(tmp_path / "corpus")
    task = FramesTask(gap_label="-")
    expected = examples_of(task, corpus)
    lines = []
    for row in range(len(corpus.manifest)):
        names = [name or "-" for name in expected_frames(corpus, row)]
        lines.append(f"{corpus.manifest[row].id} {' '.join(names)}\n")
    path = tmp_path / "labels.txt"
    path.write_text("".join(lines))
    plain = make_corpus(tmp_path / "plain")
    found = examples_of(FramesTask(label_file=str(path), gap_label="-"), plain)
    assert [part.references for part in found] == [part.references for part in expected]


def test_the_loss_is_the_mean_over_labelled_frames(tmp_path: Path) -> None:
    """Over a step, however it is divided; frames without a label and padding have no part."""
    task = FramesTask()
    train, *_ = examples_of(task, aligned(tmp_path / "corpus"))
    labels = [torch.from_numpy(np.asarray(ids)).long() for ids in train.labels]
    lengths = torch.tensor([len(ids) for ids in labels])
    padded = torch.nn.utils.rnn.pad_sequence(labels, batch_first=True)
    torch.manual_seed(0)
    logits = torch.randn(*padded.shape, 4, requires_grad=True)
    loss = task.loss(logits, lengths, padded, lengths) / len(train)
    real = torch.cat([row[:length] for row, length in zip(logits, lengths, strict=True)])
    expected = F.cross_entropy(real, torch.cat(labels), ignore_index=-1)
    torch.testing.assert_close(loss, expected)
    gradient, theirs = (torch.autograd.grad(each, logits)[0] for each in (loss, expected))
    torch.testing.assert_close(gradient, theirs)
    halves = [
        task.loss(logits[rows], lengths[rows], padded[rows], lengths[rows])
        for rows in (slice(0, 3), slice(3, None))
    ]
    torch.testing.assert_close(sum(halves) / len(train), expected)


def results_of(task: FramesTask, pairs: list[tuple[str, str]]) -> Results:
    return Results.of_texts([truth for truth, _ in pairs], [guess for _, guess in pairs])


def test_scores_of_frames_and_phones() -> None:
    task = FramesTask(gap_label="sil")
    task.classes = ["a", "b", "sil"]
    results = results_of(
        task, [("a:4 :2 a:2 b:2", "a:3 b:3 a:4"), ("b:2 sil:2 b:1", "b:1 sil:3 a:1")]
    )
    assert task.score(results)["frame_accuracy"] == (5 + 3) / 13
    assert task.shown(results) == (["a a b", "b b"], ["a b a", "b a"])
    assert task.score(results)["per"] == 3 / 5
    in_a_gap = results_of(task, [("a:2 :2 a:2", "a:2 b:2 a:2")])
    assert task.shown(in_a_gap) == (["a a"], ["a a"])
    assert task.score(in_a_gap) == {"frame_accuracy": 1.0, "per": 0.0}
    scored = ScoredUtterances(
        results.ids, *task.shown(results), ["x", "y"], np.array([16000, 16000])
    )
    found = task.analyse(results, scored, Sampling(resamples=50))
    for name, value in task.score(results).items():
        assert found.scores[name]["utterance"].value == pytest.approx(value)
        assert set(found.scores[name]) == {"utterance", "speaker"}
    rows = {row[0]: row[1:3] for row in found.tables["by class"].rows}
    assert rows == {"a": (6, 8), "b": (5, 2), "sil": (2, 3)}
    assert found.tables["confused frames"].rows == [("b", "a", 3), ("a", "b", 1), ("b", "sil", 1)]
    assert sum(found.counts["phones"].values()) == 3 + 5
    table = task.tables(results)["predictions.tsv"].splitlines()
    assert table[1] == "0\ta a b\ta b a\ta:4 :2 a:2 b:2\ta:3 b:3 a:4"


def test_a_model_that_always_says_the_same() -> None:
    task = FramesTask()
    task.classes = ["a", "b"]
    (warning,) = task.warnings(results_of(task, [("a:2 b:1", "a:3"), ("b:2", "a:2")]))
    assert warning.startswith("every frame of all 2 utterances is taken for 'a'")
    assert task.warnings(results_of(task, [("a:2 b:1", "a:3"), ("b:2", "b:2")])) == []


def test_a_prediction_is_a_class_for_each_frame() -> None:
    task = FramesTask()
    task.classes = ["a", "b"]
    logits = F.one_hot(torch.tensor([[0, 0, 1, 0]]), 2).float()
    assert task.predict(logits).text == "a:2 b:1 a:1"


# -- labels that cannot be learnt


def test_a_corpus_without_alignments(corpus: Corpus) -> None:
    with pytest.raises(DataError, match=r"no alignments, so its 8 .*'train'.*data.alignments=PATH"):
        examples_of(FramesTask(), corpus)


def test_utterances_without_labels_are_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    corpus = aligned(tmp_path / "some", lambda number, text: "" if number in (4, 0) else text)
    train, _, test = examples_of(FramesTask(), corpus)
    assert len(train) == len(corpus.manifest.rows("train")) - 1
    assert len(test) == len(corpus.manifest.rows("test")) - 1
    assert "1 of 8 utterances of split 'train' have no labels (utterance-004)" in caplog.text
    none = aligned(tmp_path / "none", lambda number, text: "" if number % 6 < 2 else text)
    with pytest.raises(DataError, match="none of the 8 utterances of split 'test' has a label"):
        examples_of(FramesTask(), none)


def test_an_unseen_phone(tmp_path: Path) -> None:
    corpus = aligned(tmp_path / "c", lambda number, text: f"X{text[1:]}" if number == 6 else text)
    with pytest.raises(
        DataError,
        match=r"1 of 8 utterances of split 'test' have labels that training has not \(X\), the "
        r"first is 'utterance-006'.*task.fold={X: A}",
    ):
        examples_of(FramesTask(), corpus)
    examples_of(FramesTask(fold={"X": ""}), corpus)
    task = FramesTask()
    task.adopt({"classes": ["A", "B", "C"]}, "there")
    with pytest.raises(DataError, match=r"of split 'train' have labels that the head of there ha"):
        examples_of(task, corpus)


def test_one_phone_only(tmp_path: Path) -> None:
    corpus = aligned(tmp_path / "corpus", lambda number, text: "A" * len(text))
    with pytest.raises(DataError, match="training utterances have the label 'A'; expected at lea"):
        examples_of(FramesTask(), corpus)


def test_labels_of_another_type(tmp_path: Path) -> None:
    """One label per utterance, as for classify, in place of one per frame."""
    corpus = make_corpus(tmp_path / "corpus")
    path = tmp_path / "labels.txt"
    ids = [corpus.manifest[row].id for row in range(len(corpus.manifest))]
    path.write_text("".join(f"{id_} happy\n" for id_ in ids))
    with pytest.raises(
        DataError, match=r"8 utterances have another number .*'utterance-0\d\d' has 1 for \d+"
    ):
        examples_of(FramesTask(label_file=str(path)), corpus)
    with pytest.raises(ConfigError, match=r"task.stress='remove': expected one of keep, drop"):
        FramesTask(stress="remove")  # type: ignore[arg-type]
    with pytest.raises(ArtefactError, match="does not list the classes of its head"):
        FramesTask().adopt({}, "there")


# -- the whole way


def test_phones_are_learnt_and_scored(tmp_path: Path) -> None:
    """A frozen encoder's frames tell tones apart; the stored model scores as it was trained."""
    corpus = aligned(tmp_path / "corpus")
    workspace = make_workspace(tmp_path / "run", corpus, TINY)
    facts = run_task(
        workspace,
        "phones",
        {**NODE, "weighted_layers": True},
        steps=40,
        valid_every_steps=40,
        freeze_encoder_steps=40,
        mask=SpanMask(probability=0.0),
        channel_mask=SpanMask(probability=0.0),
        learning_rate=0.05,
    )
    assert facts["frame_accuracy"] > 0.6  # a third of the frames are the most frequent letter
    workspace.finish("finetune/phones", {"fingerprint": "f", "facts": facts})
    loaded = load_model(workspace.folder("finetune/phones"))
    assert isinstance(loaded.build_head(), FrameClassificationHead)
    assert loaded.extra["classes"] == ["A", "B", "C"]
    recipe = Recipe(
        name="tones",
        evaluate={"x": EvaluateConfig(checkpoint="finetune/phones", splits="valid")},
        trainer=TrainerConfig(accelerator="cpu"),
    )
    stage = "evaluate/x/valid"
    found = evaluate.run(recipe, workspace, stage, workspace.begin(stage, "e", {}))
    assert {name: found[name] for name in ("frame_accuracy", "per")} == {
        name: facts[name] for name in ("frame_accuracy", "per")
    }
    low, high = found["intervals"]["frame_accuracy"]
    assert low <= found["frame_accuracy"] <= high
    trn = (workspace.partial_folder(stage) / "references.trn").read_text()
    assert " (utterance-" in trn
