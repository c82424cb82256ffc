"""Progress of long loops: a bar on a terminal, else a line every ten seconds."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

LOG_EVERY_SECONDS = 10.0


@contextmanager
def progress(total: int, what: str) -> Iterator[Callable[[], None]]:
    """Gives a function to call after each of `total` items; `what` names the loop."""
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
        )

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task(what, total=total)
            yield lambda: bar.advance(task)
    else:
        yield _log_lines(total, what)


def _log_lines(total: int, what: str) -> Callable[[], None]:
    """Prints at most one line in `LOG_EVERY_SECONDS`."""
    done = 0
    next_line = time.monotonic() + LOG_EVERY_SECONDS

    def advance() -> None:
        nonlocal done, next_line
        done += 1
        if time.monotonic() >= next_line:
            next_line = time.monotonic() + LOG_EVERY_SECONDS
            print(f"{what}: {done} of {total}", file=sys.stderr, flush=True)

    return advance
