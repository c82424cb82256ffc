"""Runs beside each other as text: what a terminal shows of the page."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

MOST_KEYS = 30
"""Keys of the configuration that are printed; the page has all."""
MOST_WIDTH = 40
"""Characters of a value."""


def show(content: dict[str, Any]) -> None:
    """Print the tables."""
    from rich.console import Console
    from rich.table import Table

    console = Console(markup=False, highlight=False)
    if not console.is_terminal:
        console = Console(width=140, markup=False, highlight=False)
    for title, header, rows in tables(content):
        table = Table(title=title)
        for name in header:
            table.add_column(name, overflow="fold")
        for row in rows:
            table.add_row(*row)
        console.print(table)
    for sentence in content["missing"]:
        print(f"not there: {sentence}")


def tables(content: dict[str, Any]) -> Iterator[tuple[str, list[str], list[list[str]]]]:
    """Title, header and rows of each table."""
    runs = content["runs"]
    names = [run["name"] for run in runs]
    units = list(_units(runs))
    if units:
        header = ["run", "iteration", "K", "PNMI", "rank", "masked loss", "entropy", "masked acc."]
        yield "Iterations (PNMI is ranked at equal K, on one corpus)", header, units
    scores = [
        [f"{task}/{split}", label, *(_score(run, task, split, label) for run in runs)]
        for task, split, label in _labels(runs)
    ]
    if scores:
        yield "Scores, with their intervals", ["task", "score", *names], scores
    paired = [
        [name, *("-" if each is None else _with_interval(each) for each in differences)]
        for name, differences in content["differences"].items()
    ]
    if paired:
        yield "Error rate less that of the first run, same utterances", ["task", *names], paired
    values = content["configuration"]["values"]
    if len(runs) > 1 and values:
        shown = list(values.items())[:MOST_KEYS]
        title = "Configurations: keys that differ"
        if len(values) > MOST_KEYS:
            title += f" (the first {MOST_KEYS} of {len(values)})"
        yield title, ["key", *names], [[key, *map(_short, each)] for key, each in shown]


def ranks(rows: Sequence[tuple[float | None, Any]]) -> list[int | None]:
    """Places of scores among those of their group, the highest first; None for a score that is not
    there, or alone in its group. rows: score and group.
    """
    found: list[int | None] = []
    for score, group in rows:
        others = [other for other, its in rows if its == group and other is not None]
        if score is None or len(others) < 2:
            found.append(None)
        else:
            found.append(1 + sum(other > score for other in others))
    return found


def _units(runs: Sequence[dict[str, Any]]) -> Iterator[list[str]]:
    rows = [(run, name, each) for run in runs for name, each in run["iterations"].items()]
    groups = []
    for run, _, each in rows:
        label = each["facts"].get("label", {})
        groups.append(
            (label.get("pnmi"), (label.get("n_clusters"), (run["corpus"] or {}).get("id")))
        )
    for (run, name, each), rank in zip(rows, ranks(groups), strict=True):
        label = each["facts"].get("label", {})
        training = each["facts"].get("pretrain", {})
        yield [
            run["name"],
            name,
            _number(label.get("n_clusters")),
            _number(label.get("pnmi")),
            "-" if rank is None else str(rank),
            _number(training.get("masked_loss_nats")),
            _number(label.get("unigram_entropy_nats")),
            _number(training.get("masked_accuracy")),
        ]


def _labels(runs: Sequence[dict[str, Any]]) -> dict[tuple[str, str, str], None]:
    """Task, split and name of every score with an interval."""
    return {
        (task, split, label): None
        for run in runs
        for task, found in run["tasks"].items()
        for split, evaluation in found["splits"].items()
        for label in evaluation["facts"].get("intervals", {})
    }


def _score(run: dict[str, Any], task: str, split: str, label: str) -> str:
    evaluation = run["tasks"].get(task, {"splits": {}})["splits"].get(split)
    interval = evaluation["facts"].get("intervals", {}).get(label) if evaluation else None
    if evaluation is None or interval is None:
        return "-"
    low, high = interval
    return f"{_number(evaluation['facts'].get(label))} [{_number(low)}, {_number(high)}]"


def _with_interval(estimate: dict[str, float]) -> str:
    low = estimate["low"]
    high = estimate["high"]
    return f"{estimate['value']:+.3f} [{low:+.3f}, {high:+.3f}]"


def _number(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def _short(value: str) -> str:
    return value if len(value) <= MOST_WIDTH else f"{value[: MOST_WIDTH - 1]}…"
