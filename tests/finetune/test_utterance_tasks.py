"""Tasks of whole utterances: several labels, numbers, class weights, poolings."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.metrics import average_precision_score, f1_score
from sklearn.utils.class_weight import compute_class_weight
from torch.nn import functional as F

from hubert_pretrain.data.corpus import Corpus
from hubert_pretrain.errors import ArtefactError, ConfigError, DataError
from hubert_pretrain.evaluation.bootstrap import Sampling
from hubert_pretrain.evaluation.utterances import ScoredUtterances
from hubert_pretrain.finetune.classify import ClassifyTask, balanced_weights
from hubert_pretrain.finetune.metrics import concordance, pearson
from hubert_pretrain.finetune.multi_label import MultiLabelTask, many_hot
from hubert_pretrain.finetune.regression import RegressionTask
from hubert_pretrain.finetune.task import Examples, Prediction, Results, Task, gather_examples
from hubert_pretrain.frames import MODEL_GRID
from hubert_pretrain.model.config import HubertConfig

SPLITS = {"train_split": "train", "valid_split": "valid", "test_split": "test"}
ONE = torch.ones(4, dtype=torch.long)


def _examples(task: Task, corpus: Corpus) -> list[Examples]:
    return gather_examples(task, corpus, MODEL_GRID, SPLITS, "finetune.x")


def _results(references: list[str], predictions: list[Prediction]) -> Results:
    return Results([f"u{number}" for number in range(len(references))], references, predictions)


# -- several labels


def test_labels_are_separated_and_sorted(corpus_with: Callable[..., Corpus]) -> None:
    cells = ["speech; music", "music", "", "noise;music;music"]
    corpus = corpus_with(label=lambda number: cells[number % 4])
    task = MultiLabelTask()
    train, _, test = _examples(task, corpus)
    assert task.classes == ["music", "noise", "speech"]
    expected = {
        0: ("music;speech", [0, 2]),
        1: ("music", [0]),
        2: ("", []),
        3: ("music;noise", [0, 1]),
    }
    for part in (train, test):
        for row, reference, ids in zip(part.rows, part.references, part.labels, strict=True):
            number = int(corpus.manifest[int(row)].id.removeprefix("utterance-"))
            assert (reference, ids) == expected[number % 4]
    assert task.card()["problem_type"] == "multi_label_classification"


def test_the_loss_of_several_labels_is_binary_cross_entropy() -> None:
    torch.manual_seed(0)
    logits = torch.randn(4, 3, requires_grad=True)
    labels = torch.tensor([[0, 2], [1, 0], [0, 0], [2, 2]])
    lengths = torch.tensor([2, 1, 0, 1])
    targets = torch.tensor([[1.0, 0, 1], [0, 1, 0], [0, 0, 0], [0, 0, 1]])
    assert torch.equal(many_hot(labels, lengths, 3), targets)
    loss = MultiLabelTask().loss(logits, ONE, labels, lengths)
    expected = F.binary_cross_entropy_with_logits(logits, targets) * 4  # of transformers: a mean
    torch.testing.assert_close(loss, expected)
    (ours,) = torch.autograd.grad(loss, logits)
    (theirs,) = torch.autograd.grad(expected, logits)
    torch.testing.assert_close(ours, theirs)


def test_balanced_labels_weigh_as_much_as_their_absence(
    corpus_with: Callable[..., Corpus],
) -> None:
    corpus = corpus_with(label=lambda number: "all;rare" if number == 4 else "all;often")
    task = MultiLabelTask(class_weights="balanced")
    train, *_ = _examples(task, corpus)
    n = len(train)
    logits = torch.zeros(n, 3)  # always undecided
    lengths = torch.tensor([len(ids) for ids in train.labels])
    labels = torch.tensor([list(ids) for ids in train.labels])
    loss = task.loss(logits, ONE, labels, lengths)
    # "rare": one utterance of weight n - 1, and n - 1 without it; "often": n - 1 of weight
    # 1 / (n - 1), and one without; "all" has no counter-example, and weighs as one.
    expected = np.log(2) * (2 * (n - 1) + 2 + 1) / 3
    assert float(loss) == pytest.approx(expected, rel=1e-5)


def test_scores_of_several_labels_are_those_of_scikit_learn() -> None:
    generator = np.random.default_rng(0)
    truth = generator.random((40, 4)) < [0.5, 0.2, 0.1, 0.0]  # the last class never occurs
    scores = (generator.random((40, 4)) * 0.8 + 0.2 * truth).astype(np.float32)
    task = MultiLabelTask(threshold=0.6)
    task.classes = list("abcd")

    def text(row: Any) -> str:
        return ";".join(name for name, has in zip("abcd", row, strict=True) if has)

    predictions = [Prediction(text(row >= 0.6), row) for row in scores]
    found = task.score(_results([text(row) for row in truth], predictions))
    average = [average_precision_score(truth[:, k], scores[:, k]) for k in range(3)]
    assert found["map"] == pytest.approx(np.mean(average))
    predicted = scores >= 0.6
    assert found["micro_f1"] == pytest.approx(f1_score(truth, predicted, average="micro"))
    used = (truth | predicted).any(0)
    macro = f1_score(truth[:, used], predicted[:, used], average="macro", zero_division=0)
    assert found["macro_f1"] == pytest.approx(macro)
    assert found["exact_match"] == np.mean(
        [np.array_equal(*pair) for pair in zip(truth, predicted, strict=True)]
    )
    assert found["chance_map"] == pytest.approx(truth.mean(0)[:3].mean())


def test_a_prediction_of_several_labels() -> None:
    task = MultiLabelTask(threshold=0.25)
    task.classes = ["a", "b", "c"]
    logits = torch.tensor([[2.0, -1.0, -2.0]])
    prediction = task.predict(logits)
    assert prediction.text == "a;b"
    assert prediction.values == pytest.approx(logits[0].sigmoid().numpy())
    table = task.tables(_results(["a"], [prediction]))["predictions.tsv"].splitlines()
    assert table == ["id\treference\tprediction\ta\tb\tc", "u0\ta\ta;b\t0.8808\t0.2689\t0.1192"]
    both = _results(["a;c", "b", ""], [prediction, prediction, Prediction("")])
    assert task.errors(both) == pytest.approx([2 / 3, 1 / 2, 0])
    empty = [Prediction("", np.zeros(3, np.float32))] * 2
    (warning,) = task.warnings(_results(["a", "b"], empty))
    assert warning.startswith("all 2 predictions are empty: nothing is learnt yet")
    assert "task.threshold=0.25" in warning


def test_several_labels_given_in_another_form(
    corpus_with: Callable[..., Corpus], caplog: pytest.LogCaptureFixture
) -> None:
    corpus = corpus_with(label=lambda number: ("music,speech", "noise")[number // 2 % 2])
    _examples(MultiLabelTask(), corpus)
    assert re.search(
        r"no training utterance has two labels: label is separated by task.separator=';' "
        r"\(they hold ',': is one the separator\?\)",
        caplog.text,
    )
    with pytest.raises(DataError, match="none of the 8 training utterances has a label"):
        _examples(MultiLabelTask(), corpus_with(label=""))
    with pytest.raises(DataError, match=r"2 label values are lists written as text \(\['a', 'b'\]"):
        _examples(
            MultiLabelTask(), corpus_with(label=lambda n: ("['a', 'b']", "['b']")[n // 2 % 2])
        )
    with pytest.raises(DataError, match="all 8 training utterances have label 'a;b'"):
        _examples(MultiLabelTask(), corpus_with(label="b; a"))
    with pytest.raises(ConfigError, match=r"task.separator=' '"):
        MultiLabelTask(separator=" ")


def test_an_unseen_label_among_several(corpus_with: Callable[..., Corpus]) -> None:
    corpus = corpus_with(label=lambda number: "a;new" if number % 6 == 0 else "ab"[number % 2])
    with pytest.raises(DataError, match=r"split 'test' has 1 label values that training.*\(new\)"):
        _examples(MultiLabelTask(), corpus)


def test_one_label_that_is_a_list_or_a_number(
    corpus_with: Callable[..., Corpus], caplog: pytest.LogCaptureFixture
) -> None:
    """A task of the wrong type for its labels says which one is right."""
    corpus = corpus_with(label=lambda number: ("a;b", "a")[number // 2 % 2])
    _examples(ClassifyTask(), corpus)
    assert "1 label values hold several labels (a;b)" in caplog.text
    assert "finetune/multi_label" in caplog.text
    caplog.clear()
    corpus = corpus_with(label=lambda number: f"{number // 8 * 0.5}", utterances=200)
    task = ClassifyTask()
    task.fit(corpus, corpus.manifest.rows(), MODEL_GRID)
    assert "all 25 label values are numbers, each a class of its own" in caplog.text
    assert "finetune/regression" in caplog.text


# -- numbers


def test_numbers_and_their_units(corpus_with: Callable[..., Corpus], tiny: HubertConfig) -> None:
    corpus = corpus_with(label=lambda number: f"{number}; {number % 2 * 100}")
    task = RegressionTask(outputs=["age", "mood"])
    train, _, test = _examples(task, corpus)
    rows = [corpus.manifest[int(row)].id for row in train.rows]
    numbers = np.array([int(name.removeprefix("utterance-")) for name in rows])
    expected = np.stack([numbers, numbers % 2 * 100], 1)
    assert np.array_equal(train.labels, expected)
    assert test.references[0].split(";")[1] in ("0", "100")
    card = task.card()
    assert card["classes"] == ["age", "mood"]
    assert card["training_labels"]["mean"] == pytest.approx(expected.mean(0))
    assert card["training_labels"]["deviation"] == pytest.approx(expected.std(0))
    # A head that says nothing yet says about the mean, in the units of the labels.
    torch.manual_seed(0)
    head = task.head(tiny)
    frames = torch.randn(2, 5, tiny.hidden_size)
    with torch.no_grad():
        predicted = head(_Output(frames))
        spread = (predicted - torch.tensor(expected.mean(0))) / torch.tensor(expected.std(0))
        assert spread.abs().max() < 2
        head.finish()
        torch.testing.assert_close(head(_Output(frames)), predicted, atol=1e-4, rtol=1e-5)
    assert "units" not in head.settings


class _Output:
    """Stands for the output of a network."""

    def __init__(self, last: torch.Tensor) -> None:
        self.last = last


def test_the_loss_of_numbers_is_that_of_torch(corpus_with: Callable[..., Corpus]) -> None:
    task = RegressionTask()
    _examples(task, corpus_with(label=lambda number: f"{number}"))
    deviation = task.card()["training_labels"]["deviation"][0]
    torch.manual_seed(0)
    predicted = torch.randn(4, 1, requires_grad=True)
    truth = torch.randn(4, 1)
    loss = task.loss(predicted, ONE, truth, ONE)
    expected = F.mse_loss(predicted, truth, reduction="sum") / (2 * deviation**2)
    torch.testing.assert_close(loss, expected)
    gradients = [torch.autograd.grad(each, predicted)[0] for each in (loss, expected)]
    torch.testing.assert_close(*gradients)


def test_scores_of_numbers_are_those_of_scipy() -> None:
    generator = np.random.default_rng(0)
    truth = generator.normal(size=(30, 2))
    predicted = 0.5 * truth + generator.normal(size=(30, 2)) + [0.0, 3.0]
    expected = [stats.pearsonr(truth[:, k], predicted[:, k]).statistic for k in range(2)]
    assert pearson(truth, predicted) == pytest.approx(np.mean(expected))
    # Lin 1989: correlation times a penalty for scale and offset.
    agreement = []
    for k, correlation in enumerate(expected):
        ratio = truth[:, k].std() / predicted[:, k].std()
        offset = truth[:, k].mean() - predicted[:, k].mean()
        offset /= np.sqrt(truth[:, k].std() * predicted[:, k].std())
        agreement.append(correlation * 2 / (ratio + 1 / ratio + offset**2))
    assert concordance(truth, predicted) == pytest.approx(np.mean(agreement))
    assert concordance(truth, truth) == pytest.approx(1.0)
    assert pearson(truth, np.zeros_like(truth)) == 0.0
    task = RegressionTask()
    texts = [f"{first:.9g};{second:.9g}" for first, second in truth]
    predictions = [Prediction("", row.astype(np.float32)) for row in predicted]
    found = task.score(_results(texts, predictions))
    assert found["mse"] == pytest.approx(np.mean((truth - predicted) ** 2), rel=1e-5)
    assert found["constant_mse"] == pytest.approx(truth.var(0).mean(), rel=1e-5)
    assert found["ccc"] == pytest.approx(np.mean(agreement), rel=1e-5)
    # The worst utterances are those with the largest mean absolute errors.
    results = Results([f"u{row}" for row in range(30)], texts, predictions)
    shown = [";".join(map(str, row)) for row in predicted]
    scored = ScoredUtterances(results.ids, texts, shown, [""] * 30, np.full(30, 16_000))
    analysis = task.analyse(results, scored, Sampling(resamples=10))
    errors = np.abs(truth - predicted).mean(1)
    order = np.argsort(-errors)
    worst = analysis.tables["worst utterances"]
    assert [row[0] for row in worst.rows] == [f"u{row}" for row in order]
    assert [row[1] for row in worst.rows] == pytest.approx(errors[order].tolist(), rel=1e-5)
    assert analysis.utterances.rows[3][:4] == ("u3", "", 1.0, pytest.approx(errors[3], rel=1e-5))


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (lambda n: "nan" if n in (4, 5) else f"{n}", r"2 of 8 .* 'utterance-004' \('nan'\), "),
        (lambda n: "high" if n == 4 else f"{n}", r"1 of 8 .* 'utterance-004' \('high'\); leave"),
        (lambda n: "inf" if n == 12 else f"{n}", "1 of 8 .* split 'test' have a label that is no"),
        (lambda n: "1;2" if n == 4 else f"{n}", "1 or 2 numbers each in label, e.g."),
        (lambda n: "1;2" if n % 6 < 2 else f"{n}", "split 'test' have 2 numbers each in label, tr"),
        (lambda n: "0.5", "all 8 training utterances have the same label"),
        (lambda n: "" if n == 4 else f"{n}", "1 of 8 .* have no label, the first is 'utterance-00"),
    ],
)
def test_numbers_that_are_none(
    corpus_with: Callable[..., Corpus], label: Callable[[int], str], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        _examples(RegressionTask(), corpus_with(label=label))


def test_names_of_outputs_must_be_as_many(corpus_with: Callable[..., Corpus]) -> None:
    corpus = corpus_with(label=lambda number: f"{number};1{number}")
    with pytest.raises(ConfigError, match=r"task.outputs names 1 numbers, .* have 2"):
        _examples(RegressionTask(outputs=["age"]), corpus)
    task = RegressionTask()
    _examples(task, corpus)
    assert task.classes == ["label_0", "label_1"]


def test_a_model_that_always_says_the_same_number() -> None:
    task = RegressionTask()
    same = [Prediction("2", np.array([2.0], np.float32))] * 3
    (warning,) = task.warnings(_results(["1", "2", "4"], same))
    assert warning.startswith("all 3 predictions are about 2: nothing is learnt yet")
    other = [Prediction(str(n), np.array([n], np.float32)) for n in (1.0, 2.0, 3.0)]
    assert task.warnings(_results(["1", "2", "4"], other)) == []


# -- one class


def test_class_weights_are_those_of_scikit_learn(corpus_with: Callable[..., Corpus]) -> None:
    names = ["a"] * 6 + ["b"] * 3 + ["c"]
    weights = balanced_weights(names, ["a", "b", "c"])
    expected = compute_class_weight("balanced", classes=np.array(["a", "b", "c"]), y=names)
    assert weights.numpy() == pytest.approx(expected)
    assert sum(float(weights["abc".index(name)]) for name in names) == pytest.approx(len(names))
    task = ClassifyTask(class_weights="balanced", label_smoothing=0.1)
    corpus = corpus_with(label=lambda number: "rare" if number == 4 else "often")
    _examples(task, corpus)
    torch.manual_seed(0)
    logits = torch.randn(4, 2)
    labels = torch.tensor([[0], [1], [0], [0]])
    weight = torch.tensor([8 / (2 * 7), 8 / (2 * 1)])
    expected_loss = F.cross_entropy(
        logits, labels[:, 0], weight, reduction="sum", label_smoothing=0.1
    )
    torch.testing.assert_close(task.loss(logits, ONE, labels, ONE), expected_loss)


def test_a_head_of_another_problem_is_not_kept() -> None:
    card = {"classes": ["a", "b"], "problem_type": "multi_label_classification"}
    with pytest.raises(ArtefactError, match="multi_label_classification, this task is single_lab"):
        ClassifyTask().adopt(card, "there")
    task = MultiLabelTask()
    task.adopt(card, "there")
    assert task.classes == ["a", "b"]
    ClassifyTask().adopt({"classes": ["a", "b"]}, "there")  # of an older version


def test_choices_of_a_task() -> None:
    with pytest.raises(ConfigError, match=r"task.pooling='attentiv': .*did you mean 'attentive'"):
        ClassifyTask(pooling="attentiv")
    with pytest.raises(ConfigError, match=r"task.class_weights='equal': expected one of none, bal"):
        ClassifyTask(class_weights="equal")
