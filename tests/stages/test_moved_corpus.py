"""A corpus that moves between two stages, and in the middle of a training."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile

from hubert_pretrain.files import read_json
from hubert_pretrain.model.checkpoint import load_model

pytestmark = pytest.mark.slow
SMALL = [
    "data=folder",
    "data.workers=1",
    "iterations.it1.clustering.n_clusters=10",
    "iterations.it1.clustering.restarts=1",
    "iterations.it1.pretrain.micro_batch_seconds=4",
    "iterations.it1.pretrain.batch_seconds=4",
    "iterations.it1.pretrain.min_seconds=1",
    "iterations.it1.pretrain.steps=30",
    "trainer.keep_checkpoints=10",
    "iterations.it1.pretrain.checkpoint_every_steps=5",
    "trainer.loader_workers=1",
    "trainer.accelerator=cpu",
    "trainer.threads=1",
    "trainer.progress_bar=false",
]


def start(tmp_path: Path, root: str, stage: str) -> subprocess.Popen[str]:
    words = [f"data.root={tmp_path / root}", f"work_dir={tmp_path / 'run'}", f"stage={stage}"]
    return subprocess.Popen(
        [sys.executable, "-m", "hubert_pretrain.run", "+recipe=smoke", *SMALL, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def finish(tmp_path: Path, root: str, stage: str) -> str:
    process = start(tmp_path, root, stage)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    return output


def test_every_stage_reads_the_corpus_where_it_is_now(tmp_path: Path) -> None:
    """Node-local copies: clustering on one disk, labels on another, a training that was killed on a
    third and goes on. The first places are gone."""
    draw = np.random.default_rng(0)
    (tmp_path / "first").mkdir()
    for number in range(12):
        waveform = 0.1 * draw.standard_normal(32_000)
        soundfile.write(tmp_path / f"first/{number}.wav", waveform, 16_000)
    finish(tmp_path, "first", "prepare")
    finish(tmp_path, "first", "it1/cluster")
    (tmp_path / "first").rename(tmp_path / "second")
    finish(tmp_path, "second", "it1/label")
    training = start(tmp_path, "second", "it1/pretrain")
    checkpoints = tmp_path / "run/it1/pretrain.partial/checkpoints"
    while training.poll() is None and not list(checkpoints.glob("*.sha256")):
        time.sleep(0.1)
    training.send_signal(signal.SIGKILL)
    training.communicate()
    first, *_ = sorted(checkpoints.glob("*.sha256"))
    written = first.stat().st_mtime_ns
    (tmp_path / "second").rename(tmp_path / "third")
    finish(tmp_path, "third", "it1/pretrain")
    gone_on = tmp_path / "run/it1/pretrain/checkpoints" / first.name
    assert gone_on.stat().st_mtime_ns == written, "it went on from its checkpoint"
    meta = read_json(tmp_path / "run/it1/pretrain/meta.json")
    assert meta["facts"]["steps"] == 30
    assert np.isfinite(meta["facts"]["masked_loss_nats"])
    assert load_model(tmp_path / "run/it1/pretrain").model is not None
    listed = finish(tmp_path, "third", "list")
    assert "stale" not in listed
    assert "changed" not in listed
