"""Classification task: one class per utterance (speaker, keyword, language). B utterances, T
frames, K classes.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from typing import Annotated

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from hubert_pretrain.data.corpus import Corpus
from hubert_pretrain.errors import DataError
from hubert_pretrain.evaluation.analysis import Analysis
from hubert_pretrain.evaluation.bootstrap import Sampling
from hubert_pretrain.evaluation.classes import analyse_classes
from hubert_pretrain.evaluation.utterances import ScoredUtterances
from hubert_pretrain.fields import positive, share_below_one
from hubert_pretrain.finetune.metrics import accuracy, macro_f1, unweighted_accuracy
from hubert_pretrain.finetune.task import (
    Examples,
    Metric,
    Prediction,
    Results,
    tab_separated,
)
from hubert_pretrain.finetune.utterance import (
    CLASS_WEIGHTS,
    LABELS,
    SINGLE_LABEL,
    ClassWeights,
    Label,
    Pooling,
    UtteranceTask,
    check_choice,
    number_of,
    some_of,
)
from hubert_pretrain.frames import FrameGrid

NO_NAMES = ("nan", "none", "null", "n/a", "na", "unknown", "undefined")
"""Labels (in lower case) that stand for a missing one in tables of other programs."""
FEW = 3
"""A class with fewer training utterances is reported."""
MANY_NUMBERS = 20
"""More distinct labels that are all numbers are hardly classes."""

log = logging.getLogger(__name__)


class ClassifyTask(UtteranceTask):
    """One class per utterance: mean over its real frames of the last layer, or of a learnt mixture
    of all layers (SUPERB).
    """

    problem = SINGLE_LABEL
    summary = "fine-tuned to classify utterances"
    metrics: tuple[Metric, ...] = (
        Metric("accuracy", higher_is_better=True, percent=True, hub="accuracy"),
        Metric("unweighted_accuracy", higher_is_better=True, percent=True),
        Metric("macro_f1", higher_is_better=True, percent=True, hub="f1"),
    )
    exports = ("huggingface", "s3prl", "torchaudio", "onnx", "torch")

    def __init__(
        self,
        *,
        label: Label = "label",
        weighted_layers: bool = False,
        projection_size: Annotated[int, positive] = 256,
        pooling: Pooling = "mean",
        class_weights: ClassWeights = "none",
        label_smoothing: Annotated[float, share_below_one] = 0.0,
    ) -> None:
        """
        Args:
            label: column of the manifest that holds the class.
            weighted_layers: classify a softmax-weighted sum of the encoder's input and every block
                instead of the last block.
            projection_size: width of the layer before the pooling.
            pooling: of frames; mean; attentive: their mean and standard deviation under learnt
                weights; xvector: the same without weights, after five layers over time (no class
                of transformers has the last two).
            class_weights: balanced: each class has the same weight in the loss, however many
                utterances it has.
            label_smoothing: share of the target that is spread over all classes.
        """
        super().__init__(
            label=label,
            weighted_layers=weighted_layers,
            projection_size=projection_size,
            pooling=pooling,
        )
        check_choice("class_weights", class_weights, CLASS_WEIGHTS)
        self.class_weights = class_weights
        self.label_smoothing = label_smoothing
        self._weights: Tensor | None = None

    def fit(self, corpus: Corpus, rows: NDArray[np.int64], grid: FrameGrid) -> Examples:
        """The classes are the values of the label column in the training rows, sorted."""
        names = self.names(corpus, rows)
        if self._adopted:
            self._refuse_unseen(corpus, rows, [[name] for name in names])
        else:
            self.classes = sorted(set(names))
            if len(self.classes) < 2:
                raise DataError(
                    f"{corpus.manifest.path}: all {len(rows)} training utterances have "
                    f"{self.label} {names[0]!r}; expected at least two classes: choose another "
                    f"task.label of {', '.join(LABELS)}"
                )
            for message in label_faults(names, self.label):
                log.warning("%s: %s", corpus.manifest.path, message)
        if self.class_weights == "balanced":
            self._weights = balanced_weights(names, self.classes)
        return self._examples(rows, names)

    def examples(self, corpus: Corpus, rows: NDArray[np.int64], grid: FrameGrid) -> Examples:
        """All rows. A class that does not occur in training is an error: it cannot be predicted."""
        names = self.names(corpus, rows)
        self._refuse_unseen(corpus, rows, [[name] for name in names])
        return self._examples(rows, names)

    def loss(
        self, logits: Tensor, num_frames: Tensor, labels: Tensor, label_lengths: Tensor
    ) -> Tensor:
        """Cross-entropy in fp32, summed over utterances."""
        if self._weights is not None:
            self._weights = self._weights.to(logits.device)
        return F.cross_entropy(
            logits.float(),
            labels[:, 0],
            self._weights,
            reduction="sum",
            label_smoothing=self.label_smoothing,
        )

    def predict(self, logits: Tensor) -> Prediction:
        """The most probable class of one utterance, ``logits`` (1, K), and the log-probabilities of
        all.
        """
        log_probabilities = logits[0].float().log_softmax(-1).cpu().numpy()
        return Prediction(self.classes[int(logits[0].argmax())], log_probabilities)

    def named(self, prediction: Prediction) -> dict[str, float]:
        """Class -> its probability."""
        return dict(zip(self.classes, np.exp(prediction.values).tolist(), strict=True))

    def score(self, results: Results) -> dict[str, float]:
        """Share of utterances whose class is right: of all, and the mean over classes; F1; and the
        accuracy of a model that always says the most frequent class.
        """
        references = results.references
        predictions = results.texts
        (_, largest), *_ = Counter(references).most_common(1)
        return {
            "accuracy": accuracy(references, predictions),
            "unweighted_accuracy": unweighted_accuracy(references, predictions),
            "macro_f1": macro_f1(references, predictions),
            "largest_class": largest / len(references),
        }

    def warnings(self, results: Results) -> list[str]:
        """A model that knows one class only."""
        predictions = results.texts
        if len(set(predictions)) > 1 or len(set(results.references)) == 1:
            return []
        right = accuracy(results.references, predictions)
        return [
            f"all {len(predictions)} predictions are {predictions[0]!r}, which {right:.0%} of the "
            "utterances are: nothing is learnt yet; raise steps or learning_rate, and check that "
            "labels belong to their audio"
        ]

    def analyse(self, results: Results, scored: ScoredUtterances, sampling: Sampling) -> Analysis:
        """Accuracy, F1, a row per class, the confusion matrix."""
        return analyse_classes(scored, sampling)

    def tables(self, results: Results) -> dict[str, str]:
        """predictions.tsv, and confusion.tsv with the count of each pair of classes that occurs."""
        rows = zip(results.ids, results.references, results.texts, strict=True)
        lines = [
            (id_, reference, prediction, reference == prediction)
            for id_, reference, prediction in rows
        ]
        counts = Counter(zip(results.references, results.texts, strict=True))
        pairs = [(*pair, count) for pair, count in sorted(counts.items())]
        return {
            "predictions.tsv": tab_separated(("id", "reference", "prediction", "right"), lines),
            "confusion.tsv": tab_separated(("reference", "prediction", "utterances"), pairs),
        }

    def _examples(self, rows: NDArray[np.int64], names: list[str]) -> Examples:
        numbers = {name: number for number, name in enumerate(self.classes)}
        return Examples(rows, names, [[numbers[name]] for name in names])


def balanced_weights(names: Sequence[str], classes: Sequence[str]) -> Tensor:
    """N / (K n_k) for each class with n_k of the N utterances (scikit-learn's "balanced"), so that
    the mean over utterances is 1; 0 for a class without any.
    """
    counts = Counter(names)
    present = sum(counts[name] > 0 for name in classes)
    weights = [len(names) / (present * counts[name]) if counts[name] else 0.0 for name in classes]
    return torch.tensor(weights)


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
    numbers = [number_of(name) for name in counts]
    if len(numbers) > MANY_NUMBERS and not np.isnan(numbers).any():
        found.append(
            f"all {len(numbers)} {column} values are numbers, each a class of its own; to predict "
            "numbers choose finetune/regression"
        )
    joined = [name for name in sorted(counts) if ";" in name]
    if joined:
        found.append(
            f"{len(joined)} {column} values hold several labels ({some_of(joined)}), each "
            "combination a class of its own; to predict several labels choose finetune/multi_label"
        )
    return found
