"""Several classes per utterance, one for each slot (the action, object and location of a command),
as in SUPERB's intent classification. B utterances, K outputs of all slots.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Annotated, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from hubert_pretrain.data.corpus import Corpus
from hubert_pretrain.errors import ArtefactError, ConfigError, DataError
from hubert_pretrain.fields import positive
from hubert_pretrain.finetune.metrics import accuracy
from hubert_pretrain.finetune.task import Examples, Metric, Prediction, Results, tab_separated
from hubert_pretrain.finetune.utterance import Label, Pooling, UtteranceTask
from hubert_pretrain.frames import FrameGrid


class SlotsTask(UtteranceTask):
    """A class in each slot: the sum of the cross-entropies of the slots. An utterance is right when
    all its slots are.
    """

    problem = "slots"
    metrics: tuple[Metric, ...] = (
        Metric("accuracy", higher_is_better=True),
        Metric("slot_accuracy", higher_is_better=True),
    )
    exports = ("s3prl", "torchaudio", "onnx", "torch")

    def __init__(
        self,
        *,
        slots: Sequence[str],
        label: Label = "label",
        separator: str = "|",
        weighted_layers: bool = False,
        projection_size: Annotated[int, positive] = 256,
        pooling: Pooling = "mean",
    ) -> None:
        """
        Args:
            slots: their names in the order of a label, e.g. [action, object, location].
            label: column of the manifest that holds the values of all slots.
            separator: between them, e.g. "activate|lights|kitchen".
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
        self.slots = [str(name) for name in slots]
        wrong = [name for name in self.slots if not name or "=" in name]
        if not self.slots or wrong or len(set(self.slots)) < len(self.slots):
            raise ConfigError(
                f"task.slots={self.slots!r}: expected names that differ, without '=', such as "
                "[action, object, location]"
            )
        if not separator.strip():
            raise ConfigError(
                f"task.separator={separator!r}: expected a character that no value has, e.g. '|'"
            )
        self.separator = separator

    def adopt(self, card: Mapping[str, Any], where: str) -> None:
        """Take the values of another model, whose slots must be these."""
        super().adopt(card, where)
        found = [slot for slot, _ in self._groups()]
        if found != self.slots:
            raise ArtefactError(
                f"{where}: its head has the slots {', '.join(found)}, this task has "
                f"{', '.join(self.slots)}; set task.slots=[{','.join(found)}], or start_head=new"
            )

    @classmethod
    def settings_of(cls, extra: Mapping[str, Any]) -> dict[str, Any] | None:
        """The label column and the slots of a checkpoint of this problem."""
        found = super().settings_of(extra)
        if found is None:
            return None
        slots = dict.fromkeys(slot_of(str(name)) for name in extra.get("classes", []))
        return {**found, "slots": list(slots)}

    def fit(self, corpus: Corpus, rows: NDArray[np.int64], grid: FrameGrid) -> Examples:
        """The outputs are the values of each slot in the training rows, slot by slot, sorted."""
        values = self._values(corpus, rows)
        if not self._adopted:
            found = {name for each in values for name in each}
            self.classes = [
                name for slot in self.slots for name in sorted(found) if slot_of(name) == slot
            ]
            if max(self._sizes()) < 2:
                raise DataError(
                    f"{corpus.manifest.path}: all {len(rows)} training utterances have "
                    f"{self.label} {self._text(values[0])!r}; expected labels that differ: "
                    "choose another task.label"
                )
        return self.examples(corpus, rows, grid)

    def examples(self, corpus: Corpus, rows: NDArray[np.int64], grid: FrameGrid) -> Examples:
        """All rows. A value that does not occur in training is an error: it cannot be predicted."""
        values = self._values(corpus, rows)
        self._refuse_unseen(corpus, rows, values)
        number = {name: place for _, names in self._groups() for place, name in enumerate(names)}
        return Examples(
            rows,
            [self._text(each) for each in values],
            [[number[name] for name in each] for each in values],
        )

    def loss(
        self, logits: Tensor, num_frames: Tensor, labels: Tensor, label_lengths: Tensor
    ) -> Tensor:
        """Cross-entropy of each slot in fp32, summed over slots and utterances."""
        parts = logits.float().split(self._sizes(), dim=1)
        losses = [
            F.cross_entropy(part, labels[:, slot], reduction="sum")
            for slot, part in enumerate(parts)
        ]
        return torch.stack(losses).sum()

    def predict(self, logits: Tensor) -> Prediction:
        """The most probable value of each slot of one utterance, ``logits`` (1, K), and the
        log-probabilities of all values, each slot on its own.
        """
        parts = logits[0].float().split(self._sizes())
        chosen = [
            names[int(part.argmax())]
            for part, (_, names) in zip(parts, self._groups(), strict=True)
        ]
        values = torch.cat([part.log_softmax(0) for part in parts]).cpu().numpy()
        return Prediction(self._text(chosen), values)

    def named(self, prediction: Prediction) -> dict[str, float]:
        """Slot and value -> its probability."""
        return dict(zip(self.classes, np.exp(prediction.values).tolist(), strict=True))

    def score(self, results: Results) -> dict[str, float]:
        """Share of utterances whose slots are all right; share of slots that are; and the accuracy
        of a model that always says the most frequent combination.
        """
        pairs = zip(results.references, results.texts, strict=True)
        right = [
            truth == guess
            for reference, text in pairs
            for truth, guess in zip(
                reference.split(self.separator), text.split(self.separator), strict=True
            )
        ]
        (_, largest), *_ = Counter(results.references).most_common(1)
        return {
            "accuracy": accuracy(results.references, results.texts),
            "slot_accuracy": sum(right) / len(right),
            "largest_class": largest / len(results),
        }

    def tables(self, results: Results) -> dict[str, str]:
        """predictions.tsv."""
        lines = [
            (id_, reference, text, reference == text)
            for id_, reference, text in zip(
                results.ids, results.references, results.texts, strict=True
            )
        ]
        header = ("id", "reference", "prediction", "right")
        return {"predictions.tsv": tab_separated(header, lines)}

    def _values(self, corpus: Corpus, rows: NDArray[np.int64]) -> list[list[str]]:
        """The outputs of each utterance, one for each slot: "action=activate". Raises DataError for
        a label with another number of values.
        """
        names = self.names(corpus, rows)
        values = [[part.strip() for part in name.split(self.separator)] for name in names]
        wrong = [place for place, each in enumerate(values) if len(each) != len(self.slots)]
        if wrong:
            first = corpus.manifest[int(rows[wrong[0]])]
            raise DataError(
                f"{corpus.manifest.path}: {len(wrong)} of {len(rows)} utterances of split "
                f"{first.split!r} have another number of values than task.slots has names "
                f"({len(self.slots)}), the first is {first.id!r} with {names[wrong[0]]!r}; "
                f"expected one for each of {', '.join(self.slots)}, separated by "
                f"{self.separator!r}"
            )
        return [
            [f"{slot}={value}" for slot, value in zip(self.slots, each, strict=True)]
            for each in values
        ]

    def _groups(self) -> list[tuple[str, list[str]]]:
        """Each slot and its outputs."""
        return [(slot, list(names)) for slot, names in groupby(self.classes, slot_of)]

    def _sizes(self) -> list[int]:
        return [len(names) for _, names in self._groups()]

    def _text(self, names: Sequence[str]) -> str:
        return self.separator.join(name.partition("=")[2] for name in names)


def slot_of(name: str) -> str:
    """The slot of an output."""
    return name.partition("=")[0]
