"""Frame classification: a label for each frame, such as the phone that is spoken. B utterances, T
frames, K classes, U labels of frames.

The labels of an utterance are written as runs, `HH:4 AH:6 :3`: four frames of HH, six of AH, three
without a label.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Annotated, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from hubert_pretrain.data.corpus import Corpus
from hubert_pretrain.errors import ArtefactError, DataError
from hubert_pretrain.evaluation.analysis import Analysis
from hubert_pretrain.evaluation.bootstrap import Sampling
from hubert_pretrain.evaluation.frames import LabelledFrames, analyse_frames
from hubert_pretrain.evaluation.utterances import ScoredUtterances
from hubert_pretrain.fields import share_below_one, zero_or_more
from hubert_pretrain.finetune.metrics import word_error_rate
from hubert_pretrain.finetune.task import (
    Examples,
    Metric,
    Prediction,
    Results,
    Task,
    strings,
    tab_separated,
)
from hubert_pretrain.finetune.utterance import check_choice, some_of
from hubert_pretrain.formats.frame_labels import read_frame_labels
from hubert_pretrain.frames import FrameGrid
from hubert_pretrain.model.config import HubertConfig
from hubert_pretrain.model.heads import FrameClassificationHead

Stress = Literal["keep", "drop"]
NO_LABEL = -1
"""Number of a frame without a label."""
Runs = list[tuple[str, int]]
"""Labels of neighbouring frames, each with their number."""

log = logging.getLogger(__name__)


class FramesTask(Task):
    """The label of each frame, e.g. its phone, by cross-entropy over the frames that have one."""

    kind = FrameClassificationHead.kind
    summary = "fine-tuned to label frames"
    metrics: tuple[Metric, ...] = (
        Metric("frame_accuracy", higher_is_better=True, percent=True),
        Metric("per", higher_is_better=False, percent=True),
    )
    exports = ("huggingface", "s3prl", "torchaudio", "onnx", "torch")

    def __init__(
        self,
        *,
        label_file: str = "",
        labels_per_second: Annotated[float, zero_or_more] = 0.0,
        gap_label: str = "",
        stress: Stress = "keep",
        fold: Mapping[str, str] | None = None,
        weighted_layers: bool = False,
        dropout: Annotated[float, share_below_one] = 0.0,
    ) -> None:
        """
        Args:
            label_file: text file with a line for each utterance, its id and then a label for each
                frame; "" takes the corpus's alignments (data.alignments).
            labels_per_second: of label_file, e.g. 100; 0 stands for one label per frame of the
                model.
            gap_label: class of frames without a label, such as pauses; with "" they have no part in
                loss and scores. It is never counted as a phone.
            stress: drop the digits at the end of labels (AH0, AH1 become AH).
            fold: labels that count as another one, e.g. {ax: ah}; those that become "" count as
                gaps.
            weighted_layers: classify a softmax-weighted sum of the encoder's input and every block
                instead of the last block.
            dropout: before the linear layer.
        """
        check_choice("stress", stress, ("keep", "drop"))
        self.label_file = label_file
        self.labels_per_second = labels_per_second
        self.gap_label = gap_label
        self.stress = stress
        self.fold = dict(fold or {})
        self.needs_all_layers = weighted_layers
        self.dropout = dropout
        self.classes: list[str] = []
        self._adopted = ""  # the place of the model that the classes come from
        self._mean_labels = 1.0  # labelled frames of a training utterance

    # -- labels

    def adopt(self, card: Mapping[str, Any], where: str) -> None:
        """Take the classes of another model, in the order of its head."""
        self.classes = [str(name) for name in card.get("classes", [])]
        if not self.classes:
            raise ArtefactError(
                f"{where}: does not list the classes of its head, so start_head=keep cannot go on "
                "with it; set start_head=new"
            )
        self._adopted = where

    def fit(self, corpus: Corpus, rows: NDArray[np.int64], grid: FrameGrid) -> Examples:
        """The classes are the labels of training frames, sorted."""
        rows, found = self._read(corpus, rows, grid)
        if not self._adopted:
            self.classes = sorted({name for runs in found for name, _ in runs if name})
            if len(self.classes) < 2:
                raise DataError(
                    f"{self._place(corpus)}: all labelled frames of {len(rows)} training "
                    f"utterances have the label {self.classes[0]!r}; expected at least two: check "
                    "task.fold, or choose other labels"
                )
        self._refuse_unseen(corpus, rows, found)
        labelled = sum(count for runs in found for name, count in runs if name)
        self._mean_labels = labelled / len(rows)
        return self._examples(rows, found)

    def examples(self, corpus: Corpus, rows: NDArray[np.int64], grid: FrameGrid) -> Examples:
        """The rows that have labels. A label that training has not is an error: it cannot be
        predicted.
        """
        rows, found = self._read(corpus, rows, grid)
        self._refuse_unseen(corpus, rows, found)
        return self._examples(rows, found)

    # -- head and loss

    def head(self, config: HubertConfig) -> FrameClassificationHead:
        """Optional layer weights, dropout and a linear layer."""
        return FrameClassificationHead(
            config.hidden_size,
            len(self.classes),
            self.dropout,
            config.num_hidden_layers if self.needs_all_layers else 0,
            self.needs_all_layers,
        )

    def loss(
        self, logits: Tensor, num_frames: Tensor, labels: Tensor, label_lengths: Tensor
    ) -> Tensor:
        """Cross-entropy in fp32, summed over labelled frames, over the mean number of them in a
        training utterance: each frame has the same weight, whatever its micro-batch.
        """
        places = torch.arange(labels.shape[1], device=labels.device)
        targets = labels.masked_fill(places >= label_lengths[:, None], NO_LABEL)  # (B, U)
        frames = min(targets.shape[1], logits.shape[1])
        total = F.cross_entropy(
            logits[:, :frames].flatten(0, 1).float(),
            targets[:, :frames].flatten(),
            ignore_index=NO_LABEL,
            reduction="sum",
        )
        return total / self._mean_labels

    # -- predictions and scores

    def predict(self, logits: Tensor) -> Prediction:
        """The most probable classes of the frames of one utterance, ``logits`` (1, T, K), as
        runs.
        """
        return Prediction(as_text(runs_of(logits[0].argmax(-1).cpu().numpy(), self.classes)))

    def shown(self, results: Results) -> tuple[list[str], list[str]]:
        """The phones, one for each run of labelled frames."""
        pairs = [self._phones(*pair) for pair in self._pairs(results)]
        return [reference for reference, _ in pairs], [prediction for _, prediction in pairs]

    def score(self, results: Results) -> dict[str, float]:
        """Share of the labelled frames that are right; and the error rate of the phones that are
        left where equal neighbours are one, of labelled frames alone.
        """
        labelled = [truth != NO_LABEL for truth, _ in self._pairs(results)]
        right = [truth == guess for truth, guess in self._pairs(results)]
        return {
            "frame_accuracy": sum(int(each.sum()) for each in right)
            / sum(int(each.sum()) for each in labelled),
            "per": word_error_rate(*self.shown(results)),
        }

    def analyse(self, results: Results, scored: ScoredUtterances, sampling: Sampling) -> Analysis:
        """Frame accuracy and phone error rate, a row per phone, confusions, worst utterances."""
        frames = [LabelledFrames(*pair) for pair in self._pairs(results)]
        return analyse_frames(scored, frames, self.classes, sampling)

    def warnings(self, results: Results) -> list[str]:
        """A model that knows one class only."""
        names = {name for text in results.texts for name, _ in from_text(text)}
        if len(names) > 1:
            return []
        return [
            f"every frame of all {len(results)} utterances is taken for {names.pop()!r}: nothing "
            "is learnt yet; raise steps or learning_rate; check that labels belong to their audio"
        ]

    def tables(self, results: Results) -> dict[str, str]:
        """predictions.tsv, with the runs of frames."""
        columns = zip(results.ids, *self.shown(results), strict=True)
        lines = [
            (*cells, reference, prediction)
            for cells, reference, prediction in zip(
                columns, results.references, results.texts, strict=True
            )
        ]
        header = ("id", "reference", "prediction", "reference frames", "predicted frames")
        return {"predictions.tsv": tab_separated(header, lines)}

    def card(self) -> dict[str, Any]:
        """The classes, in the order of the head."""
        return {"classes": list(self.classes)}

    # -- reading

    def _place(self, corpus: Corpus) -> str:
        return self.label_file or str(corpus.manifest.path)

    def _read(
        self, corpus: Corpus, rows: NDArray[np.int64], grid: FrameGrid
    ) -> tuple[NDArray[np.int64], list[Runs]]:
        """The rows with labels, and those as runs. Raises DataError when none has any."""
        manifest = corpus.manifest
        split = manifest[int(rows[0])].split
        if not self.label_file and corpus.alignments is None:
            raise DataError(
                f"{manifest.path}: the corpus has no alignments, so its {len(rows)} utterances "
                f"of split {split!r} have no labels; give it some with data.alignments=PATH "
                "(made by `hubert-pretrain align`), or labels with task.label_file=FILE"
            )
        source = self._of_file if self.label_file else self._of_alignments
        labelled = []
        found = []
        for row, given in source(corpus, rows, grid):
            runs = merged((self._folded(name), count) for name, count in given)
            if any(name for name, _ in runs):
                labelled.append(row)
                found.append(runs)
        if not labelled:
            raise DataError(
                f"{self._place(corpus)}: none of the {len(rows)} utterances of split {split!r} has "
                "a label in any frame; give them labels, choose another split, or check task.fold"
            )
        if len(labelled) < len(rows):
            without = strings(manifest, "id", np.setdiff1d(rows, labelled))
            log.warning(
                "%s: %d of %d utterances of split %r have no labels (%s); left out",
                self._place(corpus),
                len(without),
                len(rows),
                split,
                some_of(without),
            )
        return np.array(labelled, dtype=np.int64), found

    def _of_alignments(
        self, corpus: Corpus, rows: NDArray[np.int64], grid: FrameGrid
    ) -> Iterator[tuple[int, Runs]]:
        """The labels of the frames of each aligned row."""
        alignments = corpus.alignments
        assert alignments is not None
        names = [*alignments.phones, ""]
        for row in rows.tolist():
            if alignments.has(row):
                frames = int(grid.num_frames(corpus.manifest.number("num_samples", row)))
                yield row, runs_of(alignments.frame_phone_ids(row, frames, grid), names)

    def _of_file(
        self, corpus: Corpus, rows: NDArray[np.int64], grid: FrameGrid
    ) -> Iterator[tuple[int, Runs]]:
        """The same of `label_file`."""
        ids = strings(corpus.manifest, "id", rows)
        samples = corpus.manifest.num_samples[rows].tolist()
        lengths = dict(zip(ids, samples, strict=True))
        found = read_frame_labels(self.label_file, lengths, grid, self.labels_per_second)
        for row, id_ in zip(rows.tolist(), ids, strict=True):
            if id_ in found:
                yield row, merged((name, 1) for name in found[id_])

    def _folded(self, name: str) -> str:
        if self.stress == "drop":
            name = name.rstrip("0123456789") or name
        name = self.fold.get(name, name)
        return "_".join(name.split()) or self.gap_label

    def _refuse_unseen(
        self, corpus: Corpus, rows: NDArray[np.int64], found: Sequence[Runs]
    ) -> None:
        """Raises DataError for labels that are no output of the head."""
        known = {*self.classes, ""}
        unseen = [{name for name, _ in runs} - known for runs in found]
        if not any(unseen):
            return
        names = sorted(set().union(*unseen))
        places = [place for place, each in enumerate(unseen) if each]
        first = corpus.manifest[int(rows[places[0]])]
        place = f"the head of {self._adopted}" if self._adopted else "training"
        raise DataError(
            f"{self._place(corpus)}: {len(places)} of {len(rows)} utterances of split "
            f"{first.split!r} have labels that {place} has not ({some_of(names)}), the first is "
            f"{first.id!r}; the labels of all splits must be the same: fold them into others, e.g. "
            f'task.fold={{{names[0]}: {self.classes[0]}}}, or into "" to leave their frames out'
        )

    def _examples(self, rows: NDArray[np.int64], found: Sequence[Runs]) -> Examples:
        numbers = self._numbers
        labels = [
            np.repeat([numbers[name] for name, _ in runs], [count for _, count in runs])
            for runs in found
        ]
        small = np.int16 if len(self.classes) < np.iinfo(np.int16).max else np.int64
        return Examples(
            rows, [as_text(runs) for runs in found], [each.astype(small) for each in labels]
        )

    @property
    def _numbers(self) -> dict[str, int]:
        return {"": NO_LABEL, **{name: number for number, name in enumerate(self.classes)}}

    def _pairs(self, results: Results) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
        """The numbers of the classes of each frame: references and predictions, equally many."""
        numbers = self._numbers
        for texts in zip(results.references, results.texts, strict=True):
            truth, guess = (
                np.repeat([numbers[name] for name, _ in runs], [count for _, count in runs])
                for runs in map(from_text, texts)
            )
            frames = min(len(truth), len(guess))
            yield truth[:frames], guess[:frames]

    def _phones(self, truth: NDArray[np.int64], guess: NDArray[np.int64]) -> tuple[str, str]:
        """The phones of an utterance: equal neighbours are one, and a gap divides."""
        numbers = self._numbers
        silent = {NO_LABEL, numbers.get(self.gap_label, NO_LABEL)}
        guess = np.where(truth == NO_LABEL, NO_LABEL, guess)
        found = []
        for frames in (truth, guess):
            runs = [number for number, _ in groupby(frames.tolist())]
            found.append(" ".join(self.classes[each] for each in runs if each not in silent))
        return found[0], found[1]


def runs_of(numbers: NDArray[Any], names: Sequence[str]) -> Runs:
    """Numbers of names, one per frame, as runs."""
    if not len(numbers):
        return []
    starts = np.flatnonzero(np.diff(numbers, prepend=numbers[0] - 1))
    counts = np.diff(starts, append=len(numbers))
    pairs = zip(numbers[starts].tolist(), counts.tolist(), strict=True)
    return [(names[number], count) for number, count in pairs]


def merged(runs: Iterable[tuple[str, int]]) -> Runs:
    """Equal neighbours as one run."""
    return [
        (name, sum(count for _, count in group))
        for name, group in groupby(runs, key=lambda run: run[0])
    ]


def as_text(runs: Runs) -> str:
    """`HH:4 AH:6 :3`."""
    return " ".join(f"{name}:{count}" for name, count in runs)


def from_text(text: str) -> Runs:
    """The reverse of `as_text`."""
    pairs = [word.rpartition(":") for word in text.split()]
    return [(name, int(count)) for name, _, count in pairs]
