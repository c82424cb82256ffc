"""Multi-label task: any number of classes per utterance (audio events, topics). B utterances, K
classes.
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
from hubert_pretrain.errors import ConfigError, DataError
from hubert_pretrain.fields import positive, share
from hubert_pretrain.finetune.classify import label_faults
from hubert_pretrain.finetune.metrics import (
    exact_match,
    mean_average_precision,
    multi_label_f1,
)
from hubert_pretrain.finetune.task import (
    Examples,
    Metric,
    Prediction,
    Results,
    strings,
    tab_separated,
)
from hubert_pretrain.finetune.utterance import (
    CLASS_WEIGHTS,
    LABELS,
    ClassWeights,
    Label,
    Pooling,
    UtteranceTask,
    check_choice,
    some_of,
)
from hubert_pretrain.frames import FrameGrid

log = logging.getLogger(__name__)


class MultiLabelTask(UtteranceTask):
    """Several classes per utterance, each on its own: binary cross-entropy, mean average
    precision.
    """

    problem = "multi_label_classification"
    summary = "fine-tuned to give utterances several labels"
    metrics: tuple[Metric, ...] = (
        Metric("map", higher_is_better=True, percent=True),
        Metric("macro_f1", higher_is_better=True, percent=True, hub="f1"),
        Metric("micro_f1", higher_is_better=True, percent=True),
        Metric("exact_match", higher_is_better=True, percent=True),
    )
    exports = ("huggingface", "s3prl", "torchaudio", "onnx", "torch")

    def __init__(
        self,
        *,
        label: Label = "label",
        separator: str = ";",
        threshold: Annotated[float, share] = 0.5,
        weighted_layers: bool = False,
        projection_size: Annotated[int, positive] = 256,
        pooling: Pooling = "mean",
        class_weights: ClassWeights = "none",
    ) -> None:
        """
        Args:
            label: column of the manifest that holds the labels.
            separator: between the labels of an utterance, e.g. "music;speech".
            threshold: a class is predicted from this probability on.
            weighted_layers: see ClassifyTask.
            projection_size: width of the layer before the pooling.
            pooling: see ClassifyTask.
            class_weights: balanced: the utterances with a class weigh as much in its loss as those
                without.
        """
        super().__init__(
            label=label,
            weighted_layers=weighted_layers,
            projection_size=projection_size,
            pooling=pooling,
        )
        check_choice("class_weights", class_weights, CLASS_WEIGHTS)
        if not separator.strip():
            raise ConfigError(
                f"task.separator={separator!r}: expected a character that no label has, e.g. ';'"
            )
        self.separator = separator
        self.threshold = threshold
        self.class_weights = class_weights
        self._weights: Tensor | None = None

    def fit(self, corpus: Corpus, rows: NDArray[np.int64], grid: FrameGrid) -> Examples:
        """The classes are the labels of the training rows, sorted."""
        sets = self._sets(corpus, rows)
        counts = Counter(name for names in sets for name in names)
        if self._adopted:
            self._refuse_unseen(corpus, rows, sets)
        else:
            self._check(corpus, sets, counts)
            self.classes = sorted(counts)
        if self.class_weights == "balanced":
            positives = torch.tensor([float(counts[name]) for name in self.classes])
            self._weights = (len(sets) - positives).clamp_min(1.0) / positives.clamp_min(1.0)
        return self._examples(rows, sets)

    def examples(self, corpus: Corpus, rows: NDArray[np.int64], grid: FrameGrid) -> Examples:
        """All rows. A label that does not occur in training is an error: it cannot be predicted."""
        sets = self._sets(corpus, rows)
        self._refuse_unseen(corpus, rows, sets)
        return self._examples(rows, sets)

    def loss(
        self, logits: Tensor, num_frames: Tensor, labels: Tensor, label_lengths: Tensor
    ) -> Tensor:
        """Binary cross-entropy in fp32: mean over classes, summed over utterances."""
        if self._weights is not None:
            self._weights = self._weights.to(logits.device)
        targets = many_hot(labels, label_lengths, logits.shape[1])
        losses = F.binary_cross_entropy_with_logits(
            logits.float(), targets, pos_weight=self._weights, reduction="none"
        )
        return losses.mean(1).sum()

    def predict(self, logits: Tensor) -> Prediction:
        """The classes of one utterance, ``logits`` (1, K), and the probabilities of all."""
        probabilities = logits[0].float().sigmoid().cpu().numpy()
        chosen = np.flatnonzero(probabilities >= self.threshold)
        return Prediction(self.separator.join(self.classes[i] for i in chosen), probabilities)

    def score(self, results: Results) -> dict[str, float]:
        """Mean over classes of the average precision; F1 and share of utterances with exactly the
        right classes at the threshold; and the mean average precision of saying nothing useful.
        """
        truth = self._truth(results.references)
        predicted = self._truth(results.texts)
        positives = truth.mean(0)
        return {
            "map": mean_average_precision(truth, results.values),
            "macro_f1": multi_label_f1(truth, predicted, "macro"),
            "micro_f1": multi_label_f1(truth, predicted, "micro"),
            "exact_match": exact_match(truth, predicted),
            "chance_map": float(positives[positives > 0].mean()) if positives.any() else 0.0,
        }

    def errors(self, results: Results) -> NDArray[np.float64]:
        """Share of wrong classes among those of the reference or the prediction."""
        truth = self._truth(results.references)
        predicted = self._truth(results.texts)
        either = (truth | predicted).sum(1)
        return np.asarray((truth ^ predicted).sum(1) / np.maximum(1, either))

    def warnings(self, results: Results) -> list[str]:
        """A model that says nothing at all, or the same of each utterance."""
        texts = results.texts
        if len(set(texts)) > 1 or len(set(results.references)) == 1:
            return []
        shown = repr(texts[0]) if texts[0] else "empty"
        return [
            f"all {len(texts)} predictions are {shown}: nothing is learnt yet, or no probability "
            f"reaches task.threshold={self.threshold:g}; raise steps or learning_rate, or lower it"
        ]

    def tables(self, results: Results) -> dict[str, str]:
        """predictions.tsv, with the probability of each class."""
        rows = zip(results.ids, results.references, results.texts, results.values, strict=True)
        lines = [
            (id_, reference, prediction, *(f"{value:.4f}" for value in values))
            for id_, reference, prediction, values in rows
        ]
        header = ("id", "reference", "prediction", *self.classes)
        return {"predictions.tsv": tab_separated(header, lines)}

    def _sets(self, corpus: Corpus, rows: NDArray[np.int64]) -> list[list[str]]:
        """The labels of each utterance, sorted; none for an empty cell."""
        cells = strings(corpus.manifest, self.label, rows)
        return [
            sorted({name.strip() for name in cell.split(self.separator)} - {""}) for cell in cells
        ]

    def _check(self, corpus: Corpus, sets: list[list[str]], counts: Counter[str]) -> None:
        """Raises DataError when the training rows have no labels, or none that tells utterances
        apart; warns of labels that are not what they should be.
        """
        place = corpus.manifest.path
        without = sum(not names for names in sets)
        if not counts:
            raise DataError(
                f"{place}: none of the {len(sets)} training utterances has a {self.label}; choose "
                f"another task.label of {', '.join(LABELS)}, or give the corpus that column"
            )
        lists = sorted(name for name in counts if name.startswith("[") or name.endswith("]"))
        if lists:
            raise DataError(
                f"{place}: {len(lists)} {self.label} values are lists written as text "
                f"({some_of(lists)}); write the labels alone, separated by task.separator="
                f"{self.separator!r}"
            )
        if len({tuple(names) for names in sets}) < 2:
            raise DataError(
                f"{place}: all {len(sets)} training utterances have {self.label} "
                f"{self.separator.join(sets[0])!r}; expected labels that differ: choose another "
                "task.label"
            )
        if max(map(len, sets)) < 2:
            others = sorted({mark for mark in ",|/ " if any(mark in name for name in counts)})
            hint = ""
            if others:
                hint = f" (they hold {' and '.join(map(repr, others))}: is one the separator?)"
            log.warning(
                "%s: no training utterance has two labels: %s is separated by "
                "task.separator=%r%s; for one label each choose finetune/classify",
                place,
                self.label,
                self.separator,
                hint,
            )
        if without:
            log.warning(
                "%s: %d of %d training utterances have no %s, so every class is absent in them",
                place,
                without,
                len(sets),
                self.label,
            )
        everywhere = [name for name in sorted(counts) if counts[name] == len(sets)]
        if everywhere:
            log.warning(
                "%s: every training utterance has %s: a class without a counter-example",
                place,
                some_of(everywhere),
            )
        for message in label_faults(list(counts.elements()), self.label):
            log.warning("%s: %s", place, message)

    def _examples(self, rows: NDArray[np.int64], sets: list[list[str]]) -> Examples:
        numbers = {name: number for number, name in enumerate(self.classes)}
        return Examples(
            rows,
            [self.separator.join(names) for names in sets],
            [[numbers[name] for name in names] for names in sets],
        )

    def _truth(self, texts: Sequence[str]) -> NDArray[np.bool_]:
        """(N, K), True where the text names the class."""
        named = [set(text.split(self.separator)) for text in texts]
        return np.array([[name in names for name in self.classes] for names in named])


def many_hot(labels: Tensor, label_lengths: Tensor, classes: int) -> Tensor:
    """Class numbers (B, U), of which the first `label_lengths` (B,) count -> (B, K) of 0 and 1."""
    real = torch.arange(labels.shape[1], device=labels.device) < label_lengths[:, None]
    targets = torch.zeros(len(labels), classes, device=labels.device)
    return targets.scatter_add_(1, labels, real.float()).clamp_max_(1.0)
