"""Progress of long loops and files: a bar on a terminal, else a line every ten seconds;
nothing on other ranks than 0.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from hubert_pretrain import distributed

LOG_EVERY_SECONDS = 10.0


class Advance(Protocol):
    """Reports progress."""

    def __call__(self, done: int | None = None) -> None:
        """One more item is done; or `done` items or bytes in all."""
        ...


@contextmanager
def progress(total: int | None, what: str, *, in_bytes: bool = False) -> Iterator[Advance]:
    """Gives a function to call after each of `total` items, or with the number of bytes so far;
    `what` names the loop. A `total` of None: not known. Ranks above 0 show nothing.
    """
    if distributed.rank() > 0:
        yield _silent
        return
    if not sys.stderr.isatty():
        yield _log_lines(total, what, in_bytes)
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
    times = (TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
    columns = (TextColumn("{task.description}"), BarColumn(24), *amounts, *times)
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=total, rate="")

        def advance(done: int | None = None) -> None:
            bar.update(task, completed=done, advance=1 if done is None else None)
            if speed := bar.tasks[0].speed:
                bar.update(task, rate=f"{speed:,.3g}/s")

        yield advance


@contextmanager
def still_running(what: str) -> Iterator[None]:
    """Says every ten seconds for how long something runs that reports no progress of its own."""
    if distributed.rank() > 0:
        yield
        return
    started = time.monotonic()
    stop = threading.Event()

    def report() -> None:
        while not stop.wait(LOG_EVERY_SECONDS):
            seconds = time.monotonic() - started
            print(f"{what}: running for {seconds:.0f} s", file=sys.stderr, flush=True)

    reporter = threading.Thread(target=report, name="still running", daemon=True)
    reporter.start()
    try:
        yield
    finally:
        stop.set()
        reporter.join()


def _silent(done: int | None = None) -> None:
    """Shows nothing."""


def _log_lines(total: int | None, what: str, in_bytes: bool) -> Advance:
    """Prints at most one line in `LOG_EVERY_SECONDS`: count, rate, time so far, time left."""
    now = 0
    started = time.monotonic()
    next_line = started + LOG_EVERY_SECONDS

    def advance(done: int | None = None) -> None:
        nonlocal now, next_line
        now = now + 1 if done is None else done
        elapsed = time.monotonic() - started
        if started + elapsed < next_line:
            return
        next_line = started + elapsed + LOG_EVERY_SECONDS
        of = f" of {_amount(total, in_bytes)}" if total else ""
        unit = " MB" if in_bytes else ""
        rate = now / max(elapsed, 1e-9)
        words = [f"{what}: {_amount(now, in_bytes)}{of}{unit}"]
        words.append(f"{rate / 1e6 if in_bytes else rate:,.3g}{unit}/s")
        words.append(f"{clock(elapsed)} so far")
        if total and rate:
            words.append(f"{clock((total - now) / rate)} left")
        print(", ".join(words), file=sys.stderr, flush=True)

    return advance


def clock(seconds: float) -> str:
    """`1:02:03`, hours first."""
    minutes, rest = divmod(max(0, round(seconds)), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


def _amount(count: int, in_bytes: bool) -> str:
    return f"{count / 1e6:.0f}" if in_bytes else str(count)
