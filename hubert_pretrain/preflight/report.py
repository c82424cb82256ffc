"""Check results (ok, warning, error, skipped), the table printed from them, and their JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

OK = "ok"
WARNING = "warning"
ERROR = "error"
SKIPPED = "later"


@dataclass(frozen=True)
class CheckResult:
    """A line of the table."""

    name: str
    state: str
    """ok, warning, error, or later: it cannot be answered before another stage has run."""
    found: str
    fix: str = ""
    details: tuple[str, ...] = field(default=(), repr=False)
    """Everything of which `found` shows the first; only in the JSON."""


def ok(name: str, found: str) -> CheckResult:
    """Nothing to do."""
    return CheckResult(name, OK, found)


def warning(name: str, found: str, fix: str) -> CheckResult:
    """It would run, and probably not as it was meant."""
    return CheckResult(name, WARNING, found, fix)


def error(name: str, found: str, fix: str, details: tuple[str, ...] = ()) -> CheckResult:
    """It would not run, or not to its end."""
    return CheckResult(name, ERROR, found, fix, details)


def skipped(name: str, stage: str) -> CheckResult:
    """To be asked again when `stage` has run."""
    return CheckResult(name, SKIPPED, f"after {stage}")


def of_error(name: str, failure: Exception) -> CheckResult:
    """An error of ours, `what; fix`, as a row."""
    found, _, fix = str(failure).rpartition("; ")
    return CheckResult(name, ERROR, found or fix, fix if found else "")


def worst(rows: list[CheckResult]) -> str:
    """error, warning or ok."""
    return next(
        (state for state in (ERROR, WARNING) if any(row.state == state for row in rows)), OK
    )


WIDTH = 100
"""Columns where the output is no terminal."""
_STYLES = {OK: "green", WARNING: "yellow", ERROR: "bold red", SKIPPED: "dim"}


def show(rows: Sequence[CheckResult], title: str) -> None:
    """Prints the table, as wide as the terminal."""
    from rich.console import Console

    console = Console()
    (console if console.is_terminal else Console(width=WIDTH)).print(table(rows, title))


def table(rows: Sequence[CheckResult], title: str) -> Any:
    """A `rich` table: check, state, what was found and, where there is something to mend, the fix
    under it.
    """
    from rich.table import Table
    from rich.text import Text

    made = Table(
        title=title,
        title_justify="left",
        caption=count(rows),
        caption_justify="left",
        padding=(0, 1),
    )
    made.add_column("check", no_wrap=True)
    made.add_column("state", no_wrap=True)
    made.add_column("found", overflow="fold", ratio=1)
    for row in rows:
        found = Text(row.found)
        if row.fix:
            found.append(f"\nfix: {row.fix}", style=_STYLES[row.state])
        made.add_row(row.name, Text(row.state, style=_STYLES[row.state]), found)
    return made


def count(rows: Sequence[CheckResult]) -> str:
    """`2 errors, 1 warning, 14 ok, 3 later`."""
    numbers = {
        state: sum(row.state == state for row in rows) for state in (ERROR, WARNING, OK, SKIPPED)
    }
    plural = {ERROR: "errors", WARNING: "warnings"}
    return ", ".join(
        f"{n} {plural.get(state, state) if n != 1 else state}"
        for state, n in numbers.items()
        if n or state == ERROR
    )


def line(row: CheckResult) -> str:
    """A row that is not ok as one line of a log."""
    return f"check: {row.state}: {row.name}: {row.found}" + (f"; {row.fix}" if row.fix else "")


def as_json(rows: Sequence[CheckResult]) -> dict[str, Any]:
    """Plain JSON values: the count of each state, and the rows with all details."""
    return {
        "states": {state: sum(row.state == state for row in rows) for state in _STYLES},
        "rows": [asdict(row) for row in rows],
    }
