"""Progress of a long loop in a log: few lines, each with the count."""

from __future__ import annotations

import re
import threading

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
    assert captured.err.splitlines() == ["reading audio: 3 of 5", "reading audio: 5 of 5"]


@pytest.mark.parametrize(("total", "line"), [(30_000_000, "a: 20 of 30 MB"), (None, "a: 20 MB")])
def test_bytes_are_counted_in_all(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    total: int | None,
    line: str,
) -> None:
    monkeypatch.setattr(progress, "LOG_EVERY_SECONDS", 0.0)
    with progress.progress(total, "a", in_bytes=True) as advance:
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


def test_something_without_progress_says_that_it_is_running(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "LOG_EVERY_SECONDS", 0.01)
    said = ""
    with progress.still_running("k-means"):
        while "\n" not in said:
            said += capsys.readouterr().err
    assert re.match(r"k-means: running for \d+ s\n", said)
    assert not [each for each in threading.enumerate() if each.name == "still running"]
