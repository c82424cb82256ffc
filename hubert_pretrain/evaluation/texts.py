"""Errors of transcripts: substitutions, deletions and insertions of words and characters, their
rates with intervals, the most frequent confusions and the worst utterances. N utterances.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hubert_pretrain.evaluation.analysis import MOST_WORST, Analysis, Table, groups
from hubert_pretrain.evaluation.bootstrap import Bootstrap, Estimate, Sampling, ratio
from hubert_pretrain.evaluation.utterances import ScoredUtterances

UNITS = {"wer": "words", "cer": "characters"}
"""Error rate -> its units, the main one first."""
MOST_CONFUSIONS = 100

Edit = tuple[str, str]
"""(reference, hypothesis): a substitution; an empty one: an insertion or a deletion."""


@dataclass(frozen=True)
class Errors:
    """Errors of N utterances in one unit."""

    counts: NDArray[np.int64]  # (N, 4): substitutions, deletions, insertions, units of references
    edits: Counter[Edit]

    @property
    def ratios(self) -> NDArray[np.int64]:
        """(N, 2): errors and units of the reference."""
        return np.stack([self.counts[:, :3].sum(axis=1), self.counts[:, 3]], axis=1)

    def rate(self, rows: NDArray[np.int64] | Sequence[int] | slice = slice(None)) -> float:
        """Errors over the length of the references, of some utterances together."""
        return float(ratio(self.ratios[rows].sum(axis=0)[None])[0])

    def totals(self) -> dict[str, int]:
        """The sums over all utterances."""
        names = ("substitutions", "deletions", "insertions", "reference")
        return dict(zip(names, self.counts.sum(axis=0).tolist(), strict=True))


def units_of(text: str, unit: str) -> list[str]:
    """The words of a text (or phones), or its characters with single spaces between words."""
    words = text.split()
    return list(" ".join(words)) if unit == "characters" else words


def edits_between(reference: Sequence[str], hypothesis: Sequence[str]) -> list[Edit]:
    """The fewest substitutions, deletions and insertions that make the reference into the
    hypothesis.
    """
    from rapidfuzz.distance import Levenshtein

    found = []
    for edit in Levenshtein.editops(reference, hypothesis):
        spoken = "" if edit.tag == "insert" else reference[edit.src_pos]
        written = "" if edit.tag == "delete" else hypothesis[edit.dest_pos]
        found.append((spoken, written))
    return found


def count_errors(references: Sequence[str], hypotheses: Sequence[str], unit: str) -> Errors:
    """The errors of each utterance. unit: "words", "characters", or "phones"."""
    counts = np.zeros((len(references), 4), dtype=np.int64)
    edits: Counter[Edit] = Counter()
    for row, (reference, hypothesis) in enumerate(zip(references, hypotheses, strict=True)):
        units = units_of(reference, unit)
        own = edits_between(units, units_of(hypothesis, unit))
        edits.update(own)
        deletions = sum(not written for _, written in own)
        insertions = sum(not spoken for spoken, _ in own)
        counts[row] = len(own) - deletions - insertions, deletions, insertions, len(units)
    return Errors(counts, edits)


def analyse_texts(
    scored: ScoredUtterances, sampling: Sampling, units: Mapping[str, str] = UNITS
) -> Analysis:
    """Word and character error rates, and everything that helps to understand them.

    units: other error rates and their units, the main one first.
    """
    errors = {
        rate: count_errors(scored.references, scored.predictions, unit)
        for rate, unit in units.items()
    }
    main = next(iter(errors))
    bootstraps = scored.bootstraps(sampling)
    scores = {
        rate: {unit: each.of_sums(found.ratios, ratio) for unit, each in bootstraps.items()}
        for rate, found in errors.items()
    }
    scores["empty"] = _share_of_empty(scored, bootstraps)
    scores["sentence_error_rate"] = _wrong_sentences(errors[main], bootstraps)
    confused: dict[str, Table] = {}
    for rate, unit in units.items():
        confused |= confusions(errors[rate], unit)
    return Analysis(
        scores,
        sampling,
        counts={unit: errors[rate].totals() for rate, unit in units.items()},
        tables={
            **groups(
                scored, {rate: found.rate for rate, found in errors.items()}, higher_is_better=False
            ),
            **confused,
            "worst utterances": worst_utterances(scored, errors[main], units[main]),
        },
        utterances=_table(scored, errors, units[main]),
        warnings=_warnings(errors[main]),
        transcripts=True,
    )


def _warnings(words: Errors) -> list[str]:
    empty = int((words.counts[:, 3] == 0).sum())
    if not empty:
        return []
    return [
        f"{empty} of {len(words.counts)} references are empty: each word recognised there counts "
        "as an insertion; if people speak there, give the corpus their transcripts"
    ]


def _share_of_empty(
    scored: ScoredUtterances, bootstraps: dict[str, Bootstrap]
) -> dict[str, Estimate]:
    """Share of the references with text whose hypothesis has none."""
    has_text = np.array([bool(text.strip()) for text in scored.references])
    is_empty = np.array([not text.strip() for text in scored.predictions])
    counts = np.stack([has_text & is_empty, has_text], axis=1).astype(np.int64)
    return {unit: each.of_sums(counts, ratio) for unit, each in bootstraps.items()}


def _wrong_sentences(words: Errors, bootstraps: dict[str, Bootstrap]) -> dict[str, Estimate]:
    """Share of the utterances with at least one wrong word."""
    wrong = words.ratios[:, 0] > 0
    counts = np.stack([wrong, np.ones_like(wrong)], axis=1).astype(np.int64)
    return {unit: each.of_sums(counts, ratio) for unit, each in bootstraps.items()}


def confusions(errors: Errors, unit: str) -> dict[str, Table]:
    """The most frequent substitutions, deletions and insertions."""
    kinds: dict[str, list[tuple[Any, ...]]] = {"substituted": [], "deleted": [], "inserted": []}
    ordered = sorted(errors.edits.items(), key=lambda item: (-item[1], item[0]))
    for (spoken, written), count in ordered:
        if spoken and written:
            kinds["substituted"].append((_visible(spoken), _visible(written), count))
        elif spoken:
            kinds["deleted"].append((_visible(spoken), count))
        else:
            kinds["inserted"].append((_visible(written), count))
    headers = {
        "substituted": ("reference", "hypothesis", "count"),
        "deleted": ("reference", "count"),
        "inserted": ("hypothesis", "count"),
    }
    return {
        f"{kind} {unit}": Table(headers[kind], rows[:MOST_CONFUSIONS])
        for kind, rows in kinds.items()
        if rows
    }


def _visible(text: str) -> str:
    return "<space>" if text == " " else text


def worst_utterances(scored: ScoredUtterances, words: Errors, unit: str = "words") -> Table:
    """The utterances with most wrong words; of those with equally many, the shortest first."""
    wrong, lengths = words.ratios.T
    order = sorted(range(len(scored)), key=lambda row: (-wrong[row], lengths[row], scored.ids[row]))
    rows = [
        (
            scored.ids[row],
            int(wrong[row]),
            int(lengths[row]),
            scored.references[row],
            scored.predictions[row],
        )
        for row in order[:MOST_WORST]
        if wrong[row]
    ]
    return Table(("id", "errors", unit, "reference", "hypothesis"), rows)


def _table(scored: ScoredUtterances, errors: Mapping[str, Errors], unit: str) -> Table:
    """errors: by rate, of which the first is in `unit`."""
    words = next(iter(errors.values()))
    header = (
        "id",
        "speaker",
        "seconds",
        unit,
        "substitutions",
        "deletions",
        "insertions",
        *errors,
        "reference",
        "hypothesis",
    )
    rows = [
        (
            scored.ids[row],
            scored.speakers[row],
            scored.seconds[row],
            int(words.counts[row, 3]),
            *words.counts[row, :3].tolist(),
            *(found.rate([row]) for found in errors.values()),
            scored.references[row],
            scored.predictions[row],
        )
        for row in range(len(scored))
    ]
    return Table(header, rows)
