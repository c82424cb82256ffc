"""tools/gpu_report.py: no part vanishes, the time is kept, and every part runs on a CPU (--dry)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hubert_pretrain.tools.gpu_report import Part, Session, allowed_seconds

from hubert_pretrain.tools import gpu_report


def part(name: str, code: str, *, most: float = 60.0, least: float = 1.0) -> Part:
    """A part that runs some Python and prints a figure."""
    return Part(
        name,
        lambda session, allowed: [sys.executable, "-c", code],
        gpu_report.json_row,
        most,
        least,
        lambda row: f"speed {row['speed']}",
    )


ROW = '{"bench": "x", "rows": {"speed": 7}}'
GOOD = part("good", f"print('''{ROW}''')")


@pytest.fixture
def session(tmp_path: Path) -> Session:
    return Session(tmp_path / "out", dry=False, minutes=1.0, audio=None)


def table(session: Session) -> str:
    return (session.out / "report.md").read_text()


def test_figures_of_a_part_are_in_both_files(session: Session) -> None:
    gpu_report.run(session, [GOOD])
    (made,) = json.loads((session.out / "report.json").read_text())["parts"]
    assert (made["name"], made["status"], made["figures"]) == ("good", "ok", {"speed": 7})
    assert "| speed 7 |" in table(session)
    assert ROW in session.log("good").read_text()


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("raise SystemExit('error: no memory')", "exit code 1; last line: error: no memory"),
        ("print('nothing to see')", "ValueError: it printed no line of JSON"),
        ("import os; os.abort()", "exit code -6"),
        (f"print('''{ROW}'''); raise SystemExit(1)", "exit code 1; speed 7"),
        ("print('a | b'); raise SystemExit(3)", "exit code 3; last line: a / b"),
    ],
)
def test_a_part_that_fails_is_named_with_its_reason_and_the_next_one_runs(
    session: Session, code: str, reason: str
) -> None:
    results = gpu_report.run(session, [part("bad", code), GOOD])
    assert (results["bad"].status, results["good"].status) == ("failed", "ok")
    assert f"**failed**: {reason}" in table(session)


def test_a_part_whose_command_cannot_be_made_fails_like_any_other(session: Session) -> None:
    def command(session: Session, allowed: float) -> list[str]:
        raise OSError("no such disk")

    bad = Part("bad", command, gpu_report.json_row, 60, 1, str)
    gpu_report.run(session, [bad])
    assert "**failed**: exit code 1; OSError: no such disk" in table(session)


def test_a_part_that_takes_too_long_is_ended_with_its_children(
    session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pid = tmp_path / "pid"
    code = (
        "import pathlib, subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "print('train step 4/13', flush=True)\n"
        f"pathlib.Path({str(tmp_path / 'new')!r}).write_text(str(child.pid))\n"
        f"pathlib.Path({str(tmp_path / 'new')!r}).rename({str(pid)!r})\n"
        "time.sleep(600)\n"
    )
    wait = subprocess.Popen.wait

    def over(self: subprocess.Popen[bytes], timeout: float | None = None) -> int:
        """The time of the part is over as soon as its child runs, however slow the machine is."""
        if timeout in (None, gpu_report.KILL_SECONDS):
            return wait(self, timeout)
        while not pid.exists():
            time.sleep(0.01)
        raise subprocess.TimeoutExpired("part", timeout or 0)

    monkeypatch.setattr(subprocess.Popen, "wait", over)
    results = gpu_report.run(session, [part("long", code, most=7.0)])
    assert results["long"].reason == "not done after 7 s; last line: train step 4/13"
    child = int(pid.read_text())
    while alive(child):
        time.sleep(0.01)


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def test_a_part_without_time_is_named_as_not_run(tmp_path: Path) -> None:
    session = Session(tmp_path, dry=False, minutes=0.05, audio=None)
    results = gpu_report.run(session, [part("large", "", least=30.0)])
    assert results["large"].status == "not run"
    assert "**not run**: 0 s are left, it needs 30" in table(session)


def test_parts_that_have_not_begun_are_in_the_table_from_the_start(session: Session) -> None:
    session.out.mkdir()
    gpu_report.write(session, gpu_report.PARTS)
    assert table(session).count("**not run**: not begun yet") == len(gpu_report.PARTS)


def test_the_least_of_later_parts_is_kept_for_them() -> None:
    first = part("first", "", most=100, least=10)
    later = [part("second", "", least=30), part("third", "", least=20)]
    assert allowed_seconds(first, later, left=200) == 100
    assert allowed_seconds(first, later, left=110) == 60
    # Its own least comes before theirs.
    assert allowed_seconds(first, later, left=40) == 10
    assert allowed_seconds(first, later, left=9) == 0
    assert allowed_seconds(first, [], left=20) == 20


def test_eight_minutes_are_enough_for_the_least_of_every_part() -> None:
    assert sum(each.least for each in gpu_report.PARTS) < 8 * 60 - gpu_report.WRITING_SECONDS
    assert all(each.least <= each.most for each in gpu_report.PARTS)
    left = 8 * 60.0
    for number, each in enumerate(gpu_report.PARTS):
        left -= allowed_seconds(each, gpu_report.PARTS[number + 1 :], left)
    assert left >= 0


def test_outcomes_of_tests_are_read_while_they_run(session: Session) -> None:
    text = (
        "tests/a.py::test_one PASSED   [ 20%]\n"
        "tests/a.py::test_two[x y] FAILED   [ 40%]\n"
        "tests/b.py::test_three SKIPPED (no NVIDIA GPU)   [ 60%]\n"
        "tests/b.py::test_four "
    )
    row = gpu_report.read_tests(session, text)
    assert (row["passed"], row["failed"], row["skipped"]) == (1, 1, 1)
    assert gpu_report.describe_tests(row).endswith("1 failed: tests/a.py::test_two[x y]")
    with pytest.raises(ValueError, match="no test ran"):
        gpu_report.read_tests(session, "ERROR: file not found")


def test_the_files_with_tests_for_a_gpu_are_found(session: Session, repository: Path) -> None:
    command = gpu_report.tests_command(session, 1.0)
    assert "tests/pretrain/test_gpu.py" in command
    assert all((repository / word).is_file() for word in command if word.startswith("tests/"))


def test_training_is_as_long_as_the_time_and_the_measured_speed_allow(session: Session) -> None:
    name = "26 M step"
    session.results[name] = gpu_report.Result(
        name, "ok", figures={"audio_seconds_per_second": 14_000.0}
    )
    words = gpu_report.pretraining_command(session, 160.0)
    (steps,) = [word for word in words if ".steps=" in word]
    # 80 % of 100 s at 40 steps a second.
    assert steps == "iterations.it1.pretrain.steps=3200"


def test_speech_is_the_folder_that_was_named_or_that_of_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HUBERT_SHARED", raising=False)
    assert gpu_report.speech(None) is None
    monkeypatch.setenv("HUBERT_SHARED", str(tmp_path))
    assert gpu_report.speech(None) is None
    (tmp_path / "data" / "librispeech").mkdir(parents=True)
    assert gpu_report.speech(None) == tmp_path / "data" / "librispeech"
    assert gpu_report.speech(tmp_path) == tmp_path


def test_a_part_without_speech_of_its_own_has_noise(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_report, "samples", lambda _: 16_000)
    monkeypatch.setattr(gpu_report.importlib.util, "find_spec", lambda _: None)
    kind, folder, *_ = gpu_report.pretraining_data(session)
    assert kind == "data=folder"
    assert list(Path(folder.removeprefix("data.root=")).glob("*.flac"))
    monkeypatch.setattr(gpu_report.importlib.util, "find_spec", lambda _: object())
    assert gpu_report.pretraining_data(session) == ["data=synthetic"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--out", "{here}"], "is not empty"),
        (["--out", "{here}/new", "--audio", "{here}/none"], "no such folder"),
        (["--out", "{here}/new", "--only", "nothing"], "invalid choice: 'nothing'"),
    ],
)
def test_wrong_words(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit):
        gpu_report.main(["--dry", *(word.format(here=tmp_path) for word in words)])
    assert message in capsys.readouterr().err


def test_without_a_gpu_only_a_dry_run_is_possible(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu_report, "has_gpu", lambda: False)
    with pytest.raises(SystemExit):
        gpu_report.main(["--out", str(tmp_path / "new")])
    assert "--dry tries every part on the CPU" in capsys.readouterr().err


@pytest.mark.slow
def test_every_part_runs_on_a_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real code of each part, at sizes that say nothing."""
    monkeypatch.delenv("HUBERT_SHARED", raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert gpu_report.main(["--dry", "--out", str(tmp_path / "out")]) == 0
    made: dict[str, Any] = json.loads((tmp_path / "out" / "report.json").read_text())
    found = {each["name"]: each for each in made["parts"]}
    assert list(found) == [each.name for each in gpu_report.PARTS]
    assert {each["status"] for each in found.values()} == {"ok"}
    assert found["base, fuse 1"]["figures"]["fuse"] == 1
    assert found["pretraining"]["figures"]["steps"] == 4
    assert len(found["pretraining"]["figures"]["curve"]) == 4
    assert found["profile"]["figures"]["kernels"][0]["milliseconds"] > 0
    assert (tmp_path / "out" / "report.md").read_text().count("\n| ") > 30
    assert os.listdir(tmp_path / "out" / "logs")
