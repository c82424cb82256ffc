"""Result of an evaluation: scores with intervals, groups of utterances, tables. One form for every
kind of task, which report.py writes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hubert_pretrain.evaluation.bootstrap import Estimate, Sampling
from hubert_pretrain.evaluation.utterances import ScoredUtterances

MOST_ROWS = 20
"""Rows of a table for people; the files have all of them."""
MOST_WORST = 50
"""Rows of the table of the worst utterances."""


@dataclass(frozen=True)
class Table:
    """A table for people and programs."""

    header: tuple[str, ...]
    rows: Sequence[Sequence[Any]]
    note: str = ""
    """Sentence below its title."""


@dataclass(frozen=True)
class Analysis:
    """The scores of one split."""

    scores: dict[str, dict[str, Estimate]]
    """Score -> unit of the bootstrap ("utterance", "speaker") -> value with interval. The first is
    the main one."""
    sampling: Sampling
    counts: dict[str, Any] = field(default_factory=dict)
    """Facts behind the scores: words, substitutions, ..."""
    tables: dict[str, Table] = field(default_factory=dict)
    """Title -> table: groups, confusions, the worst utterances."""
    utterances: Table = Table((), ())
    """One row per utterance, id first."""
    warnings: list[str] = field(default_factory=list)
    """Reasons to read the scores with care."""
    transcripts: bool = False
    """References and predictions are texts."""

    def intervals(self) -> dict[str, list[float]]:
        """Score -> ends of its interval by utterance, for the summary."""
        return {
            name: [units["utterance"].low, units["utterance"].high]
            for name, units in self.scores.items()
        }


def grouped(
    scored: ScoredUtterances,
    rows_of_groups: Mapping[str, NDArray[np.int64]],
    name: str,
    scores: Mapping[str, Callable[[NDArray[np.int64]], float]],
) -> Table:
    """A row for each group of utterances: its size, and its scores."""
    header = (name, "utterances", "hours", *scores)
    lines = [
        (group, len(rows), scored.hours(rows), *(score(rows) for score in scores.values()))
        for group, rows in rows_of_groups.items()
    ]
    return Table(header, lines)


def groups(
    scored: ScoredUtterances,
    scores: Mapping[str, Callable[[NDArray[np.int64]], float]],
    *,
    higher_is_better: bool,
) -> dict[str, Table]:
    """The tables by speaker, the worst first by the first score, and by length."""
    by_speaker = grouped(scored, scored.by_speaker(), "speaker", scores)
    rows = sorted(by_speaker.rows, key=lambda row: row[3], reverse=not higher_is_better)
    found = {"by speaker": Table(by_speaker.header, rows)} if rows else {}
    return {**found, "by length": grouped(scored, scored.by_length(), "length", scores)}
