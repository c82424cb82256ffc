"""Progress of long loops and files: a bar on a terminal, else a line every ten seconds;
nothing on other ranks than 0.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from hubert_pretrain import distributed

LOG_EVERY_SECONDS = 10.0


class Advance(Protocol):
    """Reports progress."""

    def __call__(self, done: int | None = None, note: str = "") -> None:
        """One more item is done; or `done` items or bytes in all. note: the last metrics."""
        ...


@contextmanager
def progress(
    total: int | None, what: str, *, in_bytes: bool = False, at_most: bool = False
) -> Iterator[Advance]:
    """Gives a function to call after each of `total` items, or with the number of bytes so far.
    Ranks above 0 show nothing.

    Args:
        total: None: not known.
        what: names the loop.
        in_bytes: the items are bytes.
        at_most: the loop may end before `total`.
    """
    if distributed.rank() > 0:
        yield silent
        return
    if not sys.stderr.isatty():
        yield _log_lines(total, what, in_bytes, "at most " * at_most)
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    rate = TextColumn("{task.fields[rate]}")
    amounts = (
        (DownloadColumn(), TransferSpeedColumn()) if in_bytes else (MofNCompleteColumn(), rate)
    )
    left = "left, at most" if at_most else "left"
    times = (TimeElapsedColumn(), TextColumn(left), TimeRemainingColumn())
    last = TextColumn("{task.fields[note]}")
    columns = (TextColumn("{task.description}"), BarColumn(24), *amounts, *times, last)
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=total, rate="", note="")

        def advance(done: int | None = None, note: str = "") -> None:
            bar.update(task, completed=done, advance=1 if done is None else None, note=note)
            if speed := bar.tasks[0].speed:
                bar.update(task, rate=f"{speed:,.3g}/s")

        yield advance


def silent(done: int | None = None, note: str = "") -> None:
    """Shows nothing."""


def _log_lines(total: int | None, what: str, in_bytes: bool, at_most: str) -> Advance:
    """Prints at most one line in `LOG_EVERY_SECONDS`: count, rate, time so far, time left, note."""
    now = 0
    started = time.monotonic()
    next_line = started + LOG_EVERY_SECONDS

    def advance(done: int | None = None, note: str = "") -> None:
        nonlocal now, next_line
        now = now + 1 if done is None else done
        elapsed = time.monotonic() - started
        if started + elapsed < next_line:
            return
        next_line = started + elapsed + LOG_EVERY_SECONDS
        of = f" of {at_most}{_amount(total, in_bytes)}" if total else ""
        unit = " MB" if in_bytes else ""
        rate = now / max(elapsed, 1e-9)
        words = [f"{what}: {_amount(now, in_bytes)}{of}{unit}"]
        if rate:
            words.append(f"{rate / 1e6 if in_bytes else rate:,.3g}{unit}/s")
        words.append(f"{clock(elapsed)} so far")
        if total and rate:
            words.append(f"{at_most}{clock((total - now) / rate)} left")
        if note:
            words.append(note)
        print(", ".join(words), file=sys.stderr, flush=True)

    return advance


def clock(seconds: float) -> str:
    """`1:02:03`, hours first."""
    minutes, rest = divmod(max(0, round(seconds)), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


def _amount(count: int, in_bytes: bool) -> str:
    return f"{count / 1e6:.0f}" if in_bytes else str(count)
