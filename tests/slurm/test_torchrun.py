"""torchrun gives the run of one process, without being told the number of devices; stages that are
one process stay that.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load

from tests.slurm.conftest import command, weights

pytestmark = [pytest.mark.slurm, pytest.mark.xdist_group("slurm")]


def torchrun(work_dir: Path, *words: str) -> subprocess.CompletedProcess[str]:
    launcher = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
    ]
    return subprocess.run(
        [*launcher, *command(work_dir, *words)[1:]],
        capture_output=True,
        text=True,
        cwd=work_dir.parent,
        timeout=300,
        check=False,
    )


def test_two_processes_train_what_one_does(run: Path, labelled: Path, tmp_path: Path) -> None:
    alone = tmp_path / "alone"
    words = ["stage=it1/pretrain", "iterations.it1.pretrain.steps=10"]
    subprocess.run(["cp", "-r", str(labelled), str(alone)], check=True)
    done = subprocess.run(
        command(alone, *words), capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert done.returncode == 0, done.stderr
    both = torchrun(run, *words)
    assert both.returncode == 0, both.stderr[-3000:]
    meta = [
        json.loads((work_dir / "it1/pretrain/meta.json").read_text()) for work_dir in (alone, run)
    ]
    assert meta[0]["fingerprint"] == meta[1]["fingerprint"]
    expected = load(weights(alone))
    for name, found in load(weights(run)).items():
        torch.testing.assert_close(found, expected[name], rtol=1e-3, atol=1e-4, msg=name)
    # Done is done for all ranks, and export, which is one process, is so under torchrun too.
    assert torchrun(run, *words).returncode == 0
    exported = torchrun(
        run,
        "stage=export",
        "~finetune.speakers",
        "~finetune.asr",
        "export.checkpoints=[it1/pretrain]",
        *words[1:],
    )
    assert exported.returncode == 0, exported.stderr[-3000:]
    assert (run / "export/meta.json").is_file()
