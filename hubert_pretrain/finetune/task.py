"""The Task protocol: labels from a manifest, a head on the encoder, a loss, predictions and scores.

A new task is one file beside ctc.py and classify.py.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from hubert_pretrain.data.manifest import Manifest
from hubert_pretrain.errors import DataError
from hubert_pretrain.frames import FrameGrid

if TYPE_CHECKING:
    from torch import Tensor, nn

    from hubert_pretrain.model.config import HubertConfig
    from hubert_pretrain.model.heads import ClassificationHead, CTCHead
    from hubert_pretrain.model.hubert import HubertOutput

log = logging.getLogger(__name__)

_SPACES = str.maketrans("\t\r\n", "   ")


@dataclass(frozen=True)
class Metric:
    """A score of the valid and the test split."""

    name: str
    higher_is_better: bool


@dataclass(frozen=True)
class Examples:
    """N utterances of one split with their labels."""

    rows: NDArray[np.int64]  # (N,) manifest rows
    references: list[str]  # for people and scores: a normalised transcript, a class
    labels: list[list[int]]  # for the loss: U ids each (one for a class)
    without_loss: frozenset[int] = frozenset()  # examples whose frames cannot spell their labels

    def __len__(self) -> int:
        return len(self.rows)


class Task(Protocol):
    """A downstream task: its settings, and after `fit` the vocabulary or the classes of the
    training split.
    """

    kind: str
    """Kind of the checkpoints that hold its models: "ctc" or "classify"."""
    metrics: tuple[Metric, ...]
    """Metrics that `score` returns, the main one first."""
    needs_all_layers: bool
    """True if the head needs every layer's output, `Hubert.forward(hidden_states=True)`."""

    def adopt(self, card: Mapping[str, Any], where: str) -> None:
        """Take vocabulary or classes from the `card` of another model, whose head is kept, instead
        of deriving them in `fit`.

        Raises ArtefactError, with the place of that model, when it states none.
        """
        ...

    def fit(self, manifest: Manifest, rows: NDArray[np.int64], grid: FrameGrid) -> Examples:
        """Derive vocabulary or classes from the training rows, unless they were adopted.

        Returns the rows that can be trained on. Raises DataError when too few can.
        """
        ...

    def examples(self, manifest: Manifest, rows: NDArray[np.int64], grid: FrameGrid) -> Examples:
        """The rows of another split, all of them.

        Raises DataError when the split cannot be scored with the vocabulary or classes of `fit`.
        """
        ...

    def compare(self, manifest: Manifest, train: Examples, test: Examples) -> None:
        """Warn of what makes the scores of the test split better than they are."""
        ...

    def head(self, config: HubertConfig) -> CTCHead | ClassificationHead:
        """A new head for an encoder of this form."""
        ...

    def logits(self, head: nn.Module, output: HubertOutput, valid: Tensor | None) -> Tensor:
        """Logits of the head for B utterances.

        Args:
            output: of the encoder.
            valid: (B, T), True for real frames; None: all are.
        """
        ...

    def loss(
        self, logits: Tensor, num_frames: Tensor, labels: Tensor, label_lengths: Tensor
    ) -> Tensor:
        """Loss in nats, summed over utterances.

        Args:
            logits: of the head.
            num_frames: (B,) real frames.
            labels: (B, U) ids, padded with anything.
            label_lengths: (B,).
        """
        ...

    def predict(self, logits: Tensor) -> str:
        """The prediction for one utterance, in the form of a reference; ``logits`` of a batch of
        one.
        """
        ...

    def score(self, references: Sequence[str], predictions: Sequence[str]) -> dict[str, float]:
        """The values of `metrics`, by name, and others to compare them with."""
        ...

    def warnings(self, references: Sequence[str], predictions: Sequence[str]) -> list[str]:
        """Faults of the predictions as a whole, each with its fix."""
        ...

    def card(self) -> dict[str, Any]:
        """Plain JSON values that a checkpoint stores beside the weights, and that exports need:
        names of the outputs, settings of the loss.
        """
        ...

    def reports(self) -> dict[str, Any]:
        """File name -> plain JSON values: how the labels were made."""
        ...

    def tables(
        self, ids: Sequence[str], references: Sequence[str], predictions: Sequence[str]
    ) -> dict[str, str]:
        """File name -> content: the table of predictions first."""
        ...


def gather_examples(
    task: Task, manifest: Manifest, grid: FrameGrid, splits: Mapping[str, str], where: str
) -> list[Examples]:
    """The examples of each split; the task is fitted on the first.

    Everything that can be wrong with them is found here, before training.

    Args:
        splits: key of the recipe -> name of the split, for training, validation and test.
        where: place of those keys in the recipe, for error messages.
    """
    rows = []
    *_, (valid_key, valid), (test_key, test) = splits.items()
    if valid == test:
        log.warning(
            "%s.%s and %s are both %r: the test scores are those of what was validated on",
            where,
            valid_key,
            test_key,
            test,
        )
    for key, split in splits.items():
        of_split = manifest.rows(split)
        if len(of_split) == 0:
            raise DataError(
                f"{manifest.path}: split {split!r} has no utterances, only "
                f"{', '.join(manifest.splits)} have; set {where}.{key} to one of them"
            )
        rows.append(of_split)
    train, *others = rows
    found = [
        task.fit(manifest, train, grid),
        *(task.examples(manifest, other, grid) for other in others),
    ]
    task.compare(manifest, found[0], found[-1])
    return found


def strings(manifest: Manifest, column: str, rows: NDArray[np.int64]) -> list[str]:
    """A text column at some rows."""
    return [str(value or "") for value in manifest.take(column, rows).to_pylist()]


def tab_separated(header: Sequence[str], lines: Sequence[Sequence[object]]) -> str:
    """A table as text, one line per row; tabs and line breaks inside a cell become spaces."""
    rows = [[str(cell).translate(_SPACES) for cell in line] for line in [header, *lines]]
    return "".join("\t".join(row) + "\n" for row in rows)
