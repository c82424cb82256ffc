"""Progress of long loops and files: a bar on a terminal, else a line every ten seconds."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

LOG_EVERY_SECONDS = 10.0


class Advance(Protocol):
    """Reports progress."""

    def __call__(self, done: int | None = None) -> None:
        """One more item is done; or `done` items or bytes in all."""
        ...


@contextmanager
def progress(total: int | None, what: str, *, in_bytes: bool = False) -> Iterator[Advance]:
    """Gives a function to call after each of `total` items, or with the number of bytes so far;
    `what` names the loop. A `total` of None: not known.
    """
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
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    amounts = (DownloadColumn(), TransferSpeedColumn()) if in_bytes else (MofNCompleteColumn(),)
    columns = (TextColumn("{task.description}"), BarColumn(), *amounts, TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=total)

        def advance(done: int | None = None) -> None:
            bar.update(task, completed=done, advance=1 if done is None else None)

        yield advance


@contextmanager
def still_running(what: str) -> Iterator[None]:
    """Says every ten seconds for how long something runs that reports no progress of its own."""
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


def _log_lines(total: int | None, what: str, in_bytes: bool) -> Advance:
    """Prints at most one line in `LOG_EVERY_SECONDS`."""
    now = 0
    next_line = time.monotonic() + LOG_EVERY_SECONDS

    def advance(done: int | None = None) -> None:
        nonlocal now, next_line
        now = now + 1 if done is None else done
        if time.monotonic() >= next_line:
            next_line = time.monotonic() + LOG_EVERY_SECONDS
            of = f" of {_amount(total, in_bytes)}" if total else ""
            unit = " MB" if in_bytes else ""
            print(f"{what}: {_amount(now, in_bytes)}{of}{unit}", file=sys.stderr, flush=True)

    return advance


def _amount(count: int, in_bytes: bool) -> str:
    return f"{count / 1e6:.0f}" if in_bytes else str(count)
