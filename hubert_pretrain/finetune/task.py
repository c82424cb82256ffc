"""The base of tasks: labels from a corpus, a head on the encoder, a loss, predictions and scores.

A new task is one file beside ctc.py and classify.py (docs/finetuning.md, "Your own task").
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from hubert_pretrain.data.corpus import Corpus
from hubert_pretrain.data.manifest import Manifest
from hubert_pretrain.errors import ConfigError, DataError
from hubert_pretrain.evaluation.analysis import Analysis
from hubert_pretrain.evaluation.bootstrap import Sampling
from hubert_pretrain.evaluation.scores import analyse_scores
from hubert_pretrain.evaluation.utterances import ScoredUtterances
from hubert_pretrain.frames import FrameGrid, samples

if TYPE_CHECKING:
    from torch import Tensor

    from hubert_pretrain.decoding.config import DecodingConfig
    from hubert_pretrain.decoding.hypothesis import Decoder
    from hubert_pretrain.model.config import HubertConfig
    from hubert_pretrain.model.heads import TaskHead
    from hubert_pretrain.model.hubert import HubertOutput

log = logging.getLogger(__name__)

Labels = Sequence[float] | NDArray[Any]
"""The labels of an utterance."""

_SPACES = str.maketrans("\t\r\n", "   ")


@dataclass(frozen=True)
class Metric:
    """A score of the valid and the test split."""

    name: str
    higher_is_better: bool
    percent: bool = False
    """True where people read it in per cent."""
    hub: str = ""
    """The name that the hub of Hugging Face has for it; "": none."""


@dataclass(frozen=True)
class Examples:
    """N utterances of one split with their labels."""

    rows: NDArray[np.int64]  # (N,) manifest rows
    references: list[str]  # for people and scores: a normalised transcript, a class
    labels: Sequence[Labels]  # for the loss: U ids each (one for a class), or numbers
    without_loss: frozenset[int] = frozenset()  # examples whose frames cannot spell their labels

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True, eq=False)
class Prediction:
    """The prediction for one utterance."""

    text: str
    """In the form of a reference."""
    values: NDArray[np.float32] = field(default_factory=lambda: np.zeros(0, np.float32))
    """Numbers that scores need beside it, e.g. the log-probability of each class, an embedding."""


@dataclass(frozen=True, eq=False)
class Results:
    """N utterances of a split: their ids, references and predictions, in one order."""

    ids: Sequence[str]
    references: Sequence[str]
    predictions: Sequence[Prediction]

    @staticmethod
    def of_texts(
        references: Sequence[str], predictions: Sequence[str], ids: Sequence[str] | None = None
    ) -> Results:
        """Predictions that are texts alone; without `ids` they are numbered."""
        return Results(
            ids if ids is not None else [str(number) for number in range(len(references))],
            references,
            [Prediction(text) for text in predictions],
        )

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def texts(self) -> list[str]:
        """The predictions as texts."""
        return [prediction.text for prediction in self.predictions]

    @property
    def values(self) -> NDArray[np.float32]:
        """The values of the predictions, (N, K)."""
        return np.stack([prediction.values for prediction in self.predictions])

    def take(self, indices: Iterable[int]) -> Results:
        """Some of the utterances, in that order; an index may occur several times."""
        chosen = list(indices)
        return Results(
            [self.ids[i] for i in chosen],
            [self.references[i] for i in chosen],
            [self.predictions[i] for i in chosen],
        )


class Task(ABC):
    """A downstream task: its settings, and after `fit` the vocabulary or the classes of the
    training split.

    A subclass states the attributes, and writes the abstract methods; of the others it has those
    below.
    """

    kind: ClassVar[str]
    """Kind of the checkpoints that hold its models: that of the class of its heads."""
    summary: ClassVar[str] = ""
    """For the model card of an export, after "HuBERT, ": "fine-tuned to ..."."""
    metrics: tuple[Metric, ...]
    """Metrics that `score` returns, the main one first: the best checkpoint is the best by it."""
    more_metrics: tuple[Metric, ...] = ()
    """Further scores of `analyse`."""
    needs_all_layers: bool = False
    """True if the head needs every layer's output, `Hubert.forward(hidden_states=True)`."""
    has_languages: ClassVar[bool] = False
    """True if a language of its models is adapters and a head with a vocabulary of its own
    (model/language_adapters.py). Read as `exports` is.
    """
    views: int = 1
    """Copies of each training utterance in a batch, with masks of their own. The loss then gets
    logits of (views x B) rows, the first views of all utterances first, for labels of B rows.
    """
    exports: ClassVar[tuple[str, ...]]
    """Formats of export that can hold its models (interop/registry.py). Read from the source before
    anything runs, so a plain tuple.
    """

    # -- labels

    @abstractmethod
    def fit(self, corpus: Corpus, rows: NDArray[np.int64], grid: FrameGrid) -> Examples:
        """Derive vocabulary or classes from the training rows, unless they were adopted.

        Returns the rows that can be trained on. Raises DataError when too few can.
        """

    @abstractmethod
    def examples(self, corpus: Corpus, rows: NDArray[np.int64], grid: FrameGrid) -> Examples:
        """The rows of another split, all of them.

        Raises DataError when the split cannot be scored with the vocabulary or classes of `fit`.
        """

    def adopt(self, card: Mapping[str, Any], where: str) -> None:
        """Take vocabulary or classes from the `card` of another model, whose head is kept, instead
        of deriving them in `fit`.

        Raises ArtefactError, with the place of that model, when it states none.
        """
        raise ConfigError(
            f"{where}: start_head=keep, but {type(self).__name__} cannot go on with another "
            "model's head; set start_head=new"
        )

    @classmethod
    def settings_of(cls, extra: Mapping[str, Any]) -> dict[str, Any] | None:
        """The arguments with which a checkpoint of this kind is scored that does not state its
        task, from its `extra`; None: it belongs to another task of the kind.
        """
        return {}

    def compare(self, manifest: Manifest, train: Examples, test: Examples) -> None:
        """Warn of what makes the scores of the test split better than they are."""
        return

    # -- head and loss

    @abstractmethod
    def head(self, config: HubertConfig) -> TaskHead:
        """A new head for an encoder of this form."""

    def logits(self, head: TaskHead, output: HubertOutput, valid: Tensor | None) -> Tensor:
        """Logits of the head for B utterances, and what else the loss needs of the head.

        Args:
            output: of the encoder.
            valid: (B, T), True for real frames; None: all are.
        """
        return head.logits(output, valid)

    @abstractmethod
    def loss(
        self, logits: Tensor, num_frames: Tensor, labels: Tensor, label_lengths: Tensor
    ) -> Tensor:
        """Loss, in nats where it is a likelihood, summed over utterances.

        Args:
            logits: of `logits`.
            num_frames: (B,) real frames.
            labels: (B, U) int64 ids, or float32 numbers, padded with 0.
            label_lengths: (B,).
        """

    # -- predictions and scores

    @abstractmethod
    def predict(self, logits: Tensor) -> Prediction:
        """The prediction for one utterance; ``logits`` of a batch of one."""

    def decoder(
        self, config: DecodingConfig, texts: Sequence[str] | None, grid: FrameGrid, key: str
    ) -> Decoder | None:
        """The search that makes the final predictions of the head's log-probabilities; None:
        `predict` makes them.

        Args:
            texts: normalised training transcripts; None: unknown.
            key: of the settings in the recipe, for messages.

        Raises ConfigError for settings of a search where there is nothing to search for.
        """
        if config.kind != "greedy":
            raise ConfigError(
                f"{key}.kind={config.kind}: {type(self).__name__} decodes no text; remove {key}"
            )
        return None

    def shown(self, results: Results) -> tuple[list[str], list[str]]:
        """References and predictions as reports show them."""
        return list(results.references), results.texts

    @abstractmethod
    def score(self, results: Results) -> dict[str, float]:
        """The values of `metrics`, by name, and others to compare them with."""

    def analyse(self, results: Results, scored: ScoredUtterances, sampling: Sampling) -> Analysis:
        """Scores with intervals, and tables of errors. Here: every metric, of every resample; a
        task with more to say has an analysis of its own.

        scored: the same utterances, as `shown`.
        """
        return analyse_scores(
            scored,
            sampling,
            lambda rows: self.score(results.take(rows.tolist())),
            [metric.name for metric in self.metrics],
            higher_is_better=self.metrics[0].higher_is_better,
            errors=self.errors(results),
        )

    def errors(self, results: Results) -> NDArray[np.float64] | None:
        """The error of each utterance (N,), by which the worst are shown; None: one utterance has
        none. Called by `analyse` above.
        """
        return None

    def warnings(self, results: Results) -> list[str]:
        """Faults of the predictions as a whole, each with its fix."""
        return []

    def tables(self, results: Results) -> dict[str, str]:
        """File name -> content: the table of predictions first."""
        lines = list(zip(results.ids, results.references, results.texts, strict=True))
        return {"predictions.tsv": tab_separated(("id", "reference", "prediction"), lines)}

    # -- what is stored

    @abstractmethod
    def card(self) -> dict[str, Any]:
        """Plain JSON values that a checkpoint stores beside the weights, and that exports need:
        names of the outputs (under the key `names` of the head), settings of the loss.
        """

    def reports(self) -> dict[str, Any]:
        """File name -> plain JSON values: how the labels were made."""
        return {}


