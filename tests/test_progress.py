"""Progress of a long loop in a log: few lines, each with the count."""

from __future__ import annotations

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
