"""One answer of the doctor: what was looked at, what was found, and how to mend it."""

from __future__ import annotations

from dataclasses import dataclass, field

OK, WARNING, ERROR, LATER = "ok", "warning", "error", "later"


@dataclass(frozen=True)
class Row:
    """A line of the table."""

    name: str
    state: str
    """ok, warning, error, or later: it cannot be answered before another stage has run."""
    found: str
    fix: str = ""
    details: tuple[str, ...] = field(default=(), repr=False)
    """Everything of which `found` shows the first; only in the JSON."""


def ok(name: str, found: str) -> Row:
    """Nothing to do."""
    return Row(name, OK, found)


def warning(name: str, found: str, fix: str) -> Row:
    """It would run, and probably not as it was meant."""
    return Row(name, WARNING, found, fix)


def error(name: str, found: str, fix: str, details: tuple[str, ...] = ()) -> Row:
    """It would not run, or not to its end."""
    return Row(name, ERROR, found, fix, details)


def later(name: str, stage: str) -> Row:
    """To be asked again when `stage` has run."""
    return Row(name, LATER, f"after {stage}")


def of_error(name: str, failure: Exception) -> Row:
    """An error of ours, `what; fix`, as a row."""
    found, _, fix = str(failure).rpartition("; ")
    return Row(name, ERROR, found or fix, fix if found else "")


def worst(rows: list[Row]) -> str:
    """error, warning or ok."""
    return next((state for state in (ERROR, WARNING) if any(row.state == state for row in rows)), OK)
