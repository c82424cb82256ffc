"""`stage=all` under a scheduler: signals to its process reach the stage, which saves, and the exit
code comes back.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from hubert_pretrain.errors import EXIT_INTERRUPTED, EXIT_PREEMPTED
from hubert_pretrain.launch.signals import REQUEUE_MARKER

ROOT = Path(__file__).resolve().parents[2]
STAGE = """#!/bin/bash
# A stage that saves for a second, whatever else comes, and is killed with its parent.
save() {
    trap "" TERM USR2
    trap 'echo ended >> "$OUT"; exit 130' INT
    echo saving >> "$OUT"
    for moment in {1..10}; do sleep 0.1; done
    echo saved >> "$OUT"
    exit $1
}
trap "save 75" TERM USR2
trap "save 130" INT
echo "begun $@" >> "$OUT"
if [ -e "$OUT.code" ]; then exit $(cat "$OUT.code"); fi
while true; do sleep 0.05; done
"""
DRIVER = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # tests may run in the background
from types import SimpleNamespace
from hubert_pretrain import run
from hubert_pretrain.launch import local, signals
folder = sys.argv[1]
signals.GRACE_SECONDS = float(sys.argv[2])
local.sys = SimpleNamespace(executable=f"{folder}/stage", platform=sys.platform)
sys.argv[1:] = ["+recipe=smoke", f"work_dir={folder}/run"]
run.main()
"""
CONTAINER = ["unshare", "--pid", "--fork", "--kill-child"]
"""Makes a process the first of its PID namespace, to which the kernel gives only signals that it
handles."""


class Command:
    """`stage=all` with a stage that only waits."""

    def __init__(
        self,
        folder: Path,
        prefix: Sequence[str] = (),
        *,
        grace_seconds: float = 5.0,
        **environment: str,
    ) -> None:
        self.folder = folder
        stage = folder / "stage"
        stage.write_text(STAGE)
        stage.chmod(0o755)
        env = {**os.environ, "PYTHONPATH": str(ROOT), "OUT": str(folder / "out"), **environment}
        self.process = subprocess.Popen(
            [*prefix, sys.executable, "-c", DRIVER, str(folder), str(grace_seconds)],
            env=env,
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )

    @property
    def driver(self) -> int:
        """Its process, which `unshare` starts."""
        of_unshare = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return int(of_unshare.read_text().split()[0])

    def wait_for(self, word: str) -> None:
        end = time.monotonic() + 300
        while word not in self.output():
            assert self.process.poll() is None
            assert time.monotonic() < end
            time.sleep(0.02)

    def output(self) -> str:
        out = self.folder / "out"
        return out.read_text() if out.exists() else ""

    def end(self) -> tuple[int, str]:
        """Exit code and stderr."""
        _, error = self.process.communicate(timeout=300)
        return self.process.returncode, error


@pytest.fixture
def commands() -> Iterator[list[Command]]:
    started: list[Command] = []
    yield started
    for command in started:
        if command.process.poll() is None:
            os.killpg(command.process.pid, signal.SIGKILL)
            command.process.communicate()


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR2"])
@pytest.mark.parametrize("to", ["the driver", "all", "the driver, three times"])
def test_a_signal_to_the_driver_lets_the_stage_save(
    name: str, to: str, tmp_path: Path, commands: list[Command]
) -> None:
    command = Command(tmp_path)
    commands.append(command)
    command.wait_for("begun")
    number = signal.Signals[name]
    for _ in range(3 if "three" in to else 1):
        if to == "all":
            os.killpg(command.process.pid, number)
        else:
            command.process.send_signal(number)
        time.sleep(0.1)
    code, error = command.end()
    assert code == EXIT_PREEMPTED
    assert command.output().splitlines()[1:] == ["saving", "saved"]
    last = error.splitlines()[-1]
    assert last == f"error: stage prepare left on {name}; the same command resumes it"


