"""Check results (ok, warning, error, skipped), the table printed from them, and their JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

OK = "ok"
WARNING = "warning"
ERROR = "error"
SKIPPED = "skipped"

WIDTH = 100
"""Columns of the table where the output is no terminal."""
_STYLES = {OK: "green", WARNING: "yellow", ERROR: "bold red", SKIPPED: "dim"}


@dataclass(frozen=True)
class CheckResult:
    """The result of one check: a row of the table."""

    name: str
    state: str
    """ok, warning, error, or skipped: it needs the output of a stage that has not run."""
    found: str
    fix: str = ""
    details: tuple[str, ...] = field(default=(), repr=False)
    """All faults, of which `found` names the first; only in the JSON."""


def ok(name: str, found: str) -> CheckResult:
    """Nothing to do."""
    return CheckResult(name, OK, found)


def warning(name: str, found: str, fix: str) -> CheckResult:
    """Runs, but probably misconfigured."""
    return CheckResult(name, WARNING, found, fix)


def error(name: str, found: str, fix: str, details: tuple[str, ...] = ()) -> CheckResult:
    """Does not run, or not to its end."""
    return CheckResult(name, ERROR, found, fix, details)


def skipped(name: str, stage: str) -> CheckResult:
    """To be checked after `stage` has run."""
    return CheckResult(name, SKIPPED, f"after {stage}")


def of_error(name: str, failure: Exception) -> CheckResult:
    """An exception of ours, whose message is `what; fix`, as a result."""
    found, _, fix = str(failure).rpartition("; ")
    return CheckResult(name, ERROR, found, fix) if found else CheckResult(name, ERROR, fix)


def show(results: Sequence[CheckResult], title: str) -> None:
    """Print the table, as wide as the terminal."""
    _print(table(results, title))


def show_table(
    title: str, header: Sequence[str], rows: Sequence[Sequence[str]], caption: str = ""
) -> None:
    """Print a table of numbers; its last row holds the totals."""
    from rich.table import Table

    made = Table(
        title=title,
        title_justify="left",
        caption=caption or None,
        caption_justify="left",
        padding=(0, 1),
    )
    for index, name in enumerate(header):
        made.add_column(name, justify="right" if index else "left", no_wrap=True)
    for index, row in enumerate(rows):
        made.add_row(*row, end_section=index == len(rows) - 2)
    _print(made, whole=True)


def _print(table: Any, *, whole: bool = False) -> None:
    """whole: outside a terminal, a line is as long as its numbers need."""
    from rich.console import Console
    from rich.measure import Measurement

    console = Console()
    if not console.is_terminal:
        wide = Console(width=10 * WIDTH)
        needed = Measurement.get(wide, wide.options, table).maximum
        console = Console(width=max(WIDTH, needed) if whole else WIDTH)
    console.print(table)


def table(results: Sequence[CheckResult], title: str) -> Any:
    """A `rich` table: name, state, what was found and, where there is something to fix, the fix
    under it."""
    from rich.table import Table
    from rich.text import Text

    made = Table(
        title=title,
        title_justify="left",
        caption=count(results),
        caption_justify="left",
        padding=(0, 1),
    )
    made.add_column("check", no_wrap=True)
    made.add_column("state", no_wrap=True)
    made.add_column("found", overflow="fold", ratio=1)
    for result in results:
        found = Text(result.found)
        if result.fix:
            found.append(f"\nfix: {result.fix}", style=_STYLES[result.state])
        made.add_row(result.name, Text(result.state, style=_STYLES[result.state]), found)
    return made


def count(results: Sequence[CheckResult]) -> str:
    """`2 errors, 1 warning, 14 ok, 3 skipped`; states without results are left out, but errors."""
    words = []
    for state in (ERROR, WARNING, OK, SKIPPED):
        number = sum(result.state == state for result in results)
        plural = "s" if state in (ERROR, WARNING) and number != 1 else ""
        if number or state == ERROR:
            words.append(f"{number} {state}{plural}")
    return ", ".join(words)


def line(result: CheckResult) -> str:
    """A warning or an error as one line of a log."""
    fix = f"; {result.fix}" if result.fix else ""
    return f"check: {result.state}: {result.name}: {result.found}{fix}"


def as_json(results: Sequence[CheckResult]) -> dict[str, Any]:
    """Plain JSON values: the count of each state, and the results with all details."""
    return {
        "states": {state: sum(each.state == state for each in results) for state in _STYLES},
        "rows": [asdict(result) for result in results],
    }
