"""The stages cluster and label as a user starts them: torchrun with one process and four, kill -9
of all of them, the same bytes.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hubert_pretrain.clustering.codebook import Codebook

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not Path("/proc/self/task").is_dir(), reason="finds processes to kill in /proc"
    ),
]

FILES = {"cluster": "codebook.safetensors", "label": "targets.bin"}
RECIPE = [
    "+recipe=smoke",
    "clustering@iterations.it1.clustering=full_100",
    "iterations.it1.clustering.n_clusters=30",
]


def start(work_dir: Path, stage: str, processes: int) -> subprocess.Popen[str]:
    """torchrun, in a process group of its own."""
    torchrun = (
        ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
        if processes
        else []
    )
    command = [
        sys.executable,
        *torchrun,
        "-m",
        "hubert_pretrain.run",
        *RECIPE,
        f"work_dir={work_dir}",
        f"stage={stage}",
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command,
        cwd=work_dir.parent,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def finish(work_dir: Path, stage: str, processes: int) -> None:
    process = start(work_dir, stage, processes)
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output
    assert (work_dir / stage / "meta.json").is_file(), output


def descendants(process: int) -> list[int]:
    """Its children, and theirs."""
    lists = [
        Path(f"/proc/{process}/task/{thread}/children").read_text()
        for thread in os.listdir(f"/proc/{process}/task")
    ]
    children = [int(number) for found in lists for number in found.split()]
    return [number for child in children for number in [child, *descendants(child)]]


def copy_of(run: Path, name: str) -> Path:
    """A run of which only `prepare` was done."""
    shutil.copytree(run / "prepare", run.parent / name / "prepare")
    return run.parent / name


def content(work_dir: Path, verb: str) -> bytes:
    return (work_dir / "it1" / verb / FILES[verb]).read_bytes()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Clustered and labelled without torchrun."""
    work_dir = tmp_path_factory.mktemp("torchrun") / "alone"
    for stage in ("prepare", "it1/cluster", "it1/label"):
        finish(work_dir, stage, 0)
    return work_dir


@pytest.mark.parametrize("processes", [1, 4])
def test_torchrun_gives_the_same_bytes(run: Path, processes: int) -> None:
    work_dir = copy_of(run, f"torchrun {processes}")
    for verb in FILES:
        finish(work_dir, f"it1/{verb}", processes)
        assert content(work_dir, verb) == content(run, verb), verb
    assert Codebook.load(work_dir / "it1" / "cluster").n_clusters == 30


@pytest.mark.parametrize("processes", [0, 2])
def test_killed_at_any_moment_and_run_again(run: Path, processes: int) -> None:
    """kill -9 of all processes: once while they start, then later each time, at last while the
    stage is well under way.
    """
    work_dir = copy_of(run, f"killed {processes}")
    killed = 0
    for verb in FILES:
        partial = work_dir / "it1" / f"{verb}.partial"
        for delay in (0.0, 0.1, 0.3):
            process = start(work_dir, f"it1/{verb}", processes)
            limit = time.monotonic() + 120
            while process.poll() is None and not partial.exists() and time.monotonic() < limit:
                time.sleep(0.01)
            time.sleep(delay)
            if process.poll() is None:
                for number in [
                    process.pid,
                    *descendants(process.pid),
                ]:  # torchrun gives its processes sessions of their own
                    os.kill(number, signal.SIGKILL)
                killed += 1
            process.communicate()
        finish(work_dir, f"it1/{verb}", processes)
        assert content(work_dir, verb) == content(run, verb), verb
    assert killed >= 2
