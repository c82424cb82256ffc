"""Classification task: one class per utterance (speaker, keyword, language). B utterances, T
frames, K classes.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from hubert_pretrain.data.manifest import Manifest
from hubert_pretrain.errors import ArtefactError, ConfigError, DataError, did_you_mean
from hubert_pretrain.fields import positive
from hubert_pretrain.finetune.metrics import accuracy, macro_f1, unweighted_accuracy
from hubert_pretrain.finetune.task import Examples, Metric, strings, tab_separated
from hubert_pretrain.frames import FrameGrid
from hubert_pretrain.model.config import HubertConfig
from hubert_pretrain.model.heads import ClassificationHead
from hubert_pretrain.model.hubert import HubertOutput

Label = Literal["speaker", "label", "corpus"]
"""Columns of a manifest that can be classes."""
LABELS = get_args(Label)
NO_NAMES = ("nan", "none", "null", "n/a", "na", "unknown", "undefined")
"""Labels (in lower case) that stand for a missing one in tables of other programs."""
FEW = 3
"""A class with fewer training utterances is reported."""

log = logging.getLogger(__name__)


class ClassifyTask:
    """One class per utterance: mean over its real frames of the last layer, or of a learnt mixture
    of all layers (SUPERB).
    """

    kind = "classify"
    metrics: tuple[Metric, ...] = (
        Metric("accuracy", higher_is_better=True),
        Metric("unweighted_accuracy", higher_is_better=True),
        Metric("macro_f1", higher_is_better=True),
    )

    def __init__(
        self,
        *,
        label: Label = "label",
        weighted_layers: bool = False,
        projection_size: Annotated[int, positive] = 256,
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
        self._adopted = ""  # the place of the model that the classes come from

    def adopt(self, card: Mapping[str, Any], where: str) -> None:
        """Take the classes of another model, in the order of its head."""
        self.classes = [str(name) for name in card.get("classes", [])]
        if not self.classes:
            raise ArtefactError(
                f"{where}: does not list the classes of its head, so start_head=keep cannot go on "
                "with it; set start_head=new"
            )
        self._adopted = where

    def fit(self, manifest: Manifest, rows: NDArray[np.int64], grid: FrameGrid) -> Examples:
        """The classes are the values of the label column in the training rows, sorted."""
        names = self._names(manifest, rows)
        if self._adopted:
            unknown = sorted(set(names) - set(self.classes))
            if unknown:
                raise DataError(
                    f"{manifest.path}: training has {len(unknown)} {self.label} values that the "
                    f"head of {self._adopted} has not ({some_of(unknown)}); set start_head=new"
                )
            return self._examples(rows, names)
        self.classes = sorted(set(names))
        if len(self.classes) < 2:
            raise DataError(
                f"{manifest.path}: all {len(rows)} training utterances have {self.label} "
                f"{names[0]!r}; expected at least two classes: choose another task.label of "
                f"{', '.join(LABELS)}"
            )
        for message in label_faults(names, self.label):
            log.warning("%s: %s", manifest.path, message)
        return self._examples(rows, names)

    def examples(self, manifest: Manifest, rows: NDArray[np.int64], grid: FrameGrid) -> Examples:
        """All rows. A class that does not occur in training is an error: it cannot be predicted."""
        names = self._names(manifest, rows)
        unseen = sorted(set(names) - set(self.classes))
        if unseen:
            split = manifest[int(rows[0])].split
            raise DataError(
                f"{manifest.path}: split {split!r} has {len(unseen)} {self.label} values that "
                f"training has not ({some_of(unseen)}); classes must be the same: choose a split "
                "with the speakers or labels of training, such as test_split=valid"
            )
        return self._examples(rows, names)

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
        """Share of utterances whose class is right: of all, and the mean over classes; F1; and the
        accuracy of a model that always says the most frequent class.
        """
        (_, largest), *_ = Counter(references).most_common(1)
        return {
            "accuracy": accuracy(references, predictions),
            "unweighted_accuracy": unweighted_accuracy(references, predictions),
            "macro_f1": macro_f1(references, predictions),
            "largest_class": largest / len(references),
        }

    def warnings(self, references: Sequence[str], predictions: Sequence[str]) -> list[str]:
        """A model that knows one class only."""
        if len(set(predictions)) > 1 or len(set(references)) == 1:
            return []
        right = accuracy(references, predictions)
        return [
            f"all {len(predictions)} predictions are {predictions[0]!r}, which {right:.0%} of the "
            "utterances are: nothing is learnt yet; raise steps or learning_rate, and check that "
            "labels belong to their audio"
        ]

    def card(self) -> dict[str, Any]:
        """The classes in the order of the output, and where they came from."""
        return {"classes": list(self.classes), "label": self.label}

    def reports(self) -> dict[str, Any]:
        """None: labels are taken as they are."""
        return {}

    def tables(
        self, ids: Sequence[str], references: Sequence[str], predictions: Sequence[str]
    ) -> dict[str, str]:
        """predictions.tsv, and confusion.tsv with the count of each pair of classes that occurs."""
        lines = [
            (id_, reference, prediction, reference == prediction)
            for id_, reference, prediction in zip(ids, references, predictions, strict=True)
        ]
        counts = Counter(zip(references, predictions, strict=True))
        pairs = [(*pair, count) for pair, count in sorted(counts.items())]
        return {
            "predictions.tsv": tab_separated(("id", "reference", "prediction", "right"), lines),
            "confusion.tsv": tab_separated(("reference", "prediction", "utterances"), pairs),
        }

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


def label_faults(names: Sequence[str], column: str) -> list[str]:
    """Signs that the labels of the training utterances are not the classes that they should be."""
    counts = Counter(names)
    found = []
    spellings: dict[str, list[str]] = {}
    for name in sorted(counts):
        spellings.setdefault(" ".join(name.casefold().split()), []).append(name)
    alike = [same for same in spellings.values() if len(same) > 1]
    if alike:
        shown = some_of(
            [" = ".join(f"{name!r} ({counts[name]})" for name in same) for same in alike]
        )
        found.append(
            f"{len(alike)} {column} values have several spellings, each a class of its own: "
            f"{shown}; give each class one spelling"
        )
    missing = [name for name in sorted(counts) if name.casefold().strip() in NO_NAMES]
    if missing:
        shown = some_of([f"{name!r} ({counts[name]} utterances)" for name in missing])
        found.append(
            f"{column} values that mean no value are classes: {shown}; leave those utterances out, "
            "or give them a label"
        )
    small = [name for name in sorted(counts) if counts[name] < FEW]
    if small:
        shown = some_of([f"{name!r} ({counts[name]})" for name in small])
        found.append(
            f"{len(small)} of {len(counts)} classes have fewer than {FEW} training utterances: "
            f"{shown}; collect more, or leave them out"
        )
    return found


def some_of(names: Sequence[str]) -> str:
    """The first names, as a list for messages."""
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
