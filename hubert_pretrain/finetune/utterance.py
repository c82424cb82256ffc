"""Common parts of the tasks that give values to whole utterances: the label column, the head, and
signs that a test is easier than it looks. K outputs.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from hubert_pretrain.data.corpus import Corpus
from hubert_pretrain.data.manifest import Manifest
from hubert_pretrain.errors import ArtefactError, ConfigError, DataError, did_you_mean
from hubert_pretrain.finetune.task import Examples, Prediction, Task, strings
from hubert_pretrain.model.config import HubertConfig
from hubert_pretrain.model.heads import ClassificationHead
from hubert_pretrain.model.pooling import POOLINGS

Label = Literal["speaker", "label", "corpus"]
"""Columns of a manifest that can be labels."""
LABELS = get_args(Label)
Pooling = Literal["mean", "attentive", "xvector"]
ClassWeights = Literal["none", "balanced"]
CLASS_WEIGHTS = get_args(ClassWeights)
PROBLEM_KEY = "problem_type"
"""Key of a checkpoint's "extra", with the values of `transformers`' field of that name."""
SINGLE_LABEL = "single_label_classification"

log = logging.getLogger(__name__)


class UtteranceTask(Task):
    """Values of utterances from the head that `transformers` calls HubertForSequenceClassification.

    A subclass states its `problem` and its losses.
    """

    kind = ClassificationHead.kind
    problem: ClassVar[str]
    """Value of `transformers`' problem_type."""

    def __init__(
        self, *, label: str, weighted_layers: bool, projection_size: int, pooling: str
    ) -> None:
        """
        Args:
            label: column of the manifest that holds the labels.
            weighted_layers: take a softmax-weighted sum of the encoder's input and every block
                instead of the last block.
            projection_size: width of the layer before the pooling.
            pooling: see model/pooling.py.
        """
        check_choice("label", label, LABELS, "is not a column with labels; ")
        check_choice("pooling", pooling, tuple(POOLINGS))
        self.label = label
        self.needs_all_layers = weighted_layers
        self.projection_size = projection_size
        self.pooling = pooling
        self.classes: list[str] = []
        """Names of the outputs."""
        self._adopted = ""  # the place of the model that the classes come from

    def adopt(self, card: Mapping[str, Any], where: str) -> None:
        """Take the names of the outputs of another model, in the order of its head."""
        problem = card.get(PROBLEM_KEY, SINGLE_LABEL)
        if problem != self.problem:
            raise ArtefactError(
                f"{where}: its head is one for {PROBLEM_KEY}={problem}, this task is "
                f"{self.problem}; set start_head=new"
            )
        self.classes = [str(name) for name in card.get("classes", [])]
        if not self.classes:
            raise ArtefactError(
                f"{where}: does not list the classes of its head, so start_head=keep cannot go on "
                "with it; set start_head=new"
            )
        self._adopted = where

    def compare(self, manifest: Manifest, train: Examples, test: Examples) -> None:
        """Warn of speakers that training and test share, unless they are the classes: a network
        learns which voice goes with which label.
        """
        if self.label == "speaker":
            return
        known = set(strings(manifest, "speaker", train.rows)) - {""}
        tested = strings(manifest, "speaker", test.rows)
        shared = sorted(known & set(tested))
        if shared:
            count = sum(speaker in known for speaker in tested)
            log.warning(
                "%s: %d of %d test utterances are of %d speakers that training has too (%s); split "
                "by speakers, or read the scores as those of known voices",
                manifest.path,
                count,
                len(tested),
                len(shared),
                some_of(shared),
            )

    def head(self, config: HubertConfig) -> ClassificationHead:
        """Optional layer weights, a projection, pooling over frames and a linear layer."""
        return ClassificationHead(
            config.hidden_size,
            len(self.classes),
            projection_size=self.projection_size,
            n_layers=config.num_hidden_layers,
            weighted_layers=self.needs_all_layers,
            pooling=self.pooling,
        )

    @classmethod
    def settings_of(cls, extra: Mapping[str, Any]) -> dict[str, Any] | None:
        """The label column that a checkpoint states, for one of this problem."""
        if (extra.get(PROBLEM_KEY) or SINGLE_LABEL) != cls.problem:
            return None
        return {"label": extra.get("label") or "label"}

    def named(self, prediction: Prediction) -> dict[str, float]:
        """Name of each output -> its value: a probability, or a number."""
        return dict(zip(self.classes, prediction.values.tolist(), strict=True))

    def card(self) -> dict[str, Any]:
        """The names of the outputs in order, where they came from, and the kind of problem."""
        return {"classes": list(self.classes), "label": self.label, PROBLEM_KEY: self.problem}

    def names(self, corpus: Corpus, rows: NDArray[np.int64]) -> list[str]:
        """The label of each row as a text, the cells of the label column; a task of your own may
        make it from something else. Raises DataError when one is empty.
        """
        return cells(corpus, rows, self.label)

    def _refuse_unseen(
        self, corpus: Corpus, rows: NDArray[np.int64], names: Sequence[Iterable[str]]
    ) -> None:
        """Raises DataError when utterances have labels that are no output of the head."""
        known = set(self.classes)
        unseen = [set(each) - known for each in names]
        places = [place for place, each in enumerate(unseen) if each]
        if not places:
            return
        manifest = corpus.manifest
        first = manifest[int(rows[places[0]])]
        found = sorted(set().union(*unseen))
        holder = f"the head of {self._adopted}" if self._adopted else "training"
        fix = (
            "to train on them set start_head=new"
            if self._adopted
            else "classes must be the same: leave those out, or choose a split with the speakers "
            "or labels of training"
        )
        if not self._adopted and len(found) > 1 and np.isfinite(list(map(number_of, found))).all():
            fix += "; to predict numbers choose finetune/regression"
        raise DataError(
            f"{manifest.path}: split {first.split!r} has {len(found)} {self.label} values that "
            f"{holder} has not ({some_of(found)}), in {len(places)} of its {len(rows)} utterances, "
            f"the first is {first.id!r}; {fix}"
        )


def cells(corpus: Corpus, rows: NDArray[np.int64], column: str) -> list[str]:
    """The cells of a label column. Raises DataError when one is empty."""
    manifest = corpus.manifest
    names = strings(manifest, column, rows)
    missing = [int(row) for row, name in zip(rows, names, strict=True) if not name.strip()]
    if missing:
        first = manifest[missing[0]]
        raise DataError(
            f"{manifest.path}: {len(missing)} of {len(rows)} utterances of split "
            f"{first.split!r} have no {column}, the first is {first.id!r}; this task "
            "needs one each: choose another task.label or give the corpus that column"
        )
    return names


def check_choice(name: str, value: str, allowed: Sequence[str], problem: str = "") -> None:
    """Raises ConfigError for a value of a task that is not allowed."""
    if value not in allowed:
        raise ConfigError(
            f"task.{name}={value!r}: {problem}expected one of {', '.join(allowed)}"
            f"{did_you_mean(value, list(allowed))}"
        )


def number_of(name: str) -> float:
    """A label as a number; NaN where it is none."""
    try:
        return float(name.strip())
    except ValueError:
        return float("nan")


def some_of(names: Sequence[str]) -> str:
    """The first names, as a list for messages."""
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
