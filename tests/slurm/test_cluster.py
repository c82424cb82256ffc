"""On a real cluster of two nodes: the loop, preemption, time limits, cancelling, and what a failure
leaves in the queue.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hubert_pretrain.launch.sbatch import JOB_SCRIPT
from tests.slurm.cluster import Cluster
from tests.slurm.conftest import command, weights

pytestmark = [pytest.mark.slurm, pytest.mark.xdist_group("slurm")]

SMALL = [
    "launch=slurm",
    "launch.resources.cpus=1",
    "launch.stages.prepare.cpus=2",
    "launch.resources.memory_gb=1",
]
TWO_NODES = ["launch.stages.cluster.nodes=2", "launch.stages.pretrain.nodes=2"]
ASKS_AGAIN = """
import os, pathlib, signal, sys, time
def leave(*_):
    pathlib.Path(os.environ["HUBERT_REQUEUE_MARKER"]).touch()
    sys.exit(0)
signal.signal(signal.SIGUSR2, leave)
starts, start = pathlib.Path(sys.argv[1]), int(os.environ.get("SLURM_RESTART_COUNT", 0)) + 1
(starts / f"start {start} of rank {os.environ['SLURM_PROCID']}").touch()
if start <= int(sys.argv[2]):
    leave() if sys.argv[3] == "at once" else time.sleep(60)
"""
"""Stands for a stage: it asks to go on, at once or on a signal, as often as argument 2 says, and is
done then.
"""


def submit(cluster: Cluster, work_dir: Path, *words: str, fails: bool = False) -> str:
    done = subprocess.run(
        command(work_dir, *SMALL, *words),
        env=cluster.environment,
        capture_output=True,
        text=True,
        cwd=work_dir.parent,
        check=False,
    )
    assert (done.returncode != 0) == fails, done.stdout + done.stderr + logs(work_dir)
    return done.stdout + done.stderr


def job_of(work_dir: Path, stage: str) -> str:
    return str(json.loads((work_dir / "slurm/jobs.json").read_text())[stage]["id"])


def logs(work_dir: Path) -> str:
    return "\n".join(
        f"== {path}\n{path.read_text()[-3000:]}"
        for path in sorted((work_dir / "slurm").rglob("*.out"))
    )


def stub(
    cluster: Cluster,
    folder: Path,
    *arguments: str,
    options: tuple[str, ...] = (),
    **environment: str,
) -> tuple[str, Path]:
    """A job of job.sh around ASKS_AGAIN; its number, and the folder that keeps its
    starts.
    """
    starts = folder / "starts"
    starts.mkdir()
    words = [
        "sbatch",
        "--parsable",
        "--requeue",
        "--mem=100M",
        "--open-mode=append",
        f"--output={folder}/log",
        *options,
    ]
    words += [str(JOB_SCRIPT), sys.executable, "-c", ASKS_AGAIN, str(starts), *arguments]
    done = subprocess.run(
        words,
        env=cluster.environment | environment,
        capture_output=True,
        text=True,
        cwd=folder,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip(), starts


def wait_for(path: Path, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < deadline, f"no {path}"
        time.sleep(0.1)


def seen(starts: Path) -> int:
    """Number of starts of rank 0."""
    return len(list(starts.glob("start * of rank 0")))


@pytest.fixture(scope="module", autouse=True)
def timed(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A job whose time will be over in a minute, which is the shortest there is: it begins before
    the other tests.
    """
    return stub(
        cluster,
        tmp_path_factory.mktemp("timed"),
        "1",
        "on a signal",
        options=("--time=1", "--signal=USR2@20"),
    )


def test_the_loop_over_two_nodes(cluster: Cluster, tmp_path: Path) -> None:
    work_dir = tmp_path / "the whole loop ü"
    short = [
        "~finetune.speakers",
        "export.checkpoints=[finetune/asr]",
        "iterations.it1.pretrain.steps=10",
        "iterations.it2.pretrain.steps=10",
    ]
    words = [*short, *TWO_NODES, "launch.stages.label.array=2"]
    printed = submit(cluster, work_dir, *words)
    assert "[2/10] it1/cluster: job" in printed
    again = submit(cluster, work_dir, *words, "launch.wait=true", "launch.poll_seconds=0.5")
    assert again.count("was submitted before") == 10
    for stage in (
        "prepare",
        "it1/cluster",
        "it1/label",
        "it1/pretrain",
        "it2/pretrain",
        "finetune/asr",
        "evaluate/asr/test",
        "export",
    ):
        assert (work_dir / stage / "meta.json").is_file(), logs(work_dir)
    assert "COMPLETED" in again
    listed = submit(cluster, work_dir, *short, "stage=list")
    assert len(re.findall(r"│ done +│.*│ \d+ COMPLETED \(", listed)) == 10
    assert "on n[1-2]" in listed
    assert not list(work_dir.rglob(".requeue*"))


