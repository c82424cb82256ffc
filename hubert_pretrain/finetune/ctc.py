"""CTC task: speech recognition with a character, or a piece of a word, per frame (Graves et al.
2006). B utterances, T frames, U symbols of a text, V vocabulary.
"""

from __future__ import annotations

import dataclasses
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from hubert_pretrain.data.corpus import Corpus
from hubert_pretrain.data.manifest import Manifest
from hubert_pretrain.decoding.build import build_decoder
from hubert_pretrain.decoding.config import DecodingConfig
from hubert_pretrain.decoding.greedy import greedy_decode
from hubert_pretrain.decoding.hypothesis import Decoder
from hubert_pretrain.decoding.spelling import BLANK_ID
from hubert_pretrain.errors import ArtefactError, ConfigError, DataError, did_you_mean
from hubert_pretrain.evaluation.analysis import Analysis
from hubert_pretrain.evaluation.bootstrap import Sampling
from hubert_pretrain.evaluation.texts import analyse_texts
from hubert_pretrain.evaluation.utterances import ScoredUtterances
from hubert_pretrain.fields import positive, share, share_below_one, zero_or_more
from hubert_pretrain.finetune.metrics import (
    character_error_rate,
    share_of_empty,
    word_error_rate,
)
from hubert_pretrain.finetune.normalisation import (
    RULES_KEY,
    Case,
    Language,
    Tags,
    TextReport,
    TextRules,
    normalise,
)
from hubert_pretrain.finetune.task import (
    Examples,
    Metric,
    Prediction,
    Results,
    Task,
    strings,
    tab_separated,
)
from hubert_pretrain.finetune.text import (
    PHONES_KEY,
    Vocabulary,
    frames_needed,
    listed,
    read_vocabulary,
)
from hubert_pretrain.frames import FrameGrid
from hubert_pretrain.interop.transformers_reader import EXTRA_KEY
from hubert_pretrain.model.config import HubertConfig
from hubert_pretrain.model.heads import CTCHead

Rows = NDArray[np.int64]
Reduction = Literal["sum", "mean"]
REDUCTIONS = list(get_args(Reduction))
Units = Literal["characters", "pieces"]
UNITS = list(get_args(Units))

log = logging.getLogger(__name__)


