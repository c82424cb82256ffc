"""The doctor's answers as a table for the terminal, as lines for a log, and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from hubert_pretrain.doctor.row import ERROR, LATER, OK, WARNING, Row

WIDTH = 100
"""Columns where the output is no terminal."""
_STYLES = {OK: "green", WARNING: "yellow", ERROR: "bold red", LATER: "dim"}


def show(rows: Sequence[Row], title: str) -> None:
    """Prints the table, as wide as the terminal."""
    from rich.console import Console

    console = Console()
    (console if console.is_terminal else Console(width=WIDTH)).print(table(rows, title))


def table(rows: Sequence[Row], title: str) -> Any:
    """A `rich` table: check, state, what was found and, where there is something to mend, the fix under it."""
    from rich.table import Table
    from rich.text import Text

    made = Table(title=title, title_justify="left", caption=count(rows), caption_justify="left", padding=(0, 1))
    made.add_column("check", no_wrap=True)
    made.add_column("state", no_wrap=True)
    made.add_column("found", overflow="fold", ratio=1)
    for row in rows:
        found = Text(row.found)
        if row.fix:
            found.append(f"\nfix: {row.fix}", style=_STYLES[row.state])
        made.add_row(row.name, Text(row.state, style=_STYLES[row.state]), found)
    return made


def count(rows: Sequence[Row]) -> str:
    """`2 errors, 1 warning, 14 ok, 3 later`."""
    numbers = {state: sum(row.state == state for row in rows) for state in (ERROR, WARNING, OK, LATER)}
    plural = {ERROR: "errors", WARNING: "warnings"}
    return ", ".join(f"{n} {plural.get(state, state) if n != 1 else state}" for state, n in numbers.items() if n or state == ERROR)


def line(row: Row) -> str:
    """A row that is not ok as one line of a log."""
    return f"check: {row.state}: {row.name}: {row.found}" + (f"; {row.fix}" if row.fix else "")


def as_json(rows: Sequence[Row]) -> dict[str, Any]:
    """Plain JSON values: the count of each state, and the rows with all details."""
    return {"states": {state: sum(row.state == state for row in rows) for state in _STYLES}, "rows": [asdict(row) for row in rows]}
