"""Phone recognition: CTC over phones, from a lexicon (SUPERB's PR) or from alignments (TIMIT)."""

from __future__ import annotations

import dataclasses
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from hubert_pretrain.data.corpus import Corpus
from hubert_pretrain.decoding.config import TRAIN, DecodingConfig
from hubert_pretrain.decoding.hypothesis import Decoder
from hubert_pretrain.errors import ConfigError, DataError
from hubert_pretrain.evaluation.analysis import Analysis
from hubert_pretrain.evaluation.bootstrap import Sampling
from hubert_pretrain.evaluation.texts import analyse_texts
from hubert_pretrain.evaluation.utterances import ScoredUtterances
from hubert_pretrain.fields import share, share_below_one, zero_or_more
from hubert_pretrain.finetune.ctc import CtcTask, Reduction, Rows
from hubert_pretrain.finetune.metrics import share_of_empty, word_error_rate
from hubert_pretrain.finetune.normalisation import Case, Language, TextRules, normalise
from hubert_pretrain.finetune.task import Metric, Results, tab_separated
from hubert_pretrain.finetune.text import PHONES_KEY, UNKNOWN, Vocabulary, listed
from hubert_pretrain.frames import FrameGrid

log = logging.getLogger(__name__)

Pronunciations = dict[str, list[tuple[str, ...]]]
"""Word -> its pronunciations."""
RATES = {"per": "phones"}
"""Error rate -> its units."""


class PhoneTask(CtcTask):
    """Phones from speech, scored by their error rate."""

    summary = "fine-tuned to recognise phones with CTC"
    metrics: tuple[Metric, ...] = (
        Metric("per", higher_is_better=False, percent=True),
        Metric("empty", higher_is_better=False, percent=True),
    )
    has_languages = True
    exports = ("huggingface", "fairseq", "s3prl", "torchaudio", "onnx", "torch")

    def __init__(
        self,
        *,
        lexicon: str | None = None,
        final_dropout: Annotated[float, share_below_one] = 0.0,
        weighted_layers: bool = False,
        max_dropped_fraction: Annotated[float, share] = 0.01,
        reduction: Reduction = "sum",
        zero_infinity: bool = True,
        consistency_weight: Annotated[float, zero_or_more] = 0.0,
        case: Case = "upper",
        language: Language = "",
    ) -> None:
        """
        Args:
            lexicon: a file with a word and its phones per line, which makes phones of the
                transcripts; null: the phones of the corpus' alignments, without silence.
            final_dropout: before the output layer.
            weighted_layers: a softmax-weighted sum of the encoder's input and every block instead
                of the last block.
            max_dropped_fraction: training utterances without phones, with words that the lexicon
                lacks, or with more phones than their frames can spell are left out and counted; a
                larger share of them is an error.
            reduction: see `CtcTask`.
            zero_infinity: see `CtcTask`.
            consistency_weight: see `CtcTask`.
            case: of transcripts and of the words of the lexicon, so that they meet.
            language: tr or az: İ is the capital of i, and I that of ı.
        """
        super().__init__(
            final_dropout=final_dropout,
            weighted_layers=weighted_layers,
            max_dropped_fraction=max_dropped_fraction,
            reduction=reduction,
            zero_infinity=zero_infinity,
            consistency_weight=consistency_weight,
            case=case,
            language=language,
        )
        self.lexicon = lexicon
        self._pronunciations: Pronunciations | None = None
        self.pronunciation_reports: dict[str, dict[str, Any]] = {}
        """Words that the lexicon lacks, by split."""

    def adopt(self, card: Mapping[str, Any], where: str) -> None:
        """Take the phones of another model; those of other projects do not say that they are."""
        super().adopt({**card, PHONES_KEY: False}, where)
        self.vocabulary = dataclasses.replace(self._vocabulary, phones=True)

    def _derive(self, texts: list[str]) -> Vocabulary:
        return Vocabulary.of_phones(texts)

    def _transcripts(self, corpus: Corpus, rows: Rows) -> list[str]:
        """The phones of each utterance, with spaces between them."""
        if self.lexicon is None:
            return self._aligned(corpus, rows)
        if self._pronunciations is None:
            self._pronunciations = read_pronunciations(Path(self.lexicon), self.rules)
        lexicon = self._pronunciations
        split = corpus.manifest[int(rows[0])].split
        texts = super()._transcripts(corpus, rows)
        missing = Counter(word for text in texts for word in text.split() if word not in lexicon)
        lacking = sum(any(word not in lexicon for word in text.split()) for text in texts)
        several = Counter(
            word for text in texts for word in text.split() if len(lexicon.get(word, ())) > 1
        )
        self.pronunciation_reports[split] = {
            "utterances": len(texts),
            "utterances_with_missing_words": lacking,
            "missing_words": dict(missing.most_common()),
            "words_with_several_pronunciations": several.total(),
        }
        if missing:
            log.warning(
                "%s: %d words of %d of the %d utterances of split %r are not in %s (%s)",
                corpus.manifest.path,
                len(missing),
                lacking,
                len(texts),
                split,
                self.lexicon,
                listed(missing),
            )
        # Of several pronunciations the first, as in SUPERB: transcripts do not tell which was said.
        return [
            " ".join(phone for word in text.split() for phone in lexicon.get(word, [(UNKNOWN,)])[0])
            for text in texts
        ]

    @staticmethod
    def _aligned(corpus: Corpus, rows: Rows) -> list[str]:
        manifest = corpus.manifest
        split = manifest[int(rows[0])].split
        alignments = corpus.alignments
        has = [alignments is not None and alignments.has(int(row)) for row in rows]
        if alignments is None or not any(has):
            raise DataError(
                f"{manifest.path}: none of the {len(rows)} utterances of split {split!r} has an "
                "alignment; give the corpus phone alignments (docs/corpora.md), or set "
                "task.lexicon to a file with the phones of words"
            )
        found = [
            " ".join(alignments.phones[phone] for phone in alignments.intervals(int(row))[0])
            if is_there
            else ""
            for row, is_there in zip(rows, has, strict=True)
        ]
        if not all(has):
            first = manifest[int(rows[has.index(False)])].id
            log.warning(
                "%s: %d of %d utterances of split %r have no alignment, the first is %r",
                manifest.path,
                has.count(False),
                len(rows),
                split,
                first,
            )
        return found

    def _lacking(self, counts: Counter[str]) -> str:
        if list(counts) == [UNKNOWN]:
            return f"words that {self.lexicon} has not"
        return super()._lacking(counts)

    def _unknown_fix(self) -> str:
        if self.lexicon is None:
            return "choose the alignments that the model was trained on, or set start_head=new"
        return f"add the words to {self.lexicon} (it lacks those of the warning above)"

    def decoder(
        self, config: DecodingConfig, texts: Sequence[str] | None, grid: FrameGrid, key: str
    ) -> Decoder | None:
        """See `Task`; the words of language model and lexicon are phones."""
        if config.lexicon not in (None, TRAIN):
            raise ConfigError(
                f"{key}.lexicon={config.lexicon}: a search for words, but this task is scored in "
                f"phones; remove it, or transcribe with it (docs/decoding.md)"
            )
        return super().decoder(config, texts, grid, key)

    def score(self, results: Results) -> dict[str, float]:
        """Phone error rate over all utterances, and the share of those for which nothing is
        recognised.
        """
        return {
            "per": word_error_rate(results.references, results.texts),
            "empty": share_of_empty(results.references, results.texts),
        }

    def reports(self) -> dict[str, Any]:
        """pronunciations.json: what the lexicon lacks of each split."""
        if self.lexicon is None:
            return {}
        found = {"lexicon": self.lexicon, "splits": self.pronunciation_reports}
        return {**super().reports(), "pronunciations.json": found}

    def analyse(self, results: Results, scored: ScoredUtterances, sampling: Sampling) -> Analysis:
        """Error rates, confusions of phones, the worst utterances."""
        return analyse_texts(scored, sampling, RATES)

    def tables(self, results: Results) -> dict[str, str]:
        """hypotheses.tsv, with the phone error rate of each utterance."""
        return {"hypotheses.tsv": _table(results)}