class CtcTask(Task):
    """Speech recognition: characters or pieces of words, decoded greedily while training."""

    kind = CTCHead.kind
    summary = "fine-tuned for speech recognition with CTC"
    metrics: tuple[Metric, ...] = (
        Metric("wer", higher_is_better=False, percent=True, hub="wer"),
        Metric("cer", higher_is_better=False, percent=True, hub="cer"),
        Metric("empty", higher_is_better=False, percent=True),
    )
    more_metrics = (Metric("sentence_error_rate", higher_is_better=False, percent=True),)
    has_languages = True
    exports = ("huggingface", "fairseq", "s3prl", "torchaudio", "onnx", "torch")

    def __init__(
        self,
        *,
        final_dropout: Annotated[float, share_below_one] = 0.0,
        weighted_layers: bool = False,
        max_dropped_fraction: Annotated[float, share] = 0.01,
        reduction: Reduction = "sum",
        zero_infinity: bool = True,
        consistency_weight: Annotated[float, zero_or_more] = 0.0,
        units: Units = "characters",
        vocabulary_size: Annotated[int, positive] = 1000,
        vocabulary: str | None = None,
        case: Case = "upper",
        punctuation: str = "",
        tags: Tags = "drop",
        language: Language = "",
        lstm_layers: Annotated[int, zero_or_more] = 0,
        lstm_size: Annotated[int, positive] = 1024,
        mask_features: bool = False,
    ) -> None:
        """
        Args:
            final_dropout: before the output layer.
            weighted_layers: a softmax-weighted sum of the encoder's input and every block instead
                of the last block. No other project has that: its exports keep the head aside.
            max_dropped_fraction: training utterances without a transcript, or with one that their
                frames cannot spell, are left out and counted; a larger share of them is an error.
            reduction: see `ctc_loss`; exported as `ctc_loss_reduction`.
            zero_infinity: see `ctc_loss`; exported as `ctc_zero_infinity`.
            consistency_weight: of CR-CTC: each utterance is trained on in two views with different
                masks, which shall agree (`consistency_loss`); .2 in the paper; 0: one view.
            units: characters, or pieces: subwords by BPE of the training transcripts.
            vocabulary_size: symbols of pieces, the blank and the unknown one included.
            vocabulary: where it does not come from the training transcripts: a checkpoint, a
                vocab.json or tokenizer.json, or a text file with a character per line. Training
                utterances with other characters count as `max_dropped_fraction`.
            case: of the letters; keep: as written.
            punctuation: marks that are symbols to be learnt, e.g. ",.?!"; others separate words.
            tags: drop: <unk>, [laughter] are no speech; keep: the words in them are.
            language: tr or az: İ is the capital of i, and I that of ı.
            lstm_layers: bidirectional LSTM layers before the output layer, as in SUPERB (two); 0:
                none, as every other project expects it.
            lstm_size: width of each direction of them.
            mask_features: SUPERB's SpecAugment in training: warps the mixture of layers over time,
                and hides up to two stretches of time and four of channels of it.
        """
        if reduction not in REDUCTIONS:
            raise ConfigError(
                f"task.reduction={reduction!r}: expected one of {', '.join(REDUCTIONS)}"
                f"{did_you_mean(reduction, REDUCTIONS)}"
            )
        if units not in UNITS:
            raise ConfigError(
                f"task.units={units!r}: expected one of {', '.join(UNITS)}"
                f"{did_you_mean(units, UNITS)}"
            )
        self.units = units
        self.vocabulary_size = vocabulary_size
        self.vocabulary_path = vocabulary
        self.final_dropout = final_dropout
        self.needs_all_layers = weighted_layers
        self.lstm_layers = lstm_layers
        self.lstm_size = lstm_size
        self.mask_features = mask_features
        self.max_dropped_fraction = max_dropped_fraction
        self.reduction = reduction
        self.zero_infinity = zero_infinity
        self.consistency_weight = consistency_weight
        self.views = 2 if consistency_weight else 1
        self.rules = TextRules(case, punctuation, tags, language)
        self.vocabulary: Vocabulary | None = None
        self._adopted = ""  # the place of the model that the vocabulary comes from
        self.text_reports: dict[str, TextReport] = {}
        """Changes that normalisation made, by split."""

    def adopt(self, card: Mapping[str, Any], where: str) -> None:
        """Take the vocabulary of another model."""
        if not card.get("vocabulary"):
            raise ArtefactError(
                f"{where}: does not list the characters of its head, so start_head=keep cannot go "
                "on with it; set start_head=new"
            )
        if card.get(PHONES_KEY):
            raise ArtefactError(
                f"{where}: its symbols are phones; take the task hubert_pretrain.finetune.phones"
                ".PhoneTask (finetune/phones), or set start_head=new"
            )
        self.vocabulary = Vocabulary.of_card(card)
        self._adopted = where

    def fit(self, corpus: Corpus, rows: Rows, grid: FrameGrid) -> Examples:
        """Derive the vocabulary from the transcripts of the training rows, unless there is one, and
        leave out utterances that CTC cannot learn.
        """
        manifest = corpus.manifest
        texts = self._transcripts(corpus, rows)
        if self.vocabulary is None:
            self.vocabulary = self._derive(texts)
        is_known = self._known(manifest, texts)
        labels = [self._vocabulary.ids(text) for text in texts]
        needed, available = _frames(manifest, rows, labels, grid)
        self._check_dropped(manifest, rows[is_known], available[is_known], needed[is_known])
        chosen = np.flatnonzero(is_known & (needed > 0) & (needed <= available))
        return Examples(rows[chosen], [texts[i] for i in chosen], [labels[i] for i in chosen])

    def _derive(self, texts: list[str]) -> Vocabulary:
        """That of the recipe, or of the training transcripts."""
        if self.vocabulary_path is not None:
            self._adopted = self.vocabulary_path
            return read_vocabulary(Path(self.vocabulary_path), "task.vocabulary")
        if self.units == "characters":
            return Vocabulary.of_texts(texts)
        found = Vocabulary.of_pieces(texts, self.vocabulary_size)
        if len(found) < self.vocabulary_size:
            log.warning(
                "task.vocabulary_size=%d: the training transcripts have pairs for %d symbols only",
                self.vocabulary_size,
                len(found),
            )
        return found

    def examples(self, corpus: Corpus, rows: Rows, grid: FrameGrid) -> Examples:
        """All rows. A character that no training transcript has is reported, and can only be scored
        as an error; so is a transcript that its frames cannot spell, which has no loss.
        """
        manifest = corpus.manifest
        texts = self._transcripts(corpus, rows)
        labels = [self._vocabulary.ids(text) for text in texts]
        needed, available = _frames(manifest, rows, labels, grid)
        without_loss = np.flatnonzero(needed > available)
        if len(without_loss):
            self._report_without_loss(manifest, rows, without_loss, available, needed)
        empty = np.flatnonzero([not text for text in texts])
        if len(empty):
            log.warning(
                "%s: %d of the %d utterances of split %r have no transcript (%s); each word that "
                "is recognised there counts as an error",
                manifest.path,
                len(empty),
                len(rows),
                manifest[int(rows[0])].split,
                _ids(manifest, rows[empty]),
            )
        unknown = self._vocabulary.count_unknown(texts)
        if unknown:
            log.warning(
                "%s: split %r: %d %s of these transcripts are in no training transcript (%s); they "
                "count as errors",
                manifest.path,
                manifest[int(rows[0])].split,
                unknown.total(),
                self._characters,
                listed(unknown),
            )
        return Examples(rows, texts, labels, frozenset(without_loss.tolist()))

    @classmethod
    def settings_of(cls, extra: Mapping[str, Any]) -> dict[str, Any]:
        """The rules of the texts of a checkpoint: as it states them, else by its vocabulary."""
        return dataclasses.asdict(TextRules.of_checkpoint(extra))

    def head(self, config: HubertConfig) -> CTCHead:
        """Dropout and a linear layer D -> V, after the LSTM where there is one."""
        return CTCHead(
            config.hidden_size,
            len(self._vocabulary),
            self.final_dropout,
            config.num_hidden_layers if self.needs_all_layers else 0,
            self.needs_all_layers,
            self.lstm_layers,
            self.lstm_size,
            self.mask_features,
        )

    def loss(
        self, logits: Tensor, num_frames: Tensor, labels: Tensor, label_lengths: Tensor
    ) -> Tensor:
        """See `ctc_loss`. Summed over utterances either way. With two views of each, ``logits``
        (2B, T, V), the mean of their losses and `consistency_loss`, weighted; per label where the
        reduction is the mean.
        """
        views = len(logits) // len(labels)
        loss = ctc_loss(
            logits,
            num_frames.repeat(views),
            labels.repeat(views, 1),
            label_lengths.repeat(views),
            reduction=self.reduction,
            zero_infinity=self.zero_infinity,
        )
        loss = loss * len(labels) if self.reduction == "mean" else loss / views
        if views == 1:
            return loss
        disagreement = consistency_loss(logits, num_frames)  # (B,)
        if self.reduction == "mean":
            disagreement = disagreement / label_lengths.clamp(min=1)
        return loss + self.consistency_weight * disagreement.sum()

    def predict(self, logits: Tensor) -> Prediction:
        """The text of the best path of one utterance, ``logits`` (1, T, V)."""
        return Prediction(self._vocabulary.text(greedy_decode(logits[0])))

    def decoder(
        self, config: DecodingConfig, texts: Sequence[str] | None, grid: FrameGrid, key: str
    ) -> Decoder | None:
        """The search of these settings; None for greedy ones."""
        if config.kind == "greedy":
            return None
        vocabulary = self._vocabulary
        return build_decoder(
            config, vocabulary.symbols, texts=texts, grid=grid, key=key, spell=vocabulary.spell
        )

    def score(self, results: Results) -> dict[str, float]:
        """Word and character error rates over all utterances, and the share of utterances with
        speech for which nothing is recognised.
        """
        return {
            "wer": word_error_rate(results.references, results.texts),
            "cer": character_error_rate(results.references, results.texts),
            "empty": share_of_empty(results.references, results.texts),
        }

    def warnings(self, results: Results) -> list[str]:
        """A model that says nothing at all."""
        if any(results.texts):
            return []
        return [
            f"all {len(results)} hypotheses are empty: the model says only the blank yet; "
            "usual for the first thousands of steps, else raise steps or learning_rate, and check "
            "that texts belong to their audio"
        ]

    def card(self) -> dict[str, Any]:
        """The vocabulary, whose first symbol is the blank; the rules of its texts; and the settings
        of the loss, under the names of `transformers`.
        """
        loss = {"ctc_loss_reduction": self.reduction, "ctc_zero_infinity": self.zero_infinity}
        return {
            **self._vocabulary.card(),
            RULES_KEY: dataclasses.asdict(self.rules),
            EXTRA_KEY: loss,
        }

    def reports(self) -> dict[str, Any]:
        """normalisation.json: the rules, and the changes that they made to each split."""
        splits = {split: report.as_json() for split, report in self.text_reports.items()}
        return {"normalisation.json": {"rules": dataclasses.asdict(self.rules), "splits": splits}}

    def analyse(self, results: Results, scored: ScoredUtterances, sampling: Sampling) -> Analysis:
        """Error rates, confusions of words and characters, the worst utterances."""
        return analyse_texts(scored, sampling)

    def tables(self, results: Results) -> dict[str, str]:
        """hypotheses.tsv, with the word error rate of each utterance."""
        lines = [
            (id_, reference, hypothesis, f"{word_error_rate([reference], [hypothesis]):.4f}")
            for id_, reference, hypothesis in zip(
                results.ids, results.references, results.texts, strict=True
            )
        ]
        header = ("id", "reference", "hypothesis", "wer")
        return {"hypotheses.tsv": tab_separated(header, lines)}

    @property
    def _vocabulary(self) -> Vocabulary:
        if self.vocabulary is None:
            raise ValueError("this task has no vocabulary yet: call fit first")
        return self.vocabulary

    @property
    def _characters(self) -> str:
        """Name of what a vocabulary may lack."""
        return "phones" if self._vocabulary.phones else "characters"

    def _known(self, manifest: Manifest, texts: list[str]) -> NDArray[np.bool_]:
        """False for training transcripts with characters that a vocabulary from elsewhere has not.

        Raises DataError when those are more than may be left out.
        """
        lacking = [self._vocabulary.unknown(text) for text in texts]
        is_known = np.array([not each for each in lacking])
        dropped = int((~is_known).sum())
        if not dropped:
            return is_known
        counts = Counter(symbol for each in lacking for symbol in each)
        found = f"{dropped} of {len(texts)} training transcripts have {self._lacking(counts)}"
        if dropped > self.max_dropped_fraction * len(texts):
            raise DataError(
                f"{manifest.path}: {found}; expected at most {self.max_dropped_fraction:.1%}: "
                f"{self._unknown_fix()}, or raise task.max_dropped_fraction"
            )
        log.warning("%s: %s; left out", manifest.path, found)
        return is_known

    def _lacking(self, counts: Counter[str]) -> str:
        """The symbols that a vocabulary from elsewhere has not, for a message."""
        return (
            f"{len(counts)} {self._characters} ({listed(counts)}) that the vocabulary of "
            f"{self._adopted} has not"
        )

    def _unknown_fix(self) -> str:
        return (
            "choose task.case (upper, lower, keep) as that model was trained, take another "
            "vocabulary (start_head=new, or no task.vocabulary)"
        )

    def _check_dropped(self, manifest: Manifest, rows: Rows, available: Rows, needed: Rows) -> None:
        """Count and name the training utterances that are left out. Raises DataError when those
        are more than may be.
        """
        empty = np.flatnonzero(needed == 0)
        long = np.flatnonzero(needed > available)
        dropped = len(empty) + len(long)
        if dropped == 0:
            return
        parts = []
        if len(empty):
            parts.append(f"{len(empty)} have no transcript ({_ids(manifest, rows[empty])})")
        if len(long):
            first = long[0]
            parts.append(
                f"{len(long)} have a transcript longer than their frames can spell "
                f"({_ids(manifest, rows[long])}; the first has {available[first]} frames where "
                f"{needed[first]} are needed)"
            )
        found = f"of {len(rows)} training utterances {' and '.join(parts)}"
        if dropped > self.max_dropped_fraction * len(rows):
            raise DataError(
                f"{manifest.path}: {found}; expected at most {self.max_dropped_fraction:.1%}: "
                "check that texts belong to their audio, or raise task.max_dropped_fraction"
            )
        log.warning("%s: %s; left out", manifest.path, found)

    def _report_without_loss(
        self, manifest: Manifest, rows: Rows, positions: Rows, available: Rows, needed: Rows
    ) -> None:
        """Count and name the utterances whose frames cannot spell their transcript. Raises
        DataError when those are all.
        """
        first = positions[0]
        found = (
            f"{len(positions)} of {len(rows)} utterances of split "
            f"{manifest[int(rows[first])].split!r} have a transcript longer than their frames can "
            f"spell ({_ids(manifest, rows[positions])}); the first has "
            f"{available[first]} frames where {needed[first]} are needed"
        )
        if len(positions) == len(rows):
            raise DataError(f"{manifest.path}: {found}; check that texts belong to their audio")
        log.warning("%s: %s; they have no part in the loss", manifest.path, found)

    def _transcripts(self, corpus: Corpus, rows: Rows) -> list[str]:
        """The normalised texts. Raises DataError when none has a letter."""
        manifest = corpus.manifest
        split = manifest[int(rows[0])].split
        report = self.text_reports[split] = TextReport()
        texts = [normalise(text, self.rules, report) for text in strings(manifest, "text", rows)]
        if not any(texts):
            raise DataError(
                f"{manifest.path}: none of the {len(rows)} utterances of split {split!r} has a "
                "transcript; CTC needs them: give the corpus texts, choose another split, or "
                "fine-tune with finetune/classify"
            )
        for message in report.warnings():
            log.warning("%s: split %r: %s", manifest.path, split, message)
        return texts


