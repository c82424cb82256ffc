"""The task of slots, whose utterances are right when all their slots are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from hubert_pretrain.data.corpus import Corpus
from hubert_pretrain.errors import ArtefactError, ConfigError, DataError
from hubert_pretrain.evaluation.bootstrap import Sampling
from hubert_pretrain.evaluation.utterances import ScoredUtterances
from hubert_pretrain.finetune.scoring import TASKS, task_node
from hubert_pretrain.finetune.slots import SlotsTask
from hubert_pretrain.finetune.task import Results, gather_examples
from hubert_pretrain.frames import MODEL_GRID
from hubert_pretrain.model.checkpoint import load_model, save_model
from hubert_pretrain.model.config import HubertConfig
from hubert_pretrain.model.hubert import Hubert
from tests.finetune.conftest import TINY, make_corpus, make_workspace, run_task

SPLITS = {"train_split": "train", "valid_split": "valid", "test_split": "test"}
ONE = torch.ones(4, dtype=torch.long)
SLOTS = ["action", "object"]
NODE = {
    "_target_": "hubert_pretrain.finetune.slots.SlotsTask",
    "slots": ["timbre", "letter"],
}


def value_of(number: int) -> str:
    return f"{('on', 'off')[number % 2]}|{('lights', 'heat', 'none')[number // 4 % 3]}"


@pytest.fixture
def fitted(corpus_with: Callable[..., Corpus]) -> SlotsTask:
    task = SlotsTask(slots=SLOTS)
    gather_examples(task, corpus_with(label=value_of), MODEL_GRID, SPLITS, "finetune.x")
    return task


def test_outputs_are_the_values_of_each_slot(corpus_with: Callable[..., Corpus]) -> None:
    corpus = corpus_with(label=value_of)
    task = SlotsTask(slots=SLOTS)
    train, _, test = gather_examples(task, corpus, MODEL_GRID, SPLITS, "finetune.x")
    assert task.classes == [
        *["action=off", "action=on"],
        *["object=heat", "object=lights", "object=none"],
    ]
    places = {"on|lights": [1, 1], "off|heat": [0, 0], "off|none": [0, 2]}
    for part in (train, test):
        for reference, ids in zip(part.references, part.labels, strict=True):
            assert ids == places.get(reference, ids)
            assert reference == value_of_ids(task, ids)


def value_of_ids(task: SlotsTask, ids: list[int]) -> str:
    return "|".join([("off", "on")[ids[0]], ("heat", "lights", "none")[ids[1]]])


def test_the_loss_is_the_sum_of_that_of_each_slot(fitted: SlotsTask) -> None:
    """As s3prl's intent classification computes it, a mean over the batch."""
    torch.manual_seed(0)
    logits = torch.randn(4, 5, requires_grad=True)
    labels = torch.tensor([[0, 2], [1, 0], [0, 1], [1, 1]])
    found = fitted.loss(logits, ONE, labels, 2 * ONE) / 4
    objective = nn.CrossEntropyLoss()
    expected = objective(logits[:, 0:2], labels[:, 0]) + objective(logits[:, 2:5], labels[:, 1])
    torch.testing.assert_close(found, expected)
    gradient = torch.autograd.grad(expected, logits, retain_graph=True)
    torch.testing.assert_close(torch.autograd.grad(found, logits), gradient)


def test_an_utterance_is_right_when_all_its_slots_are(fitted: SlotsTask) -> None:
    logits = torch.tensor([[[2.0, 1, 0, 5, 1]], [[0.0, 9, 3, 2, 1]], [[0.0, 1, 0, 0, 4]]])
    predictions = [fitted.predict(each) for each in logits]
    assert [each.text for each in predictions] == ["off|lights", "on|heat", "on|none"]
    for each in predictions:
        chances = np.exp(each.values)
        assert (chances[:2].sum(), chances[2:].sum()) == pytest.approx((1, 1))
    named = fitted.named(predictions[1])
    assert named["action=on"] > named["action=off"]
    results = Results(list("abc"), ["off|lights", "off|heat", "off|lights"], predictions)
    scores = fitted.score(results)
    assert scores["accuracy"] == pytest.approx(1 / 3)
    assert scores["slot_accuracy"] == pytest.approx(3 / 6)
    assert scores["largest_class"] == pytest.approx(2 / 3)
    lines = fitted.tables(results)["predictions.tsv"].splitlines()
    assert lines[2].split("\t") == ["b", "off|heat", "on|heat", "False"]
    scored = ScoredUtterances(results.ids, *fitted.shown(results), [""] * 3, np.ones(3))
    analysis = fitted.analyse(results, scored, Sampling(20, 0))
    assert analysis.scores["accuracy"]["utterance"].value == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ("on", r"another number of values than task.slots has names \(2\), the first is"),
        (
            "on|lights",
            "all 8 training utterances have label 'on.lights'; expected labels that differ",
        ),
        (
            lambda number: value_of(number) if number % 6 > 1 else "on|fan",
            r"label values that training has not \(object=fan\)",
        ),
    ],
)
def test_labels_that_cannot_be(
    corpus_with: Callable[..., Corpus], label: str, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        gather_examples(
            SlotsTask(slots=SLOTS), corpus_with(label=label), MODEL_GRID, SPLITS, "finetune.x"
        )


@pytest.mark.parametrize("slots", [[], ["a", "a"], ["a=b", "c"], [""]])
def test_names_of_slots_that_cannot_be(slots: list[str]) -> None:
    with pytest.raises(ConfigError, match="expected names that differ, without '='"):
        SlotsTask(slots=slots)


def test_a_checkpoint_goes_on_and_is_scored(
    fitted: SlotsTask, tiny: HubertConfig, tmp_path: Path
) -> None:
    assert SlotsTask in TASKS["classify"]
    node = {**NODE, "label": "label", "slots": SLOTS}
    save_model(tmp_path / "x", Hubert(tiny), head=fitted.head(tiny), extra=fitted.card())
    loaded = load_model(tmp_path / "x")
    again = SlotsTask(slots=SLOTS)
    again.adopt(loaded.extra, "x")
    assert again.classes == fitted.classes
    assert again.predict(torch.ones(1, 5)).text == fitted.predict(torch.ones(1, 5)).text
    assert task_node(loaded, "x") == node
    with pytest.raises(ArtefactError, match="the slots action, object, this task has action, p"):
        SlotsTask(slots=["action", "place"]).adopt(loaded.extra, "x")


def test_slots_are_learnt(tmp_path: Path) -> None:
    """The timbre is one slot, always the same letter the other; the export keeps their names."""
    corpus = make_corpus(
        tmp_path / "corpus", label=lambda number: f"{number % 2}|{'xy'[number // 2 % 2]}"
    )
    workspace = make_workspace(tmp_path / "run", corpus, TINY)
    node = {**NODE, "weighted_layers": True}
    facts = run_task(workspace, "ic", node, steps=20, freeze_encoder_steps=20, learning_rate=0.05)
    assert facts["slot_accuracy"] > 0.6
    assert facts["slot_accuracy"] > facts["accuracy"]
    workspace.finish("finetune/ic", {"fingerprint": "f", "facts": facts})
    loaded = load_model(workspace.folder("finetune/ic"))
    assert loaded.extra["classes"] == ["timbre=0", "timbre=1", "letter=x", "letter=y"]
    assert loaded.extra["problem_type"] == "slots"