def test_as_the_first_process_of_a_container(tmp_path: Path, commands: list[Command]) -> None:
    """`docker stop`: SIGTERM to process 1 alone, SIGKILL to all after ten seconds."""
    allowed = subprocess.run([*CONTAINER, "true"], capture_output=True, check=False)
    if allowed.returncode:
        pytest.skip(f"no PID namespaces here: {allowed.stderr.decode().strip()}")
    command = Command(tmp_path, CONTAINER)
    commands.append(command)
    command.wait_for("begun")
    os.kill(command.driver, signal.SIGTERM)
    code, error = command.end()
    assert code == EXIT_PREEMPTED
    assert "saved" in command.output()
    assert "left on SIGTERM" in error


def test_a_killed_driver_takes_the_stage_along(tmp_path: Path, commands: list[Command]) -> None:
    command = Command(tmp_path)
    commands.append(command)
    command.wait_for("begun")
    command.process.kill()
    command.end()
    end = time.monotonic() + 60
    while is_alive := has_processes(command.process.pid):
        if time.monotonic() > end:
            break
        time.sleep(0.05)
    assert not is_alive, "the stage outlives its driver"


def has_processes(group: int) -> bool:
    """True until the last process of a group has ended."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize("to", ["the driver", "all", "the stage"])
def test_an_interrupt_lets_the_stage_save(to: str, tmp_path: Path, commands: list[Command]) -> None:
    """A terminal sends it to all processes, and the stage may save for longer than others get."""
    command = Command(tmp_path, grace_seconds=0.3)
    commands.append(command)
    command.wait_for("begun")
    if to == "all":
        os.killpg(command.process.pid, signal.SIGINT)
    elif to == "the stage":
        os.kill(_child(command.process.pid), signal.SIGINT)
    else:
        command.process.send_signal(signal.SIGINT)
    code, error = command.end()
    assert code == EXIT_INTERRUPTED
    assert command.output().splitlines()[1:] == ["saving", "saved"]
    assert re.search(r"error: (stage prepare was )?interrupted; the same command resumes", error)


@pytest.mark.parametrize("to", ["the driver", "all"])
def test_a_second_interrupt_ends_it_at_once(
    to: str, tmp_path: Path, commands: list[Command]
) -> None:
    command = Command(tmp_path, grace_seconds=0.1)
    commands.append(command)
    command.wait_for("begun")
    for _ in range(2):
        if to == "all":
            os.killpg(command.process.pid, signal.SIGINT)
        else:
            command.process.send_signal(signal.SIGINT)
        command.wait_for("saving")
    code, _ = command.end()
    assert code == EXIT_INTERRUPTED
    assert "saved" not in command.output()


@pytest.mark.parametrize(
    ("code", "expected", "message"),
    [
        (EXIT_PREEMPTED, EXIT_PREEMPTED, "left as its message above says; the same command"),
        (76, 76, "failed (exit code 76"),
        (1, 1, "failed (exit code 1"),
    ],
)
def test_the_exit_code_of_a_stage_is_passed_on(
    code: int, expected: int, message: str, tmp_path: Path, commands: list[Command]
) -> None:
    (tmp_path / "out.code").write_text(str(code))
    command = Command(tmp_path)
    commands.append(command)
    found, error = command.end()
    assert found == expected
    assert message in error


def test_under_the_job_script_the_driver_asks_to_be_requeued(
    tmp_path: Path, commands: list[Command]
) -> None:
    """Its stage must not: it would end with 0, as if it were done."""
    marker = tmp_path / "requeue"
    command = Command(tmp_path, **{REQUEUE_MARKER: str(marker)})
    commands.append(command)
    command.wait_for("begun")
    assert f"{REQUEUE_MARKER}=".encode() not in _environment_of_child(command.process.pid)
    command.process.send_signal(signal.SIGUSR2)
    assert command.end()[0] == 0
    assert marker.exists()


def _child(pid: int) -> int:
    return int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])


def _environment_of_child(pid: int) -> bytes:
    return Path(f"/proc/{_child(pid)}/environ").read_bytes()
