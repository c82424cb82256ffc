"""The Task protocol: labels from a manifest, a head on the encoder, a loss, predictions and scores.

A new task is one file beside ctc.py and classify.py.
"""

from __future__ import annotations

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

    def fit(self, manifest: Manifest, rows: NDArray[np.int64], grid: FrameGrid) -> Examples:
        """Derive vocabulary or classes from the training rows.

        Returns the rows that can be trained on. Raises DataError when too few can.
        """
        ...

    def examples(self, manifest: Manifest, rows: NDArray[np.int64]) -> Examples:
        """The rows of another split, all of them.

        Raises DataError when the split cannot be scored with the vocabulary or classes of `fit`.
        """
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
        """The values of `metrics`, by name."""
        ...

    def card(self) -> dict[str, Any]:
        """Plain JSON values that a checkpoint stores beside the weights, and that exports need:
        names of the outputs, settings of the loss.
        """
        ...

    def table(
        self, ids: Sequence[str], references: Sequence[str], predictions: Sequence[str]
    ) -> tuple[str, str]:
        """File name and content of the table of predictions."""
        ...


def gather_examples(
    task: Task, manifest: Manifest, grid: FrameGrid, splits: Mapping[str, str], where: str
) -> list[Examples]:
    """The examples of each split; the task is fitted on the first.

    Everything that can be wrong with them is found here, before training.

    Args:
        splits: key of the recipe -> name of the split.
        where: place of those keys in the recipe, for error messages.
    """
    rows = []
    for key, split in splits.items():
        of_split = manifest.rows(split)
        if len(of_split) == 0:
            raise DataError(
                f"{manifest.path}: split {split!r} has no utterances, only "
                f"{', '.join(manifest.splits)} have; set {where}.{key} to one of them"
            )
        rows.append(of_split)
    train, *others = rows
    return [
        task.fit(manifest, train, grid),
        *(task.examples(manifest, other) for other in others),
    ]


def strings(manifest: Manifest, column: str, rows: NDArray[np.int64]) -> list[str]:
    """A text column at some rows."""
    return [str(value or "") for value in manifest.take(column, rows).to_pylist()]


def tab_separated(header: Sequence[str], lines: Sequence[Sequence[object]]) -> str:
    """A table as text, one line per row; tabs and line breaks inside a cell become spaces."""
    rows = [[str(cell).translate(_SPACES) for cell in line] for line in [header, *lines]]
    return "".join("\t".join(row) + "\n" for row in rows)