def ctc_loss(
    logits: Tensor,
    num_frames: Tensor,
    labels: Tensor,
    label_lengths: Tensor,
    *,
    reduction: str = "sum",
    zero_infinity: bool = True,
) -> Tensor:
    """CTC loss in nats, in fp32, summed over utterances (fairseq's criterion, which then divides by
    the number of sentences).

    Args:
        logits: (B, T, V), blank first.
        num_frames: (B,) real frames of each row; later ones are ignored.
        labels: (B, U) ids, padded with anything.
        label_lengths: (B,) labels of each row. A row whose labels do not fit its frames contributes
            0.
        reduction: "mean" divides each row's loss by its labels and takes the mean over rows
            (`transformers`' ctc_loss_reduction).
        zero_infinity: False lets a row that does not fit make the loss infinite (`transformers`'
            ctc_zero_infinity).
    """
    log_probabilities = F.log_softmax(logits.float(), dim=-1).transpose(0, 1)  # (T, B, V)
    # cuDNN's CTC is not deterministic and has no zero_infinity.
    with torch.backends.cudnn.flags(enabled=False):
        return F.ctc_loss(
            log_probabilities,
            labels,
            num_frames,
            label_lengths,
            blank=BLANK_ID,
            reduction=reduction,
            zero_infinity=zero_infinity,
        )


