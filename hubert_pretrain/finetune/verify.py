"""Speaker verification: embeddings of utterances, trained to tell the speakers of training apart,
scored by trials. B utterances, E width of an embedding, K speakers, N utterances of a split.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from hubert_pretrain.data.corpus import Corpus
from hubert_pretrain.data.manifest import Manifest
from hubert_pretrain.errors import ArtefactError, ConfigError, DataError, did_you_mean
from hubert_pretrain.evaluation.analysis import Analysis
from hubert_pretrain.evaluation.bootstrap import Sampling
from hubert_pretrain.evaluation.trials import Trials, analyse_trials
from hubert_pretrain.evaluation.utterances import ScoredUtterances
from hubert_pretrain.fields import positive, zero_or_more
from hubert_pretrain.finetune.task import (
    Examples,
    Metric,
    Prediction,
    Results,
    Task,
    strings,
    tab_separated,
)
from hubert_pretrain.finetune.utterance import Pooling, cells, check_choice, some_of
from hubert_pretrain.formats.trials import Trial, match_names, read_trials
from hubert_pretrain.frames import FrameGrid
from hubert_pretrain.model.config import HubertConfig
from hubert_pretrain.model.heads import SpeakerHead, TaskHead
from hubert_pretrain.model.hubert import HubertOutput
from hubert_pretrain.model.pooling import POOLINGS
from hubert_pretrain.seeds import generator

SpeakerLabel = Literal["speaker", "label"]
"""Columns of a manifest that can name the speaker."""
GUESSING = 0.45
"""An equal error rate above it is hardly better than that of a coin."""

log = logging.getLogger(__name__)


class VerifyTask(Task):
    """Tell whether two utterances are of one speaker, by the cosine of their embeddings: additive
    margin softmax over the speakers of training (Wang et al. 2018), as in SUPERB.
    """

    kind = SpeakerHead.kind
    summary = "fine-tuned to embed voices: the cosine of two embeddings scores a trial"
    metrics: tuple[Metric, ...] = (
        Metric("eer", higher_is_better=False, percent=True),
        Metric("min_dcf", higher_is_better=False),
    )
    exports = ("huggingface", "s3prl", "torchaudio", "onnx", "torch")

    def __init__(
        self,
        *,
        label: SpeakerLabel = "speaker",
        trials: Mapping[str, str] | None = None,
        max_trials: Annotated[int, positive] = 20000,
        weighted_layers: bool = False,
        projection_size: Annotated[int, positive] = 512,
        embedding_size: Annotated[int, positive] = 192,
        pooling: Pooling = "attentive",
        scale: Annotated[float, positive] = 30.0,
        margin: Annotated[float, zero_or_more] = 0.2,
    ) -> None:
        """
        Args:
            label: column of the manifest that holds the speaker.
            trials: list of a split, e.g. {test: veri_test.txt}, with lines such as `1 a.wav b.wav`
                or `a b target`; other splits get trials of their own utterances.
            max_trials: of a split without a list; from more pairs so many are drawn, half of them
                of one speaker where there are enough.
            weighted_layers: see ClassifyTask.
            projection_size: width of the layer before the pooling.
            embedding_size: width of an embedding.
            pooling: of frames; mean, attentive (mean and standard deviation under learnt weights),
                or xvector: five layers over time, mean and standard deviation, two layers (SUPERB).
            scale: of the cosines before the softmax.
            margin: by which the cosine with the right speaker must exceed the others.
        """
        check_choice("pooling", pooling, tuple(POOLINGS))
        self.label = label
        self.needs_all_layers = weighted_layers
        self.projection_size = projection_size
        self.embedding_size = embedding_size
        self.pooling = pooling
        self.scale = scale
        self.margin = margin
        self.max_trials = max_trials
        self.lists = dict(trials or {})
        self.speakers: list[str] = []
        """Of training, in the order of the head's rows."""
        self._adopted = ""  # the place of the model that the speakers come from
        self._trials: dict[str, list[Trial]] = {}  # of each split, by ids

    # -- labels

    def adopt(self, card: Mapping[str, Any], where: str) -> None:
        """Take the speakers of another model, in the order of its head."""
        self.speakers = [str(name) for name in card.get("speakers", [])]
        if not self.speakers:
            raise ArtefactError(
                f"{where}: does not list the speakers of its head, so start_head=keep cannot go on "
                "with it; set start_head=new"
            )
        self._adopted = where

    def fit(self, corpus: Corpus, rows: NDArray[np.int64], grid: FrameGrid) -> Examples:
        """The classes are the speakers of the training rows, sorted."""
        place = corpus.manifest.path
        for split in self.lists:
            if split not in corpus.manifest.splits:
                raise ConfigError(
                    f"task.trials.{split}: {place} has no such split"
                    f"{did_you_mean(split, list(corpus.manifest.splits))}, it has "
                    f"{', '.join(corpus.manifest.splits)}; name the split of the list"
                )
        names = cells(corpus, rows, self.label)
        counts = Counter(names)
        if self._adopted:
            unseen = sorted(set(names) - set(self.speakers))
            if unseen:
                raise DataError(
                    f"{place}: training has {len(unseen)} speakers that the head of "
                    f"{self._adopted} has not ({some_of(unseen)}); to train on them set "
                    "start_head=new"
                )
            return self._examples(rows, names)
        if len(counts) < 2:
            raise DataError(
                f"{place}: all {len(rows)} training utterances are of {self.label} {names[0]!r}; "
                "expected several speakers: choose another task.label or corpus"
            )
        if max(counts.values()) < 2:
            raise DataError(
                f"{place}: each of the {len(rows)} training utterances has a {self.label} of its "
                f"own ({some_of(sorted(counts))}); expected several of each speaker: choose "
                "another task.label, or split recordings into utterances"
            )
        self.speakers = sorted(counts)
        single = [name for name in self.speakers if counts[name] == 1]
        if single:
            log.warning(
                "%s: %d of %d training speakers have one utterance (%s)",
                place,
                len(single),
                len(counts),
                some_of(single),
            )
        return self._examples(rows, names)

    def examples(self, corpus: Corpus, rows: NDArray[np.int64], grid: FrameGrid) -> Examples:
        """All rows, with the trials of their split. Speakers may be new: their utterances have no
        loss then, but embeddings.
        """
        manifest = corpus.manifest
        split = manifest[int(rows[0])].split
        ids = strings(manifest, "id", rows)
        if split in self.lists:
            names = strings(manifest, self.label, rows)
            self._trials[split] = self._listed(self.lists[split], ids, names)
        else:
            names = cells(corpus, rows, self.label)
            self._trials[split] = self._drawn(corpus, split, ids, names)
        return self._examples(rows, names)

    def compare(self, manifest: Manifest, train: Examples, test: Examples) -> None:
        """Warn of speakers that training and test share."""
        shared = sorted(set(train.references) & set(test.references))
        if shared:
            log.warning(
                "%s: %d of %d test speakers are in training too (%s); read the scores as those of "
                "known voices, or split by speakers",
                manifest.path,
                len(shared),
                len(set(test.references)),
                some_of(shared),
            )

    # -- head and loss

    def head(self, config: HubertConfig) -> SpeakerHead:
        """Optional layer weights, a projection, pooling over frames, an embedding, and a direction
        for each speaker.
        """
        return SpeakerHead(
            config.hidden_size,
            len(self.speakers),
            projection_size=self.projection_size,
            embedding_size=self.embedding_size,
            n_layers=config.num_hidden_layers if self.needs_all_layers else 0,
            weighted_layers=self.needs_all_layers,
            pooling=self.pooling,
        )

    def logits(self, head: TaskHead, output: HubertOutput, valid: Tensor | None) -> Tensor:
        """(B, E + K): embeddings of length 1, and their cosines with the speakers of training."""
        assert isinstance(head, SpeakerHead)
        embeddings = head.embed(output, valid)
        return torch.cat([F.normalize(embeddings, dim=-1), head.cosines(embeddings)], dim=1)

    def loss(
        self, logits: Tensor, num_frames: Tensor, labels: Tensor, label_lengths: Tensor
    ) -> Tensor:
        """Cross-entropy of scale x (cosine - margin of the right speaker), in fp32, summed over
        utterances.
        """
        cosines = logits[:, -len(self.speakers) :].float()
        right = F.one_hot(labels[:, 0], cosines.shape[1])
        margins = self.scale * (cosines - self.margin * right)
        return F.cross_entropy(margins, labels[:, 0], reduction="sum")

    # -- predictions and scores

    def predict(self, logits: Tensor) -> Prediction:
        """The embedding of one utterance, ``logits`` (1, E + K), and the nearest training
        speaker.
        """
        embedding, cosines = (
            logits[0].float().split([logits.shape[1] - len(self.speakers), len(self.speakers)])
        )
        return Prediction(self.speakers[int(cosines.argmax())], embedding.cpu().numpy())

    def score(self, results: Results) -> dict[str, float]:
        """Equal error rate and smallest detection cost of the trials of these utterances."""
        eer, min_dcf = self._trials_of(results).rates()
        return {"eer": eer, "min_dcf": min_dcf}

    def analyse(self, results: Results, scored: ScoredUtterances, sampling: Sampling) -> Analysis:
        """Both with intervals by utterance and by speaker, the speakers, the hardest trials."""
        return analyse_trials(scored, self._trials_of(results), sampling)

    def warnings(self, results: Results) -> list[str]:
        """Embeddings that tell nobody apart."""
        trials = self._trials_of(results)
        eer, _ = trials.rates()
        if not eer > GUESSING:
            return []
        return [
            f"the equal error rate of {len(trials)} trials is {eer:.0%}, that of guessing: nothing "
            "is learnt yet; raise steps or learning_rate, and check that speakers belong to their "
            "audio"
        ]

    def tables(self, results: Results) -> dict[str, str]:
        """predictions.tsv with the nearest training speaker, trials.tsv with the scores."""
        nearest = zip(results.ids, results.references, results.texts, strict=True)
        trials = self._trials_of(results)
        lines = [
            (int(is_target), f"{score:.6f}", results.ids[first], results.ids[second])
            for first, second, is_target, score in zip(
                trials.first, trials.second, trials.is_target, trials.scores, strict=True
            )
        ]
        return {
            "predictions.tsv": tab_separated(("id", "reference", "nearest"), list(nearest)),
            "trials.tsv": tab_separated(("target", "score", "first", "second"), lines),
        }

    def card(self) -> dict[str, Any]:
        """The speakers of training, in the order of the head, and where they came from."""
        return {"speakers": list(self.speakers), "label": self.label}

    # -- trials

    def _examples(self, rows: NDArray[np.int64], names: Sequence[str]) -> Examples:
        numbers = {name: number for number, name in enumerate(self.speakers)}
        known = [name in numbers for name in names]
        without_loss = frozenset(np.flatnonzero(~np.array(known)).tolist())
        labels = [[numbers.get(name, 0)] for name in names]
        return Examples(rows, list(names), labels, without_loss)

    def _listed(self, path: str, ids: Sequence[str], names: Sequence[str]) -> list[Trial]:
        """The trials of a list, by the ids of the utterances."""
        trials = read_trials(path)
        number = match_names((name for trial in trials for name in trial[:2]), ids, path)
        found = []
        contradictions = []
        for trial in trials:
            first = number[trial.first]
            second = number[trial.second]
            found.append(Trial(ids[first], ids[second], trial.is_target))
            both = names[first], names[second]
            if all(both) and (both[0] == both[1]) != trial.is_target:
                contradictions.append(f"{trial.first} {trial.second}")
        if contradictions:
            log.warning(
                "%s: %d of %d trials contradict the corpus's column %s (%s); one of them is wrong",
                path,
                len(contradictions),
                len(trials),
                self.label,
                some_of(contradictions),
            )
        return found

    def _drawn(
        self, corpus: Corpus, split: str, ids: Sequence[str], names: Sequence[str]
    ) -> list[Trial]:
        """All pairs of a split, or some of either kind: the same in every run. Raises DataError
        when one kind of pairs does not exist.
        """
        order = sorted(range(len(ids)), key=lambda place: ids[place])
        speakers = np.unique([names[place] for place in order], return_inverse=True)[1]
        counts = np.bincount(speakers)
        n_targets = int((counts * (counts - 1) // 2).sum())
        n_others = len(order) * (len(order) - 1) // 2 - n_targets
        if not n_targets or not n_others:
            found = f"each of its {len(order)} utterances has a {self.label} of its own"
            if n_targets:
                found = f"all its {len(order)} utterances are of {self.label} {names[0]!r}"
            raise DataError(
                f"{corpus.manifest.path}: split {split!r} gives no trials of "
                f"{'two speakers' if n_targets else 'one speaker'}: {found}; choose another split, "
                f"or give it a list: task.trials={{{split}: FILE}}"
            )
        count = min(n_targets, max(self.max_trials // 2, self.max_trials - n_others))
        source = generator("trials", split)
        chosen = [
            *_pairs(speakers, same=True, count=count, source=source),
            *_pairs(speakers, same=False, count=self.max_trials - count, source=source),
        ]
        return [
            Trial(ids[order[first]], ids[order[second]], bool(speakers[first] == speakers[second]))
            for first, second in chosen
        ]

    def _trials_of(self, results: Results) -> Trials:
        """The trials between these utterances, with the cosines of their embeddings."""
        number = {id_: place for place, id_ in enumerate(results.ids)}
        chosen = [
            trial
            for trials in self._trials.values()
            for trial in trials
            if trial.first in number and trial.second in number
        ]
        first = np.array([number[trial.first] for trial in chosen], dtype=np.int64)
        second = np.array([number[trial.second] for trial in chosen], dtype=np.int64)
        values = results.values.astype(np.float64)
        return Trials(
            first,
            second,
            np.array([trial.is_target for trial in chosen], dtype=bool),
            np.einsum("me,me->m", values[first], values[second]),
        )


def _pairs(
    speakers: NDArray[np.int64], *, same: bool, count: int, source: np.random.Generator
) -> list[tuple[int, int]]:
    """So many pairs of utterances of one speaker, or of two: all where there are no more.

    Pairs are numbered through, by their first utterance in the order of speakers.
    """
    order = np.argsort(speakers, kind="stable")
    ends = np.searchsorted(speakers[order], speakers[order], side="right")
    starts = np.arange(len(order)) + 1 if same else ends
    counts = (ends if same else len(order)) - starts
    totals = np.cumsum(counts)
    if totals[-1] <= count:
        numbers = np.arange(totals[-1])
    else:
        numbers = np.sort(source.choice(totals[-1], count, replace=False))
    first = np.searchsorted(totals, numbers, side="right")
    second = starts[first] + numbers - (totals - counts)[first]
    return list(zip(order[first].tolist(), order[second].tolist(), strict=True))
