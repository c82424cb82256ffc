"""Signals and lost ranks before the first step, with ranks that Lightning starts."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from hubert_pretrain.config import compose
from hubert_pretrain.errors import EXIT_PREEMPTED
from hubert_pretrain.pipeline import plan
from hubert_pretrain.pipeline.workspace import Workspace
from hubert_pretrain.stages.runner import run_stage

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
IT1 = "iterations.it1"
WORDS = [
    "+recipe=smoke",
    "trainer.threads=1",
    f"{IT1}.pretrain.micro_batch_seconds=4",
    f"{IT1}.pretrain.batch_seconds=8",
    f"{IT1}.pretrain.steps=100000",
    f"{IT1}.pretrain.checkpoint_every_steps=5",
]
HOLD = """
import ctypes, os
rank, _, where = os.environ["HOLD"].partition(":")

def stuck(*args, **kwargs):
    print(f"rank {rank} is stuck", flush=True)
    mutex = ctypes.create_string_buffer(64)
    for _ in range(2):
        ctypes.CDLL(None).pthread_mutex_lock(mutex)

if (os.environ.get("LOCAL_RANK") or "0") == rank:
    if where == "meeting":
        import torch.distributed
        torch.distributed.init_process_group = stuck
    if where == "batch":
        from hubert_pretrain.pretrain.dataset import MicroBatches
        MicroBatches.__getitem__ = stuck
from hubert_pretrain import run
if __name__ == "__main__":
    run.main()
"""
"""The command line, in which one rank waits in a library for ever: HOLD=RANK:WHERE."""
SMALL_SHM = """
mount -t tmpfs -o size=300k tmpfs /dev/shm || exit 77
exec "$@"
"""


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose next stage is it1/pretrain."""
    root = tmp_path_factory.mktemp("labelled") / "run"
    recipe = compose.recipe_of([*WORDS, f"work_dir={root}"])
    for stage in ("prepare", "it1/cluster", "it1/label"):
        run_stage(recipe, Workspace(root), plan.find(recipe, stage))
    return root


def environment(**more: str) -> dict[str, str]:
    env = {name: value for name, value in os.environ.items() if name != "MASTER_PORT"}
    return {**env, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **more}


class Training:
    """it1/pretrain of two devices."""

    def __init__(
        self,
        labelled: Path,
        folder: Path,
        hold: str = "",
        *words: str,
        prefix: tuple[str, ...] = (),
        **env: str,
    ) -> None:
        self.run = folder / "run"
        shutil.copytree(labelled, self.run)
        (folder / "hold.py").write_text(HOLD)
        path = os.pathsep.join([str(ROOT), str(folder)])
        own = ["stage=it1/pretrain", f"work_dir={self.run}", "trainer.devices=2", *words]
        self.output = folder / "output.txt"
        with open(self.output, "wb") as output:
            self.process = subprocess.Popen(
                [*prefix, sys.executable, "-m", "hold", *WORDS, *own],
                env=environment(**{**env, "HOLD": hold, "PYTHONPATH": path}),
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def text(self) -> str:
        return self.output.read_text(errors="replace")

    def ranks(self) -> list[int]:
        """Processes of the ranks: the command itself, and those that it started."""
        own = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        children = [int(pid) for pid in own.read_text().split()]
        return [self.process.pid, *[pid for pid in children if "train_ddp" in command_of(pid)]]

    def wait_for(self, text: str) -> None:
        end = time.monotonic() + 400
        while text not in self.text() or len(self.ranks()) < 2:
            assert self.process.poll() is None, self.text()[-2000:]
            assert time.monotonic() < end, self.text()[-2000:]
            time.sleep(0.05)

    def end(self, seconds: float = 300) -> int:
        """The exit code; no process of the command is left then."""
        code = self.process.wait(timeout=seconds)
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            try:
                os.killpg(self.process.pid, 0)
            except ProcessLookupError:
                return code
            time.sleep(0.1)
        pytest.fail("a process is left")


def command_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


@pytest.fixture
def trainings() -> Iterator[list[Training]]:
    started: list[Training] = []
    yield started
    for each in started:
        if each.process.poll() is None:
            os.killpg(each.process.pid, signal.SIGKILL)
            each.process.wait()


@pytest.mark.parametrize(("hold", "rank"), [("1:meeting", 0), ("1:meeting", 1), ("0:batch", 0)])
def test_a_signal_before_the_first_step_moves_all(
    hold: str, rank: int, labelled: Path, tmp_path: Path, trainings: list[Training]
) -> None:
    """Also where a rank waits in a library, which Python's handlers cannot interrupt."""
    training = Training(labelled, tmp_path, hold)
    trainings.append(training)
    training.wait_for("is stuck")
    os.kill(training.ranks()[rank], signal.SIGTERM)
    assert training.end() == EXIT_PREEMPTED
    assert "error: left on SIGTERM; the same command resumes it" in training.text()


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_is_lost_before_the_first_step_takes_the_others_along(
    rank: int, labelled: Path, tmp_path: Path, trainings: list[Training]
) -> None:
    training = Training(labelled, tmp_path, "1:meeting")
    trainings.append(training)
    training.wait_for("is stuck")
    os.kill(training.ranks()[rank], signal.SIGKILL)
    if rank == 0:
        assert training.end() == -signal.SIGKILL
        return
    assert training.end() == 1
    assert "error: rank 1 ended before the first step (killed by SIGKILL)" in training.text()


def test_a_rank_that_is_lost_later_is_named(
    labelled: Path, tmp_path: Path, trainings: list[Training]
) -> None:
    training = Training(labelled, tmp_path)
    trainings.append(training)
    training.wait_for("train step 25/")
    os.kill(training.ranks()[1], signal.SIGKILL)
    assert training.end() == 1
    assert "error: rank 1 is gone" in training.text()


def test_a_first_batch_that_never_comes(
    labelled: Path, tmp_path: Path, trainings: list[Training]
) -> None:
    """From a worker of the loader, in one process."""
    words = ("trainer.loader_workers=1", "trainer.devices=1")
    training = Training(labelled, tmp_path, "0:batch", *words)
    trainings.append(training)
    end = time.monotonic() + 400
    while "is stuck" not in training.text():
        assert time.monotonic() < end, training.text()[-2000:]
        time.sleep(0.05)
    training.process.send_signal(signal.SIGTERM)
    assert training.end() == EXIT_PREEMPTED


def test_a_small_dev_shm_is_an_error_of_one_line(
    labelled: Path, tmp_path: Path, trainings: list[Training]
) -> None:
    prefix = ("unshare", "--mount", "bash", "-c", SMALL_SHM, "bash")
    words = ("trainer.loader_workers=1", "trainer.devices=1")
    training = Training(labelled, tmp_path, "", *words, prefix=prefix)
    trainings.append(training)
    code = training.end()
    if code == 77 or "Operation not permitted" in training.text():
        pytest.skip("no file system may be mounted here")
    assert code == 1
    errors = [line for line in training.text().splitlines() if "error: " in line]
    assert len(errors) == 1
    assert re.search(r"^error: .*/dev/shm.*--shm-size=8g or --ipc=host", errors[0])
    assert "Traceback" not in training.text()