def gather_examples(
    task: Task,
    corpus: Corpus,
    grid: FrameGrid,
    splits: Mapping[str, str | Sequence[str]],
    where: str,
    train_hours: float = 0.0,
) -> list[Examples]:
    """The examples of each split, those for testing last; the task is fitted on the first.

    Everything that can be wrong with them is found here, before training.

    Args:
        splits: key of the recipe -> name of the split, for training, validation and test; there
            may be several for testing.
        where: place of those keys in the recipe, for error messages.
        train_hours: train on so much speech at most, the same utterances for every seed; 0: all.
    """
    manifest = corpus.manifest
    rows = []
    _, (valid_key, valid), (test_key, test) = splits.items()
    if valid in ([test] if isinstance(test, str) else test):
        log.warning(
            "%s.%s and %s are both %r: the test scores are those of what was validated on",
            where,
            valid_key,
            test_key,
            valid,
        )
    for key, split in names_of_splits(splits):
        of_split = manifest.rows(split)
        if len(of_split) == 0:
            raise DataError(
                f"{manifest.path}: split {split!r} has no utterances, only "
                f"{', '.join(manifest.splits)} have; set {where}.{key} to one of them"
            )
        rows.append(of_split)
    train, *others = rows
    if train_hours:
        train = some_hours(train, manifest.num_samples[train], train_hours)
    found = [
        task.fit(corpus, train, grid),
        *(task.examples(corpus, other, grid) for other in others),
    ]
    for test_examples in found[2:]:
        task.compare(manifest, found[0], test_examples)
    return found


