"""The cluster, and a run whose targets are made, which several trainings begin from."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.slurm.cluster import Cluster, missing

WORDS = [
    "+recipe=smoke",
    "iterations.it1.clustering.engine=torch",  # several processes share it
    "iterations.it2.clustering.engine=torch",
    # a step is four micro-batches, which two processes share
    "iterations.it1.pretrain.micro_batch_seconds=4",
    "iterations.it2.pretrain.micro_batch_seconds=4",
    "iterations.it1.pretrain.steps=60",
    "trainer.progress_bar=false",
]


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    if absent := missing():
        pytest.skip(
            f"no SLURM on this machine: {absent} not installed (apt-get install slurm-wlm munge)"
        )
    # Short: the path of a socket may have 107 characters.
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))
    try:
        with Cluster(folder) as running:
            yield running
    except (TimeoutError, OSError) as error:
        if os.geteuid() == 0:
            raise
        pytest.skip(f"SLURM does not start for this user: {error}")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def command(work_dir: Path, *words: str) -> list[str]:
    """The command of a user."""
    return [sys.executable, "-m", "hubert_pretrain.run", *WORDS, f'work_dir="{work_dir}"', *words]


@pytest.fixture(scope="session")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run up to the targets of its first iteration, made in one process."""
    work_dir = tmp_path_factory.mktemp("labelled") / "run"
    for stage in ("prepare", "it1/cluster", "it1/label"):
        done = subprocess.run(
            command(work_dir, f"stage={stage}"),
            capture_output=True,
            text=True,
            cwd=work_dir.parent,
            check=False,
        )
        assert done.returncode == 0, done.stderr
    return work_dir


@pytest.fixture
def run(labelled: Path, tmp_path: Path) -> Path:
    """A copy of it that a test may spoil, in a folder with a name that is none for a shell."""
    shutil.copytree(labelled, tmp_path / "a run ü")
    return tmp_path / "a run ü"


def weights(work_dir: Path) -> bytes:
    return (work_dir / "it1/pretrain/model.safetensors").read_bytes()
