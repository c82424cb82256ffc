"""Two that want one lock: on one machine, on two where the kernel's locks do not reach, and where
there are none.
"""

from __future__ import annotations

import errno
import fcntl
import json
import multiprocessing
import os
import platform
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from hubert_pretrain.errors import ArtefactError
from hubert_pretrain.pipeline import locks

CONTEXT = multiprocessing.get_context("spawn")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in {
        "PATIENCE_SECONDS": 0.2,
        "HEARTBEAT_SECONDS": 0.05,
        "STALE_SECONDS": 0.5,
        "SETTLE_SECONDS": 0.05,
    }.items():
        monkeypatch.setattr(locks, name, seconds)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / ".locks" / "it1-cluster"


def left_by(path: Path, **who: Any) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"process": 1, "host": platform.node(), "job": ""} | who))


def test_it_is_free_again_afterwards_and_after_an_error(path: Path) -> None:
    with locks.acquire(path, "it1/cluster"):
        assert locks.holder(path) == f"process {os.getpid()} on {platform.node()}"
    with pytest.raises(ZeroDivisionError), locks.acquire(path, "it1/cluster"):
        1 / 0  # noqa: B018
    assert locks.holder(path) is None
    with locks.acquire(path, "it1/cluster"):
        pass


def test_the_message_names_process_machine_and_job(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    who = (
        rf"it1/cluster is being run by another process \(process {os.getpid()} on .*, "
        r"SLURM job 77\); wait for it or end it"
    )
    with (
        locks.acquire(path, "it1/cluster"),
        pytest.raises(ArtefactError, match=who),
        locks.acquire(path, "it1/cluster"),
    ):
        pass


def _hold_and_die(path: Path, ready: Any) -> None:
    with locks.acquire(path, "it1/cluster"):
        ready.set()
        time.sleep(600)


def test_a_killed_holder_on_this_machine_is_no_obstacle(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ready = CONTEXT.Event()
    process = CONTEXT.Process(target=_hold_and_die, args=(path, ready), daemon=True)
    process.start()
    assert ready.wait(300)
    process.kill()
    process.join()
    assert json.loads(path.read_text())["process"] == process.pid
    with locks.acquire(path, "it1/cluster"):
        assert "waiting" not in capsys.readouterr().out


def test_a_holder_elsewhere_that_lives_is_respected(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its machine's lock does not reach this one; that it touches the file says that it lives. What
    its clock says does not matter.
    """
    monkeypatch.setattr(locks, "STALE_SECONDS", 1000)
    left_by(path, host="node7")
    stop = threading.Event()

    def touch() -> None:
        moment = 1000.0  # in 1970
        while not stop.wait(0.05):
            moment += 1
            os.utime(path, (moment, moment))

    beating = threading.Thread(target=touch)
    beating.start()
    try:
        with (
            pytest.raises(ArtefactError, match="process 1 on node7"),
            locks.acquire(path, "it1/cluster"),
        ):
            pass
    finally:
        stop.set()
        beating.join()


def test_a_holder_elsewhere_that_is_silent_is_given_up(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    left_by(path, host="node7")
    assert locks.holder(path) == "process 1 on node7"
    with locks.acquire(path, "it1/cluster"):
        assert json.loads(path.read_text())["host"] == platform.node()
    assert "left by process 1 on node7; waiting" in capsys.readouterr().out


def test_a_requeued_job_takes_over_from_itself_at_once(
    path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    left_by(path, host="node7", job="77")
    with locks.acquire(path, "it1/cluster"):
        assert json.loads(path.read_text())["host"] == platform.node()
    assert "waiting" not in capsys.readouterr().out


def test_it_beats_while_it_is_held(path: Path) -> None:
    with locks.acquire(path, "it1/cluster"):
        before = path.stat().st_mtime_ns
        deadline = time.monotonic() + 300
        while path.stat().st_mtime_ns == before:
            assert time.monotonic() < deadline
            time.sleep(0.01)


@pytest.mark.parametrize("alive", [True, False])
def test_where_the_kernel_locks_nothing(
    path: Path, monkeypatch: pytest.MonkeyPatch, alive: bool
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with locks.acquire(path, "it1/cluster"):
        assert json.loads(path.read_text())["kernel"] is False
        if alive:
            with (
                pytest.raises(ArtefactError, match=f"process {os.getpid()}"),
                locks.acquire(path, "it1/cluster"),
            ):
                pass
    gone = CONTEXT.Process(target=print)
    gone.start()
    gone.join()
    left_by(path, process=gone.pid, kernel=False)
    with locks.acquire(path, "it1/cluster"):
        pass
