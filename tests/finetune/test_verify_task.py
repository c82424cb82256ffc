"""The task of speaker verification, on a corpus of voices that differ in timbre."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from hubert_pretrain.config.schema import EvaluateConfig, Recipe, TrainerConfig
from hubert_pretrain.data.corpus import Corpus
from hubert_pretrain.errors import ArtefactError, ConfigError, DataError
from hubert_pretrain.finetune.task import Examples, Prediction, Results, gather_examples
from hubert_pretrain.finetune.verify import VerifyTask
from hubert_pretrain.frames import MODEL_GRID
from hubert_pretrain.model.checkpoint import load_model
from hubert_pretrain.model.config import SpanMask
from hubert_pretrain.model.heads import SpeakerHead
from hubert_pretrain.stages import evaluate
from tests.finetune.conftest import TINY, make_corpus, make_workspace, run_task

SPLITS = {"train_split": "train", "valid_split": "valid", "test_split": "test"}
NODE = {"_target_": "hubert_pretrain.finetune.verify.VerifyTask", "embedding_size": 8}


def examples_of(task: VerifyTask, corpus: Corpus) -> list[Examples]:
    return gather_examples(task, corpus, MODEL_GRID, SPLITS, "finetune.x")


def with_embeddings(corpus: Corpus, part: Examples, seed: int = 0) -> Results:
    """Random embeddings of length 1."""
    values = np.random.default_rng(seed).normal(size=(len(part), 8)).astype(np.float32)
    values /= np.linalg.norm(values, axis=1, keepdims=True)
    ids = [corpus.manifest[int(row)].id for row in part.rows]
    return Results(ids, part.references, [Prediction("", value) for value in values])


# -- trials


def test_trials_are_all_pairs_of_a_split(corpus: Corpus) -> None:
    task = VerifyTask()
    train, _, test = examples_of(task, corpus)
    assert task.speakers == ["buzzing", "pure"]
    assert [task.speakers[ids[0]] for ids in train.labels] == train.references
    results = with_embeddings(corpus, test)
    trials = task._trials_of(results)
    assert len(trials) == math.comb(len(test), 2)
    for first, second, is_target, score in zip(
        trials.first, trials.second, trials.is_target, trials.scores, strict=True
    ):
        assert is_target == (test.references[first] == test.references[second])
        cosine = results.values[first] @ results.values[second]
        assert score == pytest.approx(cosine, abs=1e-6)
    assert set(task.score(results)) == {"eer", "min_dcf"}


def test_some_trials_are_drawn_alike_in_every_run(tmp_path: Path) -> None:
    """Half of them of one speaker; they do not depend on the order of rows or on other splits."""
    corpus = make_corpus(
        tmp_path / "corpus", utterances=48, split=lambda n: ("test", "train", "valid")[n % 3]
    )
    task = VerifyTask(max_trials=40)
    _, valid, test = examples_of(task, corpus)
    trials = task._trials["test"]
    assert len(set(trials)) == 40
    speaker = {
        corpus.manifest[int(row)].id: name
        for row, name in zip(test.rows, test.references, strict=True)
    }
    assert sum(trial.is_target for trial in trials) == 20
    for trial in trials:
        assert trial.is_target == (speaker[trial.first] == speaker[trial.second])
        assert trial.first != trial.second
    again = VerifyTask(max_trials=40)
    again.examples(corpus, test.rows[::-1].copy(), MODEL_GRID)
    assert again._trials["test"] == trials
    few = VerifyTask(max_trials=100)  # 56 pairs of one speaker, 64 of two: 50 of each
    few.examples(corpus, test.rows, MODEL_GRID)
    assert sum(trial.is_target for trial in few._trials["test"]) == 50
    assert len(task._trials_of(with_embeddings(corpus, valid))) == 40  # those of valid alone


def test_trials_come_from_a_list(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    corpus = make_corpus(tmp_path / "corpus")
    rows = corpus.manifest.rows("test")
    first, second, *_ = (corpus.manifest[int(row)] for row in rows)
    path = tmp_path / "list.txt"
    path.write_text(f"0 {first.id}.wav {second.id}.wav\n1 {first.id} {first.id}\n")
    task = VerifyTask(trials={"test": str(path)})
    *_, test = examples_of(task, corpus)
    assert task._trials["test"] == [
        (first.id, second.id, False),
        (first.id, first.id, True),
    ]
    assert task.score(with_embeddings(corpus, test))["eer"] == 0.0
    assert "contradict" not in caplog.text
    path.write_text(f"1 {first.id} {second.id}\n0 {first.id} {first.id}\n")
    examples_of(task, corpus)
    assert f"2 of 2 trials contradict the corpus's column speaker ({first.id} " in caplog.text


# -- head and loss


def test_the_loss_is_additive_margin_softmax() -> None:
    """By its formula, log-sum-exp written out (Wang et al. 2018, equation 6)."""
    torch.manual_seed(0)
    task = VerifyTask(scale=10.0, margin=0.3)
    task.speakers = ["a", "b", "c"]
    cosines = torch.rand(4, 3, requires_grad=True)
    logits = torch.cat([torch.randn(4, 8), cosines], dim=1)
    labels = torch.tensor([[0], [2], [1], [1]])
    ones = torch.ones(4, dtype=torch.long)
    loss = task.loss(logits, ones, labels, ones)
    expected = 0.0
    for row, (label,) in zip(cosines, labels, strict=True):
        right = torch.exp(10.0 * (row[label] - 0.3))
        others = sum(torch.exp(10.0 * row[k]) for k in range(3) if k != label)
        expected = expected - torch.log(right / (right + others))
    torch.testing.assert_close(loss, expected)
    assert task.loss(logits, ones, labels, ones) > VerifyTask.loss(
        _without_margin(task), logits, ones, labels, ones
    )


def _without_margin(task: VerifyTask) -> VerifyTask:
    plain = VerifyTask(scale=task.scale, margin=0.0)
    plain.speakers = task.speakers
    return plain


def test_an_embedding_and_the_nearest_speaker() -> None:
    torch.manual_seed(0)
    task = VerifyTask(embedding_size=4, pooling="mean")
    task.speakers = ["a", "b", "c"]
    head = task.head(TINY)
    frames = torch.randn(1, 7, TINY.hidden_size)

    class Output:
        last = frames

    with torch.no_grad():
        logits = task.logits(head, Output(), None)  # type: ignore[arg-type]
        prediction = task.predict(logits)
        embedding = head.embedding(head.projection(frames.mean(1)))
        cosines = F.cosine_similarity(embedding, head.speakers)
    assert np.linalg.norm(prediction.values) == pytest.approx(1.0)
    torch.testing.assert_close(torch.from_numpy(prediction.values), F.normalize(embedding)[0])
    assert prediction.text == "abc"[int(cosines.argmax())]


# -- what cannot be learnt or scored


@pytest.mark.parametrize(
    ("speaker", "message"),
    [
        ("only", "all 8 training utterances are of speaker 'only'; expected several"),
        (lambda n: f"s{n}", "each of the 8 training utterances has a speaker of its own"),
        (lambda n: "" if n == 4 else f"s{n % 2}", "1 of 8 .* have no speaker, the first is 'utt"),
        (lambda n: "a" if n % 6 < 2 else "ab"[n % 2], "'test' gives no trials of two speakers: al"),
        (lambda n: f"{n}" if n % 6 < 2 else "ab"[n % 2], "'test' gives no trials of one speaker:"),
    ],
)
def test_speakers_that_cannot_be_told_apart(
    corpus_with: Callable[..., Corpus], speaker: Any, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        examples_of(VerifyTask(), corpus_with(speaker=speaker))


def test_a_list_of_a_split_that_is_not_there(corpus: Corpus) -> None:
    with pytest.raises(ConfigError, match=r"task.trials.tset: .*did you mean 'test'.*it has"):
        examples_of(VerifyTask(trials={"tset": "trials.txt"}), corpus)


def test_a_list_that_names_unknown_files(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path / "corpus")
    path = tmp_path / "list.txt"
    path.write_text("1 a.wav b.wav\n0 a.wav utterance-000.wav\n")
    with pytest.raises(
        DataError, match=r"list.txt: 2 of 3 names are no utterances of the split \('a.wav', 'b.wav'"
    ):
        examples_of(VerifyTask(trials={"test": str(path)}), corpus)
    with pytest.raises(DataError, match="cannot be read"):
        examples_of(VerifyTask(trials={"test": str(tmp_path / "none")}), corpus)


def test_new_speakers_have_embeddings_but_no_loss(
    corpus_with: Callable[..., Corpus], caplog: pytest.LogCaptureFixture
) -> None:
    corpus = corpus_with(speaker=lambda n: f"new{n % 2}" if n % 6 < 2 else "ab"[n % 2])
    task = VerifyTask()
    _, valid, test = examples_of(task, corpus)
    assert test.without_loss == set(range(len(test)))
    assert valid.without_loss == set()
    assert "speakers are in training too" not in caplog.text
    examples_of(task, corpus_with())
    assert "2 of 2 test speakers are in training too (buzzing, pure)" in caplog.text


def test_a_head_of_other_speakers(corpus: Corpus) -> None:
    task = VerifyTask()
    task.adopt({"speakers": ["pure", "x"]}, "there")
    with pytest.raises(DataError, match=r"training has 1 speakers that the head of there has not"):
        task.fit(corpus, corpus.manifest.rows("train"), MODEL_GRID)
    with pytest.raises(ArtefactError, match="does not list the speakers of its head"):
        task.adopt({}, "there")
    with pytest.raises(ConfigError, match="did you mean 'attentive'"):
        VerifyTask(pooling="attentiv")  # type: ignore[arg-type]


def test_embeddings_that_tell_nobody_apart(corpus: Corpus) -> None:
    task = VerifyTask()
    *_, test = examples_of(task, corpus)
    results = with_embeddings(corpus, test)
    same = Results(results.ids, results.references, [results.predictions[0]] * len(results))
    (warning,) = task.warnings(same)
    assert warning.startswith("the equal error rate of 28 trials is 50%, that of guessing")


# -- the whole way


def test_voices_are_learnt_and_scored(tmp_path: Path) -> None:
    """The trained, the stored and the evaluated model are one."""
    workspace = make_workspace(tmp_path / "run", make_corpus(tmp_path / "corpus"), TINY)
    facts = run_task(
        workspace,
        "asv",
        {**NODE, "weighted_layers": True, "pooling": "attentive"},
        steps=20,
        valid_every_steps=10,
        freeze_encoder_steps=20,
        mask=SpanMask(probability=0.0),
        channel_mask=SpanMask(probability=0.0),
        learning_rate=0.02,
    )
    assert facts["eer"] < 0.2
    workspace.finish("finetune/asv", {"fingerprint": "f", "facts": facts})
    loaded = load_model(workspace.folder("finetune/asv"))
    assert isinstance(loaded.build_head(), SpeakerHead)
    assert loaded.extra["speakers"] == ["buzzing", "pure"]
    recipe = Recipe(
        name="tones",
        evaluate={"x": EvaluateConfig(checkpoint="finetune/asv", splits="valid")},
        trainer=TrainerConfig(accelerator="cpu"),
    )
    stage = "evaluate/x/valid"
    folder = workspace.begin(stage, "e", {})
    found = evaluate.run(recipe, workspace, stage, folder)
    assert {name: found[name] for name in ("eer", "min_dcf")} == {
        name: facts[name] for name in ("eer", "min_dcf")
    }
    lines = (folder / "trials.tsv").read_text().splitlines()
    assert lines[0] == "target\tscore\tfirst\tsecond"
    assert len(lines) - 1 == math.comb(found["utterances"], 2)
    low, high = found["intervals"]["eer"]
    assert low <= found["eer"] <= high
