"""Files of an evaluation: evaluation.json for programs, report.md for people, the utterances as
jsonl, and transcripts as trn (sclite's form).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hubert_pretrain.evaluation.analysis import MOST_ROWS, Analysis, Table
from hubert_pretrain.evaluation.utterances import ScoredUtterances
from hubert_pretrain.files import write_json, write_text

EVALUATION = "evaluation.json"
REPORT = "report.md"
UTTERANCES = "utterances.jsonl"
_CELL = str.maketrans("\t\r\n", "   ")


def write_evaluation(
    folder: Path, scored: ScoredUtterances, analysis: Analysis, about: Mapping[str, Any]
) -> None:
    """Write all files.

    Args:
        about: model, split and what else tells the numbers apart.
    """
    write_json(folder / EVALUATION, as_json(scored, analysis, about))
    write_text(folder / REPORT, markdown(scored, analysis, about))
    table = analysis.utterances
    objects = [dict(zip(table.header, row, strict=True)) for row in table.rows]
    write_text(
        folder / UTTERANCES,
        "".join(json.dumps(each, ensure_ascii=False) + "\n" for each in objects),
    )
    if analysis.transcripts:
        write_text(folder / "references.trn", trn(scored.ids, scored.references))
        write_text(folder / "hypotheses.trn", trn(scored.ids, scored.predictions))


def as_json(
    scored: ScoredUtterances, analysis: Analysis, about: Mapping[str, Any]
) -> dict[str, Any]:
    """The content of evaluation.json. Tables are lists of objects."""
    return {
        **about,
        **_size(scored),
        "scores": {
            name: {
                "value": units["utterance"].value,
                "interval": {unit: [each.low, each.high] for unit, each in units.items()},
            }
            for name, units in analysis.scores.items()
        },
        "bootstrap": vars(analysis.sampling),
        "counts": analysis.counts,
        "tables": {
            title: [dict(zip(table.header, row, strict=True)) for row in table.rows]
            for title, table in analysis.tables.items()
        },
    }


def markdown(scored: ScoredUtterances, analysis: Analysis, about: Mapping[str, Any]) -> str:
    """The content of report.md; of long tables the first rows."""
    size = _size(scored)
    facts = {**about, **size, "hours": f"{size['hours']:.2f}"}
    percent = f"{analysis.sampling.confidence:.0%}"
    units = list(next(iter(analysis.scores.values())))
    header = ("score", "value", *(f"{percent} interval, by {unit}" for unit in units))
    rows = [
        (
            name,
            of_units["utterance"].value,
            *(f"{of_units[unit].low:.3f} to {of_units[unit].high:.3f}" for unit in units),
        )
        for name, of_units in analysis.scores.items()
    ]
    parts = [
        f"# {about.get('model', 'Evaluation')}\n",
        "\n".join(f"- {name}: {value}" for name, value in facts.items()) + "\n",
        _markdown_table(Table(header, rows)),
    ]
    counts = {name: each for name, each in analysis.counts.items() if isinstance(each, dict)}
    if counts:
        names = ("unit", *next(iter(counts.values())))
        lines = [(name, *each.values()) for name, each in counts.items()]
        parts.append(_markdown_table(Table(names, lines)))
    others = {name: each for name, each in analysis.counts.items() if name not in counts}
    if others:
        parts.append(", ".join(f"{name}: {_shown(each)}" for name, each in others.items()) + "\n")
    for title, table in analysis.tables.items():
        parts.append(f"## {title[0].upper()}{title[1:]}\n")
        if table.note:
            parts.append(f"{table.note}\n")
        parts.append(_markdown_table(Table(table.header, table.rows[:MOST_ROWS])))
        if len(table.rows) > MOST_ROWS:
            parts.append(
                f"The first {MOST_ROWS} of {len(table.rows)}; {EVALUATION} has them all.\n"
            )
    return "\n".join(parts)


def trn(ids: Sequence[str], texts: Sequence[str]) -> str:
    """Transcripts in the form of sclite: the words, then the id in brackets, which has no spaces
    or brackets of its own.
    """
    brackets = str.maketrans(" ()", "___")
    lines = [
        f"{' '.join(text.split())} ({id_.translate(brackets)})".lstrip()
        for id_, text in zip(ids, texts, strict=True)
    ]
    return "".join(f"{line}\n" for line in lines)


def _size(scored: ScoredUtterances) -> dict[str, Any]:
    return {
        "utterances": len(scored),
        "speakers": scored.n_speakers or None,
        "hours": round(sum(scored.seconds) / 3600, 4),
    }


def _shown(cell: Any) -> str:
    """A cell of a table in one line."""
    text = f"{cell:.3f}" if isinstance(cell, float) else str(cell)
    return text.translate(_CELL)


def _markdown_table(table: Table) -> str:
    def line(cells: Sequence[Any]) -> str:
        return "| " + " | ".join(_shown(cell).replace("|", "\\|") for cell in cells) + " |"

    rule = "|" + "---|" * len(table.header)
    return "\n".join([line(table.header), rule, *map(line, table.rows)]) + "\n"