def _table(results: Results) -> str:
    lines = [
        (id_, reference, hypothesis, f"{word_error_rate([reference], [hypothesis]):.4f}")
        for id_, reference, hypothesis in zip(
            results.ids, results.references, results.texts, strict=True
        )
    ]
    return tab_separated(("id", "reference", "hypothesis", "per"), lines)


def read_pronunciations(path: Path, rules: TextRules) -> Pronunciations:
    """Word -> its pronunciations, in the order of the file.

    A word and its phones per line, with spaces or tabs between (LibriSpeech's lexicon, CMUdict:
    `READ(2)` and `;;;` comments). Words are normalised as transcripts are.

    Raises DataError for a file that is missing, no UTF-8, has a word without phones, or no word.
    """
    path = path.expanduser()
    if not path.is_file():
        raise DataError(
            f"{path}: no such file; set task.lexicon to a file with a word and its phones per line"
        )
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: no UTF-8 text; save the lexicon as UTF-8") from error
    plain = dataclasses.replace(rules, tags="keep")
    found: Pronunciations = {}
    for number, line in enumerate(lines, start=1):
        written, *phones = line.split() or [""]
        if not written or line.startswith(";;;"):
            continue
        if "#" in phones:  # a comment of CMUdict
            phones = phones[: phones.index("#")]
        if not phones:
            raise DataError(
                f"{path}: line {number} has {written!r} without phones; expected a word and its "
                "phones, e.g. HELLO HH AH L OW"
            )
        base, bracket, _ = written.partition("(")
        word = normalise(base if bracket and base else written, plain)
        pronunciations = found.setdefault(word, [])
        if word and tuple(phones) not in pronunciations:
            pronunciations.append(tuple(phones))
    found.pop("", None)
    if not found:
        raise DataError(f"{path}: holds no word; expected lines such as HELLO HH AH L OW")
    return found
