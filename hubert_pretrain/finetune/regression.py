"""Regression task: numbers per utterance (age, arousal and valence, a rating). B utterances, K
numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hubert_pretrain.data.corpus import Corpus
from hubert_pretrain.errors import ConfigError, DataError
from hubert_pretrain.fields import positive
from hubert_pretrain.finetune.metrics import concordance, pearson
from hubert_pretrain.finetune.task import (
    Examples,
    Metric,
    Prediction,
    Results,
    tab_separated,
)
from hubert_pretrain.finetune.utterance import Label, Pooling, UtteranceTask, number_of
from hubert_pretrain.frames import FrameGrid
from hubert_pretrain.model.config import HubertConfig
from hubert_pretrain.model.heads import ClassificationHead


class RegressionTask(UtteranceTask):
    """Numbers per utterance by least squares, in units of the training labels' standard deviation;
    the model's outputs have the units of the labels.
    """

    problem = "regression"
    summary = "fine-tuned to predict numbers of utterances"
    metrics: tuple[Metric, ...] = (
        Metric("ccc", higher_is_better=True),
        Metric("pearson", higher_is_better=True),
        Metric("mse", higher_is_better=False, hub="mse"),
    )
    exports = ("huggingface", "s3prl", "torchaudio", "onnx", "torch")

    def __init__(
        self,
        *,
        label: Label = "label",
        separator: str = ";",
        outputs: Sequence[str] = (),
        weighted_layers: bool = False,
        projection_size: Annotated[int, positive] = 256,
        pooling: Pooling = "mean",
    ) -> None:
        """
        Args:
            label: column of the manifest that holds the numbers.
            separator: between several numbers of an utterance, e.g. "0.2;0.7".
            outputs: their names, e.g. [arousal, valence]; []: the name of the column, numbered
                where there are several.
            weighted_layers: see ClassifyTask.
            projection_size: width of the layer before the pooling.
            pooling: see ClassifyTask.
        """
        super().__init__(
            label=label,
            weighted_layers=weighted_layers,
            projection_size=projection_size,
            pooling=pooling,
        )
        if not separator.strip():
            raise ConfigError(
                f"task.separator={separator!r}: expected a character that no number has, e.g. ';'"
            )
        self.separator = separator
        self.outputs = [str(name) for name in outputs]
        self._mean: list[float] = []
        self._deviation: list[float] = []

    def fit(self, corpus: Corpus, rows: NDArray[np.int64], grid: FrameGrid) -> Examples:
        """One output for each number of a training row. Their mean and standard deviation are the
        zero and the unit of the head; an adopted head has its own.
        """
        values = self._values(corpus, rows)
        count = values.shape[1]
        if self._adopted:
            self._check_count(corpus, rows, count)
            self._mean = [0.0] * count
            self._deviation = [1.0] * count
            return self._examples(rows, values)
        if self.outputs and len(self.outputs) != count:
            raise ConfigError(
                f"task.outputs names {len(self.outputs)} numbers, the {self.label} values of "
                f"{corpus.manifest.path} have {count}; name each, or leave it out"
            )
        numbered = [f"{self.label}_{number}" for number in range(count)]
        self.classes = self.outputs or ([self.label] if count == 1 else numbered)
        self._mean = values.mean(0).tolist()
        self._deviation = values.std(0).tolist()
        constant = [
            name for name, unit in zip(self.classes, self._deviation, strict=True) if unit == 0
        ]
        if constant:
            raise DataError(
                f"{corpus.manifest.path}: all {len(rows)} training utterances have the same "
                f"{', '.join(constant)}; expected numbers that differ: choose another task.label"
            )
        return self._examples(rows, values)

    def examples(self, corpus: Corpus, rows: NDArray[np.int64], grid: FrameGrid) -> Examples:
        """All rows."""
        values = self._values(corpus, rows)
        self._check_count(corpus, rows, values.shape[1])
        return self._examples(rows, values)

    def head(self, config: HubertConfig) -> ClassificationHead:
        """As for classes, with the zero and the unit of each output."""
        head = super().head(config)
        head.set_units(self._deviation, self._mean)
        return head

    def loss(
        self, logits: Tensor, num_frames: Tensor, labels: Tensor, label_lengths: Tensor
    ) -> Tensor:
        """Half the squared error in fp32, in units of the training labels' variance: mean over
        outputs, summed over utterances. (That is the negative log-likelihood of a Gaussian.)
        """
        units = torch.tensor(self._deviation, device=logits.device)
        return (((logits.float() - labels) / units).square() / 2).mean(1).sum()

    def predict(self, logits: Tensor) -> Prediction:
        """The numbers of one utterance, ``logits`` (1, K)."""
        values = logits[0].float().cpu().numpy()
        return Prediction(self.separator.join(f"{value:.6g}" for value in values), values)

    def score(self, results: Results) -> dict[str, float]:
        """Concordance (Lin 1989), correlation and mean squared error, means over outputs; and the
        error of always saying the mean of these references.
        """
        truth = self._numbers(results.references)
        errors = (truth - results.values) ** 2
        return {
            "ccc": concordance(truth, results.values),
            "pearson": pearson(truth, results.values),
            "mse": float(errors.mean()),
            "constant_mse": float(truth.var(0).mean()),
        }

    def errors(self, results: Results) -> NDArray[np.float64]:
        """Absolute error, mean over outputs, in the units of the labels."""
        errors = np.abs(self._numbers(results.references) - results.values)
        return np.asarray(errors.mean(1))

    def warnings(self, results: Results) -> list[str]:
        """A model that says the same of each utterance."""
        truth = self._numbers(results.references)
        spread = results.values.std(0) > 1e-3 * truth.std(0)
        if len(results) < 2 or spread.any():
            return []
        return [
            f"all {len(results)} predictions are about {results.texts[0]}: nothing is learnt yet; "
            "raise steps or learning_rate, and check that labels belong to their audio"
        ]

    def tables(self, results: Results) -> dict[str, str]:
        """predictions.tsv, with reference and prediction of each output."""
        truth = self._numbers(results.references)
        header = ["id"]
        for name in self.classes:
            header += [f"{name} reference", f"{name} prediction"]
        lines = [
            [id_, *(f"{number:.6g}" for pair in zip(*rows, strict=True) for number in pair)]
            for id_, *rows in zip(results.ids, truth, results.values, strict=True)
        ]
        return {"predictions.tsv": tab_separated(header, lines)}

    def card(self) -> dict[str, Any]:
        """Also mean and standard deviation of the training labels."""
        units = {"mean": self._mean, "deviation": self._deviation}
        return {**super().card(), "training_labels": units}

    def _values(self, corpus: Corpus, rows: NDArray[np.int64]) -> NDArray[np.float64]:
        """(N, K). Raises DataError when a label is no finite number, or they are not equally
        many.
        """
        manifest = corpus.manifest
        names = self.names(corpus, rows)
        numbers = [[number_of(part) for part in name.split(self.separator)] for name in names]
        wrong = [i for i, row in enumerate(numbers) if not np.isfinite(row).all()]
        if wrong:
            shown = ", ".join(f"{manifest[int(rows[i])].id!r} ({names[i]!r})" for i in wrong[:3])
            more = ", ..." if len(wrong) > 3 else ""
            comma = " with a decimal point" if any("," in names[i] for i in wrong) else ""
            raise DataError(
                f"{manifest.path}: {len(wrong)} of {len(rows)} utterances of split "
                f"{manifest[int(rows[0])].split!r} have a {self.label} that is no finite number: "
                f"{shown}{more}; leave them out, or give them numbers{comma} (several are "
                f"separated by {self.separator!r}); for names choose finetune/classify"
            )
        counts = sorted({len(row) for row in numbers})
        if len(counts) > 1:
            first = next(i for i, row in enumerate(numbers) if len(row) != len(numbers[0]))
            raise DataError(
                f"{manifest.path}: utterances have {' or '.join(map(str, counts))} numbers each in "
                f"{self.label}, e.g. {manifest[int(rows[first])].id!r} has {names[first]!r}; "
                "expected equally many"
            )
        return np.array(numbers)

    def _check_count(self, corpus: Corpus, rows: NDArray[np.int64], count: int) -> None:
        if count != len(self.classes):
            place = self._adopted or "training"
            raise DataError(
                f"{corpus.manifest.path}: utterances of split "
                f"{corpus.manifest[int(rows[0])].split!r} have {count} numbers each in "
                f"{self.label}, {place} has {len(self.classes)}; expected equally many"
            )

    def _examples(self, rows: NDArray[np.int64], values: NDArray[np.float64]) -> Examples:
        texts = [self.separator.join(f"{number:.6g}" for number in row) for row in values]
        return Examples(rows, texts, values.tolist())

    def _numbers(self, texts: Sequence[str]) -> NDArray[np.float64]:
        return np.array([[float(part) for part in text.split(self.separator)] for text in texts])