def test_preempted_and_requeued_equals_undisturbed(
    cluster: Cluster, run: Path, labelled: Path, tmp_path: Path
) -> None:
    disturbed = run
    undisturbed = tmp_path / "undisturbed"
    subprocess.run(["cp", "-r", str(labelled), str(undisturbed)], check=True)
    words = [*TWO_NODES, "stage=it1/pretrain"]
    submit(cluster, undisturbed, *words, "launch.wait=true", "launch.poll_seconds=0.5")
    submit(cluster, disturbed, *words)
    job = job_of(disturbed, "it1/pretrain")
    checkpoints = disturbed / "it1/pretrain.partial/checkpoints"
    wait_for(checkpoints / "step=00000005.ckpt.sha256", 120)
    subprocess.run(["scancel", "--signal=USR2", job], env=cluster.environment, check=True)
    cluster.wait_for(job, "COMPLETED", "FAILED", "CANCELLED")
    assert "requeued (1 of at most 100 times)" in logs(disturbed)
    assert cluster.state(job) == "COMPLETED", logs(disturbed)
    assert weights(disturbed) == weights(undisturbed)


def test_a_failed_stage_leaves_nothing_queued_that_depends_on_it(
    cluster: Cluster, run: Path
) -> None:
    subprocess.run(["rm", "-r", str(run / "it1/label")], check=True)
    (run / "it1/cluster/codebook.safetensors").write_bytes(b"damaged")
    printed = submit(cluster, run, "launch.wait=true", "launch.poll_seconds=0.5", fails=True)
    assert "it1/label is not done: job" in printed
    assert "FAILED" in printed
    states = {
        cluster.state(job["id"])
        for stage, job in json.loads((run / "slurm/jobs.json").read_text()).items()
        if stage != "it1/label"
    }
    assert states == {"CANCELLED"}
    # The same command submits again all stages that are not done.
    again = submit(cluster, run, "launch.dry_run=true")
    assert again.count("# ---- ") == 10


def test_a_partition_that_is_not_there_is_refused_in_the_words_of_sbatch(
    cluster: Cluster, run: Path
) -> None:
    printed = submit(
        cluster, run, "launch.resources.partition=nope", "stage=it1/pretrain", fails=True
    )
    assert "sbatch refused the job: " in printed
    assert "invalid partition" in printed


@pytest.mark.parametrize(
    "whom", [[], ["--batch"], ["--full"]], ids=["the processes", "the script", "both"]
)
def test_a_signal_requeues_whoever_gets_it(
    cluster: Cluster, tmp_path: Path, whom: list[str]
) -> None:
    job, starts = stub(
        cluster, tmp_path, "1", "on a signal", options=("--nodes=2", "--ntasks-per-node=1")
    )
    cluster.wait_for(job, "RUNNING")
    wait_for(starts / "start 1 of rank 0")
    wait_for(starts / "start 1 of rank 1")
    subprocess.run(["scancel", "--signal=USR2", *whom, job], env=cluster.environment, check=True)
    cluster.wait_for(job, "COMPLETED")
    assert "requeued (1 of at most 100 times)" in (tmp_path / "log").read_text()


def test_the_end_of_the_time_requeues(cluster: Cluster, timed: tuple[str, Path]) -> None:
    job, starts = timed
    cluster.wait_for(job, "COMPLETED", seconds=100)
    assert seen(starts) == 2


def test_requeues_are_bounded(cluster: Cluster, tmp_path: Path) -> None:
    job, starts = stub(cluster, tmp_path, "9", "at once", HUBERT_MAX_REQUEUES="1")
    cluster.wait_for(job, "FAILED")
    assert seen(starts) == 2
    assert "ExitCode=75:0" in cluster.ask("scontrol", "show", "job", job)


def test_what_a_user_cancels_stays_cancelled(cluster: Cluster, tmp_path: Path) -> None:
    job, starts = stub(cluster, tmp_path, "9", "on a signal")
    wait_for(starts / "start 1 of rank 0")
    subprocess.run(["scancel", job], env=cluster.environment, check=True)
    time.sleep(8)
    assert cluster.state(job) == "CANCELLED"
    assert seen(starts) == 1