def consistency_loss(logits: Tensor, num_frames: Tensor) -> Tensor:
    """Disagreement of two views of B utterances in nats, in fp32: half the sum over frames of
    KL(sg(b) || a) + KL(sg(a) || b) for their posteriors a and b, sg without gradient (CR-CTC, Yao
    et al. 2024, arXiv:2410.05101, eq. 5).

    Args:
        logits: (2B, T, V), the first views, then the second.
        num_frames: (B,) real frames; later ones are ignored.

    Returns (B,).
    """
    log_probabilities = F.log_softmax(logits.float(), dim=-1)
    first, second = log_probabilities.detach().chunk(2)
    other = torch.cat([second, first])
    divergence = F.kl_div(log_probabilities, other, reduction="none", log_target=True).sum(dim=-1)
    is_real = torch.arange(logits.shape[1], device=logits.device) < num_frames[:, None]  # (B, T)
    both = divergence.unflatten(0, (2, -1)).sum(dim=0)  # (B, T)
    return both.masked_fill(~is_real, 0.0).sum(dim=1) / 2


def _ids(manifest: Manifest, rows: Rows) -> str:
    """The ids of some utterances, the first ones."""
    shown = ", ".join(repr(manifest[int(row)].id) for row in rows[:3])
    return f"{shown}, ..." if len(rows) > 3 else shown


def _frames(
    manifest: Manifest, rows: Rows, labels: list[list[int]], grid: FrameGrid
) -> tuple[Rows, Rows]:
    """Frames that each transcript needs, and those that its utterance has."""
    needed = np.array([frames_needed(ids) for ids in labels], dtype=np.int64)
    available: Any = grid.num_frames(manifest.num_samples[rows])  # type: ignore[arg-type]
    return needed, available