def some_hours(
    rows: NDArray[np.int64], num_samples: NDArray[np.int64], hours: float
) -> NDArray[np.int64]:
    """Utterances drawn at random that hold `hours` of audio at most, but at least one of them.

    The same for every seed of a run; fewer hours are a part of more.
    """
    order = np.random.default_rng(0).permutation(len(rows))
    total = np.cumsum(num_samples[order], dtype=np.int64)
    count = max(1, int(np.searchsorted(total, samples(3600 * hours), side="right")))
    return np.sort(rows[order[:count]])


def names_of_splits(splits: Mapping[str, str | Sequence[str]]) -> list[tuple[str, str]]:
    """(key, split) for every split, those of a list one by one."""
    return [
        (key, split)
        for key, given in splits.items()
        for split in ([given] if isinstance(given, str) else given)
    ]


def strings(manifest: Manifest, column: str, rows: NDArray[np.int64]) -> list[str]:
    """A text column at some rows."""
    return [str(value or "") for value in manifest.take(column, rows).to_pylist()]


def tab_separated(header: Sequence[str], lines: Sequence[Sequence[object]]) -> str:
    """A table as text, one line per row; tabs and line breaks inside a cell become spaces."""
    rows = [[str(cell).translate(_SPACES) for cell in line] for line in [header, *lines]]
    return "".join("\t".join(row) + "\n" for row in rows)
