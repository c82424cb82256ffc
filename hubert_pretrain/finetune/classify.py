"""Classification task: one class per utterance (speaker, keyword, language). B utterances, T
frames, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from hubert_pretrain.data.manifest import Manifest
from hubert_pretrain.errors import ConfigError, DataError, did_you_mean
from hubert_pretrain.finetune.metrics import accuracy
from hubert_pretrain.finetune.task import Examples, Metric, strings, tab_separated
from hubert_pretrain.frames import FrameGrid
from hubert_pretrain.model.config import HubertConfig
from hubert_pretrain.model.heads import ClassificationHead
from hubert_pretrain.model.hubert import HubertOutput

LABELS = ("speaker", "label", "corpus")
"""Columns of a manifest that can be classes."""


class ClassifyTask:
    """One class per utterance: mean over its real frames of the last layer, or of a learnt mixture
    of all layers (SUPERB).
    """

    kind = "classify"
    metrics: tuple[Metric, ...] = (Metric("accuracy", higher_is_better=True),)

    def __init__(
        self, *, label: str = "label", weighted_layers: bool = False, projection_size: int = 256
    ) -> None:
        """
        Args:
            label: column of the manifest that holds the class.
            weighted_layers: classify a softmax-weighted sum of the encoder's input and every block
                instead of the last block.
            projection_size: width of the layer before the mean.
        """
        if label not in LABELS:
            raise ConfigError(
                f"task.label={label!r} is not a column with classes; expected one of "
                f"{', '.join(LABELS)}{did_you_mean(label, list(LABELS))}"
            )
        self.label = label
        self.needs_all_layers = weighted_layers
        self.projection_size = projection_size
        self.classes: list[str] = []

    def fit(self, manifest: Manifest, rows: NDArray[np.int64], grid: FrameGrid) -> Examples:
        """The classes are the values of the label column in the training rows, sorted."""
        names = self._names(manifest, rows)
        self.classes = sorted(set(names))
        if len(self.classes) < 2:
            raise DataError(
                f"{manifest.path}: all {len(rows)} training utterances have {self.label} "
                f"{names[0]!r}; expected at least two classes: choose another task.label of "
                f"{', '.join(LABELS)}"
            )
        return self._examples(rows, names)

    def examples(self, manifest: Manifest, rows: NDArray[np.int64]) -> Examples:
        """All rows. A class that does not occur in training is an error: it cannot be predicted."""
        names = self._names(manifest, rows)
        unseen = sorted(set(names) - set(self.classes))
        if unseen:
            split = manifest[int(rows[0])].split
            some = ", ".join(unseen[:5]) + (", ..." if len(unseen) > 5 else "")
            raise DataError(
                f"{manifest.path}: split {split!r} has {len(unseen)} {self.label} values that "
                f"training has not ({some}); classes must be the same: choose a split with the "
                "speakers or labels of training, such as test_split=valid"
            )
        return self._examples(rows, names)

    def head(self, config: HubertConfig) -> ClassificationHead:
        """Optional layer weights, a projection, the mean over frames and a linear layer."""
        return ClassificationHead(
            config.hidden_size,
            len(self.classes),
            projection_size=self.projection_size,
            n_layers=config.num_hidden_layers,
            weighted_layers=self.needs_all_layers,
        )

    def logits(self, head: nn.Module, output: HubertOutput, valid: Tensor | None) -> Tensor:
        """(B, K)."""
        return head(output, valid)

    def loss(
        self, logits: Tensor, num_frames: Tensor, labels: Tensor, label_lengths: Tensor
    ) -> Tensor:
        """Cross-entropy in fp32, summed over utterances."""
        return F.cross_entropy(logits.float(), labels[:, 0], reduction="sum")

    def predict(self, logits: Tensor) -> str:
        """The most probable class of one utterance, ``logits`` (1, K)."""
        return self.classes[int(logits[0].argmax())]

    def score(self, references: Sequence[str], predictions: Sequence[str]) -> dict[str, float]:
        """Share of utterances whose class is right."""
        return {"accuracy": accuracy(references, predictions)}

    def card(self) -> dict[str, Any]:
        """The classes in the order of the output, and where they came from."""
        return {"classes": list(self.classes), "label": self.label}

    def table(
        self, ids: Sequence[str], references: Sequence[str], predictions: Sequence[str]
    ) -> tuple[str, str]:
        """predictions.tsv."""
        lines = [
            (id_, reference, prediction, reference == prediction)
            for id_, reference, prediction in zip(ids, references, predictions, strict=True)
        ]
        return "predictions.tsv", tab_separated(("id", "reference", "prediction", "right"), lines)

    def _names(self, manifest: Manifest, rows: NDArray[np.int64]) -> list[str]:
        names = strings(manifest, self.label, rows)
        missing = [int(row) for row, name in zip(rows, names, strict=True) if not name]
        if missing:
            first = manifest[missing[0]]
            raise DataError(
                f"{manifest.path}: {len(missing)} of {len(rows)} utterances of split "
                f"{first.split!r} have no {self.label}, the first is {first.id!r}; classification "
                "needs one each: choose another task.label or give the corpus that column"
            )
        return names

    def _examples(self, rows: NDArray[np.int64], names: list[str]) -> Examples:
        numbers = {name: number for number, name in enumerate(self.classes)}
        return Examples(rows, names, [[numbers[name]] for name in names])
