"""What a task is: labels out of a manifest, a head on the encoder, a loss, predictions and scores.
A new task is a file beside ctc.py.
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

_BLANKS = str.maketrans("\t\r\n", "   ")


@dataclass(frozen=True)
class Examples:
    """Utterances of one split with what is to be predicted for each."""

    rows: NDArray[np.int64]  # (N,) manifest rows
    references: list[str]  # as a person reads it: a normalised transcript, a class
    labels: list[list[int]]  # as the loss wants it: U ids each (one for a class)

    def __len__(self) -> int:
        return len(self.rows)


class Task(Protocol):
    """A task holds its settings from the start, and after `fit` what it has learnt of the training
    split (letters, classes).
    """

    kind: str
    """Kind of the checkpoints that hold its models: "ctc" or "classify"."""
    every_layer: bool
    """Whether the head needs the output of every layer, `Hubert.forward(hidden_states=True)`."""

    def fit(self, manifest: Manifest, rows: NDArray[np.int64], grid: FrameGrid) -> Examples:
        """Derives vocabulary or classes from the training rows; returns those that can be trained
        on (DataError when too few can).
        """
        ...

    def examples(self, manifest: Manifest, rows: NDArray[np.int64]) -> Examples:
        """The rows of another split, all of them. Raises DataError when the split cannot be scored
        with what `fit` learnt.
        """
        ...

    def head(self, config: HubertConfig) -> CTCHead | ClassificationHead:
        """A new head for an encoder of this form."""
        ...

    def logits(self, head: nn.Module, output: HubertOutput, valid: Tensor | None) -> Tensor:
        """The head's scores for what the encoder made of B utterances; ``valid`` (B, T) marks real
        frames, None: all are.
        """
        ...

    def loss(
        self, logits: Tensor, num_frames: Tensor, labels: Tensor, label_lengths: Tensor
    ) -> Tensor:
        """Loss in nats, summed over utterances. ``num_frames`` (B,), ``labels`` (B, U) padded with
        anything, ``label_lengths`` (B,).
        """
        ...

    def predict(self, logits: Tensor) -> str:
        """What the model says of one utterance, in the form of a reference; ``logits`` are a batch
        of one.
        """
        ...

    def score(self, references: Sequence[str], predictions: Sequence[str]) -> dict[str, float]:
        """The metrics, by name."""
        ...

    def card(self) -> dict[str, Any]:
        """What must be kept with the weights to use them (plain JSON values)."""
        ...

    def table(
        self, ids: Sequence[str], references: Sequence[str], predictions: Sequence[str]
    ) -> tuple[str, str]:
        """File name and content of the table of predictions."""
        ...


def gather_examples(
    task: Task, manifest: Manifest, grid: FrameGrid, splits: Mapping[str, str], where: str
) -> list[Examples]:
    """The examples of each split, the first of which is trained on. What can be wrong with them is
    found here, before training.

    ``splits`` are names of splits by their key in the recipe, ``where`` is the place of those keys:
    both for error messages.
    """
    rows = []
    for key, split in splits.items():
        rows.append(manifest.rows(split))
        if len(rows[-1]) == 0:
            raise DataError(
                f"{manifest.path}: split {split!r} has no utterances, only {', '.join(manifest.splits)} have; "
                f"set {where}.{key} to one of them"
            )
    return [
        task.fit(manifest, rows[0], grid),
        *(task.examples(manifest, other) for other in rows[1:]),
    ]


def strings(manifest: Manifest, column: str, rows: NDArray[np.int64]) -> list[str]:
    """A text column at some rows."""
    return [str(value or "") for value in manifest.take(column, rows).to_pylist()]


def tab_separated(header: Sequence[str], lines: Sequence[Sequence[object]]) -> str:
    """A table as text, one line per row; tabs and line breaks inside a cell become spaces."""
    return "".join(
        "\t".join(str(cell).translate(_BLANKS) for cell in line) + "\n" for line in [header, *lines]
    )
