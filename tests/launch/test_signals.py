"""Signals and exit codes between a scheduler and the process of a stage."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hubert_pretrain.distributed import launched, launcher
from hubert_pretrain.errors import EXIT_INTERRUPTED, EXIT_PREEMPTED, Preempted
from hubert_pretrain.launch import signals
from hubert_pretrain.launch.signals import (
    REQUEUE_MARKER,
    exit_code_for_scheduler,
    exit_on_signals,
    hide_srun_from_lightning,
)

ROOT = Path(__file__).resolve().parents[2]
VARIABLES = ["RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "TORCHELASTIC_RUN_ID"]
VARIABLES += [
    f"SLURM_{name}" for name in ("PROCID", "NTASKS", "JOB_NAME", "STEP_NUM_TASKS", "STEP_NUM_NODES")
]
TORCHRUN = {
    "TORCHELASTIC_RUN_ID": "none",
    "WORLD_SIZE": "8",
    "LOCAL_WORLD_SIZE": "4",
    "RANK": "5",
    "LOCAL_RANK": "1",
}
SRUN = {
    "SLURM_NTASKS": "8",
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_PROCID": "5",
    "SLURM_JOB_NAME": "run",
}
BATCH_SCRIPT = {"SLURM_NTASKS": "8", "SLURM_PROCID": "0", "SLURM_JOB_NAME": "run"}


@pytest.mark.parametrize("name", ["SIGTERM", "USR2"])
def test_a_signal_ends_a_stage_with_the_code_for_again(name: str) -> None:
    before = signal.getsignal(signal.SIGUSR2)
    number = signal.SIGTERM if name == "SIGTERM" else signal.SIGUSR2
    with pytest.raises(Preempted) as left, exit_on_signals([name]):
        signal.raise_signal(number)
    assert left.value.exit_code == EXIT_PREEMPTED
    assert signal.getsignal(signal.SIGUSR2) == before


def test_workers_outlast_the_signal_so_that_their_parent_says_what_happened() -> None:
    with exit_on_signals(["SIGUSR2"]):
        child = os.fork()
        if child == 0:
            os.kill(os.getpid(), signal.SIGUSR2)
            os._exit(3)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3


STUCK = """
import ctypes, os, signal, sys, threading
from hubert_pretrain.launch import signals
signals.GRACE_SECONDS = 0.2

def in_a_library():
    mutex = ctypes.create_string_buffer(64)
    for _ in range(2):
        ctypes.CDLL(None).pthread_mutex_lock(mutex)

def in_an_except():
    while True:
        try:
            threading.Event().wait(60)
        except Exception:
            pass

def again_and_again():
    while True:  # one alone may be lost in the one before
        for name in sys.argv[2:]:
            threading.Event().wait(0.1)
            os.kill(os.getpid(), signal.Signals[name])

signal.signal(signal.SIGINT, lambda number, frame: None)  # as a training, which then saves
with signals.exit_on_signals(["SIGTERM"]):
    threading.Thread(target=again_and_again, daemon=True).start()
    globals()[sys.argv[1]]()
"""


@pytest.mark.parametrize("where", ["in_a_library", "in_an_except"])
@pytest.mark.parametrize(
    ("names", "code"), [(["SIGTERM"], EXIT_PREEMPTED), (["SIGINT"], EXIT_INTERRUPTED)]
)
def test_a_process_that_cannot_end_itself_is_ended(where: str, names: list[str], code: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", STUCK, where, *names],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == code
    assert done.stderr == f"error: left on {names[0]}; the same command resumes it\n"


def test_a_signal_to_a_worker_is_not_one_to_its_parent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signals, "GRACE_SECONDS", 0.1)
    monkeypatch.setattr(signals, "_end", lambda number: ended.append(number))
    ended: list[int] = []
    with exit_on_signals(["SIGTERM"]):
        child = os.fork()
        if child == 0:
            os.kill(os.getpid(), signal.SIGTERM)
            os._exit(3)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3
        time.sleep(0.5)
    assert ended == []


def test_handlers_that_came_later_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of a training, which saves first."""
    monkeypatch.setattr(signals, "GRACE_SECONDS", 0.1)
    monkeypatch.setattr(signals, "_end", lambda number: ended.append(number))
    ended: list[int] = []
    noted: list[int] = []
    with exit_on_signals(["SIGTERM"]):
        signal.signal(signal.SIGTERM, lambda number, frame: noted.append(number))
        signal.raise_signal(signal.SIGTERM)
        time.sleep(0.5)
    assert noted == [signal.SIGTERM]
    assert ended == []


def test_under_the_job_script_again_is_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(REQUEUE_MARKER, raising=False)
    assert exit_code_for_scheduler(EXIT_PREEMPTED) == EXIT_PREEMPTED
    monkeypatch.setenv(REQUEUE_MARKER, str(tmp_path / "again"))
    assert [exit_code_for_scheduler(code) for code in (0, 1, 2)] == [0, 1, 2]
    assert not (tmp_path / "again").exists()
    assert exit_code_for_scheduler(EXIT_PREEMPTED) == 0
    assert (tmp_path / "again").exists()


@pytest.mark.parametrize(
    ("environment", "processes", "per_node_and_nodes", "job_name"),
    [
        ({}, 1, None, None),
        (TORCHRUN, 8, (4, 2), None),
        (SRUN, 8, (4, 2), "run"),
        (BATCH_SCRIPT, 1, None, "interactive"),  # one process, whatever the job was given
        (
            {**SRUN, "SLURM_STEP_NUM_TASKS": "2", **TORCHRUN},
            8,
            (4, 2),
            "interactive",
        ),  # torchrun, started by srun on each node
    ],
)
def test_who_started_this_process(
    environment: dict[str, str],
    processes: int,
    per_node_and_nodes: tuple[int, int] | None,
    job_name: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    hide_srun_from_lightning()
    assert launched() == processes
    assert launcher() == per_node_and_nodes
    assert os.environ.get("SLURM_JOB_NAME") == job_name


def test_torchrun_wants_one_stage(tmp_path: Path) -> None:
    words = [
        sys.executable,
        "-m",
        "hubert_pretrain.run",
        "+recipe=base_ls960",  # whose steps two devices can share
        f"data.root={tmp_path}",
        f"work_dir={tmp_path}/run",
    ]
    environment = {
        **os.environ,
        "TORCHELASTIC_RUN_ID": "none",
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "RANK": "0",
    }
    environment |= {"LOCAL_RANK": "0"}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == (
        "error: torchrun and srun start the processes of one stage; add stage=<its name>, "
        "stage=list shows them\n"
    )
    assert not (tmp_path / "run").exists()
