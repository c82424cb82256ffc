"""Checkpoints that a kill, a full disk or damage cannot take away, and that run no code when
opened.
"""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from hubert_pretrain import distributed
from hubert_pretrain.errors import ArtefactError
from hubert_pretrain.files import sha256
from hubert_pretrain.training.resilience import checkpoint_io, sharded_checkpoint
from hubert_pretrain.training.resilience.checkpoint_io import (
    VerifiedCheckpointIO,
    checkpoints,
    newest,
    step_of,
    verified,
)


def save(folder: Path, step: int, value: float = 0.0) -> Path:
    path = folder / f"step={step:08d}.ckpt"
    VerifiedCheckpointIO().save_checkpoint(
        {"global_step": step, "weights": torch.full((1000,), value)}, path
    )
    return path


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    path = save(tmp_path, 5, 2.5)
    assert verified(path)
    assert step_of(path) == 5
    assert torch.equal(
        VerifiedCheckpointIO().load_checkpoint(path)["weights"], torch.full((1000,), 2.5)
    )
    assert sorted(file.name for file in tmp_path.iterdir()) == [path.name, path.name + ".sha256"]


def unreadable(*paths: Path) -> str:
    raise AssertionError(f"{paths} are read")


def test_the_hash_needs_no_reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as blind:
        blind.setattr(checkpoint_io, "sha256", unreadable)
        path = save(tmp_path, 5, 2.5)
    assert path.with_name(path.name + ".sha256").read_text().strip() == sha256(path)


@pytest.fixture
def group() -> Iterator[Any]:
    """A process group of this process alone."""
    import torch.distributed as dist

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield dist.group.WORLD
    distributed.leave_group()


def test_nor_do_those_of_shards(
    group: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    weights = distribute_tensor(torch.randn(20, 3), init_device_mesh("cpu", (1,)), [Shard(0)])
    moments = {"state": {"w": {"exp_avg": torch.randn(20, 3)}}, "param_groups": []}
    content = {"global_step": 5, "state_dict": {"w": weights}, "optimizer_states": [moments]}
    path = checkpoint_io.path_of(tmp_path, 5)
    writer = VerifiedCheckpointIO()
    writer.group = group
    with monkeypatch.context() as blind:
        blind.setattr(sharded_checkpoint, "sha256", unreadable, raising=False)
        writer.save_checkpoint(content, path)
    listed = sharded_checkpoint.digests(path)
    assert listed is not None
    files = {each.name for each in path.iterdir()} - {sharded_checkpoint.CHECKSUMS}
    assert set(listed) == files
    assert len(files) == 2
    assert all(sha256(path / name) == digest for name, digest in listed.items())
    assert torch.equal(writer.load_checkpoint(path)["state_dict"]["w"], weights.full_tensor())


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "no sidecar"])
def test_a_damaged_newest_checkpoint_falls_back_and_says_so(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    good = save(tmp_path, 5)
    bad = save(tmp_path, 10)
    data = bytearray(bad.read_bytes())
    if damage == "flip":
        data[len(data) // 2] ^= 1
    if damage == "no sidecar":
        bad.with_name(bad.name + ".sha256").unlink()
    else:
        bad.write_bytes(data[: {"cut": len(data) // 2, "flip": len(data), "empty": 0}[damage]])
    assert newest(tmp_path) == good
    assert bad.name in caplog.text
    assert checkpoints(tmp_path) == [good, bad]


def test_no_checkpoint_is_none(tmp_path: Path) -> None:
    assert newest(tmp_path) is None
    assert newest(tmp_path / "absent") is None


def test_an_error_while_writing_leaves_the_old_files_only(tmp_path: Path) -> None:
    good = save(tmp_path, 5)

    class Unwritable:
        def __reduce__(self) -> str:
            raise RuntimeError("cannot be pickled")

    with pytest.raises(RuntimeError, match="cannot be pickled"):
        VerifiedCheckpointIO().save_checkpoint({"x": Unwritable()}, tmp_path / "step=00000010.ckpt")
    assert sorted(file.name for file in tmp_path.iterdir()) == [good.name, good.name + ".sha256"]
    assert newest(tmp_path) == good


def test_a_full_disk_is_named_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = save(tmp_path, 5)

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(
        ArtefactError, match=r"step=00000010.*No space left.*previous one is intact"
    ):
        save(tmp_path, 10)
    assert newest(tmp_path) == good
    assert not list(tmp_path.glob(".*"))


def test_opening_a_checkpoint_runs_no_code(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[object, ...]:
            return os.mkdir, (str(tmp_path / "exploded"),)

    path = tmp_path / "step=00000001.ckpt"
    path.write_bytes(pickle.dumps({"state_dict": Bomb()}))
    with pytest.raises(ArtefactError, match="not a readable checkpoint"):
        VerifiedCheckpointIO().load_checkpoint(path, weights_only=False)
    assert not (tmp_path / "exploded").exists()


def test_kill_while_saving_loses_no_finished_checkpoint(tmp_path: Path) -> None:
    code = """
import sys, torch
from pathlib import Path
from hubert_pretrain.training.resilience.checkpoint_io import VerifiedCheckpointIO
folder, step = Path(sys.argv[1]), 0
while True:
    step += 1
    content = {"global_step": step, "w": torch.full((300_000,), float(step))}
    VerifiedCheckpointIO().save_checkpoint(content, folder / f"step={step % 7:08d}.ckpt")
    print(step, flush=True)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    for _ in range(3):
        process.stdout.readline()
    time.sleep(0.0137)
    process.send_signal(signal.SIGKILL)
    process.wait()
    path = newest(tmp_path)
    assert path is not None
    content = VerifiedCheckpointIO().load_checkpoint(path)
    assert (content["w"] == content["global_step"]).all()
