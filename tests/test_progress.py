"""Progress of a long loop in a log: few lines, each with the count."""

from __future__ import annotations

import io
import re
import time

import pytest

from hubert_pretrain import progress


def test_a_log_gets_a_line_only_when_the_time_has_passed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = 0.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    with progress.progress(5, "reading audio") as advance:
        for seconds in (1.0, 9.9, 10.0, 11.0, 20.0):
            now = seconds
            advance()
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == [
        "reading audio: 3 of 5, 0.3/s, 0:00:10 so far, 0:00:07 left",
        "reading audio: 5 of 5, 0.25/s, 0:00:20 so far, 0:00:00 left",
    ]


@pytest.mark.parametrize(
    ("total", "line"),
    [
        (30_000_000, "a: 20 of 30 MB, 5 MB/s, 0:00:04 so far, 0:00:02 left"),
        (None, "a: 20 MB, 5 MB/s, 0:00:04 so far"),
    ],
)
def test_bytes_are_counted_in_all(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    total: int | None,
    line: str,
) -> None:
    now = 0.0
    monkeypatch.setattr(progress, "LOG_EVERY_SECONDS", 0.0)
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    with progress.progress(total, "a", in_bytes=True) as advance:
        now = 4.0
        advance(20_000_000)
    assert capsys.readouterr().err.splitlines() == [line]


def test_a_bar_of_items_and_of_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a terminal."""
    import rich.progress

    done = []
    stop = rich.progress.Progress.stop
    monkeypatch.setattr(progress.sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(
        rich.progress.Progress,
        "stop",
        lambda bar: done.append(bar.tasks[0].completed) or stop(bar),
    )
    with progress.progress(5, "a") as advance:
        advance()
        advance()
    with progress.progress(None, "b", in_bytes=True) as advance:
        advance(7)
    assert done == [2, 7]


def test_a_loop_that_may_end_early_says_so_with_its_last_metrics(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = 0.0
    monkeypatch.setattr(progress, "LOG_EVERY_SECONDS", 0.0)
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    with progress.progress(100, "passes", at_most=True) as advance:
        now = 4.0
        advance(0, "start 3 of 20")
        advance(8, "inertia 5.2")
    assert capsys.readouterr().err.splitlines() == [
        "passes: 0 of at most 100, 0:00:04 so far, start 3 of 20",
        "passes: 8 of at most 100, 2/s, 0:00:04 so far, at most 0:00:46 left, inertia 5.2",
    ]


def test_other_ranks_say_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "LOG_EVERY_SECONDS", 0.0)
    for number in ("0", "1"):
        monkeypatch.setenv("RANK", number)
        for is_terminal in (False, True):
            monkeypatch.setattr(progress.sys.stderr, "isatty", lambda at=is_terminal: at)
            with progress.progress(2, f"rank {number}") as advance:
                advance()
    shown = capsys.readouterr().err
    assert "rank 0: 1 of 2" in shown
    assert "rank 1" not in shown


def test_a_bar_shows_the_rate_and_the_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(stream, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(progress.sys, "stderr", stream)
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("TERM", "xterm")
    with progress.progress(40, "reading audio") as advance:
        for count in range(30):
            advance(note=f"loss {count}")
            time.sleep(0.005)
    shown = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", stream.getvalue())
    assert re.search(r"reading audio .* 30/40 \d[\d,.e+]*/s 0:00:0\d left \S+ loss \d+", shown)
