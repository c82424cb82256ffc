"""One process, two, four; DDP or FSDP: the same run. Processes of one machine that communicate
through gloo.
"""

from __future__ import annotations

import math
import os
import pickle
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hubert_pretrain.config.schema import LossConfig, Recipe
from hubert_pretrain.errors import ArtefactError
from hubert_pretrain.interop.load import load_checkpoint
from hubert_pretrain.model.checkpoint import load_model
from hubert_pretrain.pipeline.workspace import Workspace
from hubert_pretrain.training.dataloading import equal_share
from hubert_pretrain.training.loggers import read_metrics
from hubert_pretrain.training.resilience import sharded_checkpoint
from hubert_pretrain.training.resilience.checkpoint_io import (
    VerifiedCheckpointIO,
    checkpoints,
    newest,
    verified,
)
from tests.pretrain.conftest import make_recipe

pytestmark = [
    pytest.mark.slow,
    pytest.mark.xdist_group("world sizes"),  # one process makes the fixture for all of them
]

ROOT = Path(__file__).resolve().parents[2]
STEPS = 20

SCRIPT = """
import errno, importlib, pickle, sys
from pathlib import Path

import torch

from hubert_pretrain import distributed
from hubert_pretrain.pretrain.module import PretrainModule
from hubert_pretrain.training.strategies import full_tensor
from hubert_pretrain.pipeline.workspace import Workspace

step = PretrainModule.on_before_optimizer_step

def recorded(self, optimizer):
    step(self, optimizer)
    if self.trainer.global_step == 0:
        gradients = {
            name: full_tensor(each.grad).cpu()
            for name, each in self.named_parameters()
            if each.grad is not None
        }
        if distributed.rank() == 0:
            torch.save(gradients, Path(self.trainer.default_root_dir) / "gradients.pt")

PretrainModule.on_before_optimizer_step = recorded

def full_disk_on_the_last_rank():
    from torch.distributed.checkpoint import HuggingFaceStorageWriter
    write = HuggingFaceStorageWriter.write_data

    def failing(self, plan, planner):
        if distributed.rank() == distributed.world_size() - 1 and "step=00000006" in str(self.path):
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(self, plan, planner)

    HuggingFaceStorageWriter.write_data = failing
    return lambda: setattr(HuggingFaceStorageWriter, "write_data", write)

jobs, root = pickle.loads(Path(sys.argv[1]).read_bytes())
for recipe, folder, full, stage in jobs:
    undo = full_disk_on_the_last_rank() if full else lambda: None
    verb = "finetune" if stage.startswith("finetune/") else "pretrain"
    module = importlib.import_module(f"hubert_pretrain.stages.{verb}")
    module.run(recipe, Workspace(root), stage, folder)
    undo()
if torch.distributed.is_initialized():
    torch.distributed.destroy_process_group()
"""


class Job(NamedTuple):
    recipe: Recipe
    folder: Path
    full_disk: bool = False
    stage: str = "it1/pretrain"


class Processes:
    """Ranks on one machine that do one job after the other, as torchrun starts them, without its
    agent.
    """

    def __init__(
        self, world_size: int, jobs: Sequence[Job], workspace: Workspace, folder: Path
    ) -> None:
        folder.mkdir()
        (folder / "script.py").write_text(SCRIPT)
        (folder / "jobs.pickle").write_bytes(
            pickle.dumps(([tuple(job) for job in jobs], workspace.root))
        )
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        everyone = {
            "WORLD_SIZE": world_size,
            "LOCAL_WORLD_SIZE": world_size,
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
        }
        everyone |= {
            "TORCHELASTIC_RUN_ID": "test",
            "GROUP_RANK": 0,
            "OMP_NUM_THREADS": 1,
            "PYTHONPATH": ROOT,
        }
        self.logs = [folder / f"{rank}.log" for rank in range(world_size)]
        self.processes = []
        for rank, log in enumerate(self.logs):
            own = {
                name: str(value)
                for name, value in {**everyone, "RANK": rank, "LOCAL_RANK": rank}.items()
            }
            with open(log, "w") as file:
                command = [sys.executable, str(folder / "script.py"), str(folder / "jobs.pickle")]
                self.processes.append(
                    subprocess.Popen(
                        command, env={**os.environ, **own}, stdout=file, stderr=subprocess.STDOUT
                    )
                )

    def wait(self, seconds: float = 500) -> str:
        """All logs. Fails when any rank did, or hangs."""
        end = time.monotonic() + seconds
        try:
            for process, log in zip(self.processes, self.logs, strict=True):
                assert process.wait(max(1.0, end - time.monotonic())) == 0, log.read_text()[-3000:]
        finally:
            for process in self.processes:
                if process.poll() is None:
                    process.kill()
        return "".join(log.read_text() for log in self.logs)


def make(
    devices: int, strategy: str = "auto", *, trainer: dict[str, Any] | None = None, **more: Any
) -> Recipe:
    """A recipe whose layers are dropped half of the time, four micro-batches per step, every step
    logged; two layers with heads of their own, and averaged weights, since each of these is a way
    to get out of step."""
    values: dict[str, Any] = {
        "batch_seconds": 16,
        "log_every_steps": 1,
        "valid_every_steps": 10,
        "steps": STEPS,
        "ema_decay": 0.9,
    }
    values["loss"] = LossConfig(
        unmasked_weight=0.5, supervised_layers=[1, 2], separate_layer_heads=True
    )
    hardware = {"devices": devices, "strategy": strategy, "keep_checkpoints": 9, **(trainer or {})}
    recipe = make_recipe(trainer=hardware, **{**values, **more})
    recipe.model.layerdrop = 0.5
    return recipe


@pytest.fixture(scope="module")
def runs(prepared: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of runs: `one`, `ddp2`, `ddp4`, `bf16`; `fsdp2`, and `fsdp1`, `fsdp4`, `plain1` that
    go on from its checkpoint of step 3; `file4`, fsdp again, from that of `ddp2`."""
    root = tmp_path_factory.mktemp("runs")
    fsdp = {"checkpoint_every_steps": 3}
    two = [
        Job(make(2, "fsdp", trainer={"async_checkpoints": True}, **fsdp), root / "fsdp2"),
        Job(make(2, "ddp"), root / "ddp2"),
        Job(make(2, "ddp", trainer={"gradient_compression": "bf16"}, steps=6), root / "bf16"),
        Job(make(2, "fsdp", **{**fsdp, "steps": 8}), root / "full", True),
    ]
    (root / "log").write_text(Processes(2, two, prepared, root / "two").wait())
    for name in ("fsdp1", "fsdp4", "plain1"):
        at = root / name / "checkpoints" / "step=00000003.ckpt"
        shutil.copytree(root / "fsdp2" / "checkpoints" / at.name, at)
    (root / "file4" / "checkpoints").mkdir(parents=True)
    for each in (root / "ddp2" / "checkpoints").glob("step=00000003.ckpt*"):
        shutil.copy(each, root / "file4" / "checkpoints")
    (root / "fsdp4" / "checkpoints" / ".step=00000006.ckpt.tmp").mkdir()  # a writer was killed here
    one = [
        Job(make(1), root / "one"),
        Job(make(1, "fsdp", **fsdp), root / "fsdp1"),
        Job(make(1, **fsdp), root / "plain1"),
    ]
    four = [
        Job(make(4), root / "ddp4"),
        Job(make(4, "fsdp", **fsdp), root / "fsdp4"),
        Job(make(4, "fsdp"), root / "file4"),
    ]
    together = [
        Processes(1, one, prepared, root / "single"),
        Processes(4, four, prepared, root / "four"),
    ]
    for processes in together:
        processes.wait()
    return root


def losses(folder: Path, name: str = "loss") -> dict[int, float]:
    return {
        int(row["step"]): row[name]
        for row in read_metrics(folder / "logs" / "metrics.csv")
        if name in row
    }


def assert_same(first: Path, second: Path, *, since: int = 1, rel: float = 1e-5) -> None:
    one = losses(first)
    two = losses(second)
    assert sorted(two) == list(range(since, max(one) + 1))
    for step, loss in two.items():
        assert loss == pytest.approx(one[step], rel=rel), f"step {step}"


@pytest.mark.parametrize("name", ["ddp2", "ddp4", "fsdp2"])
def test_losses_are_equal_at_every_world_size(runs: Path, name: str) -> None:
    """Layer drop of one half: were a rank to wait for a gradient of a dropped layer, this would
    hang; were the layer to move, differ.
    """
    assert_same(runs / "one", runs / name)
    one = load_model(runs / "one")
    other = load_model(runs / name)
    for key, tensor in one.model.state_dict().items():
        torch.testing.assert_close(other.model.state_dict()[key], tensor, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["ddp2", "ddp4", "fsdp2"])
def test_gradients_are_those_of_the_whole_step(runs: Path, name: str) -> None:
    """1 process x 4 accumulations = 2 x 2 = 4 x 1, normalised by the masked frames of all of them:
    1e-6 relative in fp32.
    """
    one, other = (
        torch.load(runs / each / "gradients.pt", weights_only=True) for each in ("one", name)
    )
    assert set(one) == set(other)
    first, second = (
        torch.cat([gradients[key].flatten().double() for key in one]) for gradients in (one, other)
    )
    assert first.norm() > 0
    assert (first - second).norm() / first.norm() < 1e-6


@pytest.mark.parametrize("name", ["ddp2", "ddp4", "fsdp2"])
def test_validation_counts_everything_once(runs: Path, name: str) -> None:
    """Also with more ranks than micro-batches of the valid split, where ranks without work have to
    stay in step.
    """
    one = losses(runs / "one", "valid/loss/masked")
    other = losses(runs / name, "valid/loss/masked")
    assert sorted(other) == [10, 20]
    assert other == pytest.approx(one, rel=1e-5)


@pytest.mark.parametrize("name", ["fsdp1", "fsdp4", "plain1", "file4"])
def test_a_checkpoint_of_two_ranks_goes_on_at_another_world_size(runs: Path, name: str) -> None:
    """Uneven parts, too: 5 clusters and 8 channels over 4 ranks. The next loss and all that follow
    are the same.
    """
    assert_same(runs / "one", runs / name, since=4)
    assert not list((runs / name / "checkpoints").glob(".*"))


def test_a_folder_of_shards_is_what_one_process_writes(runs: Path) -> None:
    reader = VerifiedCheckpointIO()
    cut = reader.load_checkpoint(runs / "fsdp2" / "checkpoints" / "step=00000006.ckpt")
    whole = reader.load_checkpoint(runs / "one" / "checkpoints" / "step=00000006.ckpt")
    assert set(cut) == set(whole)
    assert set(cut["state_dict"]) == set(whole["state_dict"])
    for name, tensor in whole["state_dict"].items():
        torch.testing.assert_close(cut["state_dict"][name], tensor, rtol=1e-4, atol=1e-5)
    for name, tensor in whole["average"].items():
        torch.testing.assert_close(cut["average"][name], tensor, rtol=1e-4, atol=1e-5)
    ours = cut["optimizer_states"][0]
    theirs = whole["optimizer_states"][0]
    assert ours["param_groups"][0]["params"] == theirs["param_groups"][0]["params"]
    assert ours["param_groups"][0]["lr"] == theirs["param_groups"][0]["lr"]
    assert set(ours["state"]) == set(theirs["state"])
    for number, values in theirs["state"].items():
        for key, value in values.items():
            torch.testing.assert_close(ours["state"][number][key], value, rtol=1e-3, atol=1e-5)


def test_a_folder_of_shards_is_loaded_like_a_result(runs: Path) -> None:
    at = Path("checkpoints") / "step=00000020.ckpt"
    parts = load_checkpoint(runs / "fsdp2" / at).model.state_dict()
    result = load_model(runs / "fsdp2").model.state_dict()
    for name, tensor in result.items():
        assert torch.equal(parts[name], tensor), name


def test_compressed_gradients_are_close_and_rounded(runs: Path) -> None:
    exact = losses(runs / "ddp2")
    rounded = losses(runs / "bf16")
    schedule_is_the_same = 1  # the first step: later ones have another schedule, six steps long
    assert rounded[schedule_is_the_same] == pytest.approx(exact[schedule_is_the_same], rel=1e-5)
    assert all(math.isfinite(loss) for loss in rounded.values())
    first, second = (
        torch.load(runs / name / "gradients.pt", weights_only=True) for name in ("ddp2", "bf16")
    )
    worst = max(
        ((first[key] - second[key]).norm() / first[key].norm().clamp(min=1e-9)).item()
        for key in first
    )
    assert 1e-5 < worst < 2e-2


def test_a_full_disk_on_one_rank_costs_a_checkpoint_and_nothing_else(runs: Path) -> None:
    assert "rank 1 could not write its part" in (runs / "log").read_text()
    found = checkpoints(runs / "full" / "checkpoints")
    assert [path.name for path in found] == ["step=00000003.ckpt", "step=00000008.ckpt"]
    assert all(verified(path) for path in found)
    assert not list((runs / "full" / "checkpoints").glob(".*"))


@pytest.mark.parametrize("damage", ["cut", "lost", "added", "unsealed"])
def test_a_damaged_folder_falls_back_to_the_one_before(
    runs: Path, tmp_path: Path, damage: str
) -> None:
    folder = tmp_path / "checkpoints"
    for step in (3, 6):
        shutil.copytree(
            runs / "fsdp2" / "checkpoints" / f"step={step:08d}.ckpt",
            folder / f"step={step:08d}.ckpt",
        )
    last = folder / "step=00000006.ckpt"
    assert newest(folder) == last
    shard = next(last.glob("shard-00002*"))
    if damage == "cut":
        shard.write_bytes(shard.read_bytes()[:-10])
    elif damage == "lost":
        shard.unlink()
    elif damage == "added":
        shutil.copy(shard, last / "shard-00003-model-00001-of-00001.safetensors")
    else:
        (last / sharded_checkpoint.CHECKSUMS).unlink()
    assert newest(folder) == folder / "step=00000003.ckpt"


class Bomb:
    def __init__(self, sentinel: Path) -> None:
        self.sentinel = sentinel

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.sentinel,)


def test_opening_a_folder_runs_no_code(runs: Path, tmp_path: Path) -> None:
    """DCP's `.metadata` is a pickle that its own reader executes; `rest.pt` goes through the
    restricted one.
    """
    folder = tmp_path / "step=00000003.ckpt"
    sentinel = tmp_path / "ran"
    shutil.copytree(runs / "fsdp2" / "checkpoints" / folder.name, folder)
    (folder / ".metadata").write_bytes(pickle.dumps(Bomb(sentinel)))
    assert "state_dict" in VerifiedCheckpointIO().load_checkpoint(folder)
    assert not sentinel.exists()
    torch.save({"optimizer_groups": [], "x": Bomb(sentinel)}, folder / sharded_checkpoint.REST)
    with pytest.raises(ArtefactError, match=r"rest\.pt.*checkpoint before"):
        VerifiedCheckpointIO().load_checkpoint(folder)
    assert not sentinel.exists()


@pytest.mark.long
def test_fifty_steps_at_every_world_size(prepared: Workspace, tmp_path: Path) -> None:
    for world_size, strategy in ((1, "auto"), (2, "ddp"), (4, "ddp"), (2, "fsdp"), (4, "fsdp")):
        name = f"{strategy}{world_size}"
        Processes(
            world_size,
            [Job(make(world_size, strategy, steps=50), tmp_path / name)],
            prepared,
            tmp_path / f"{name}.logs",
        ).wait(600)
        assert_same(tmp_path / "auto1", tmp_path / name)


@pytest.mark.gpu
def test_shards_on_a_gpu(prepared: Workspace, tmp_path: Path) -> None:
    """One process through NCCL, matrices in bf16: as ddp in bf16-mixed, and its checkpoint goes
    on.
    """
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    hardware = {"accelerator": "gpu", "precision": "bf16-mixed"}
    jobs = [
        Job(make(1, strategy, trainer=hardware, checkpoint_every_steps=3), tmp_path / strategy)
        for strategy in ("ddp", "fsdp")
    ]
    Processes(1, jobs, prepared, tmp_path / "first").wait(400)
    assert_same(tmp_path / "ddp", tmp_path / "fsdp", rel=2e-3)
    at = tmp_path / "again" / "checkpoints" / "step=00000003.ckpt"
    shutil.copytree(tmp_path / "fsdp" / "checkpoints" / at.name, at)
    again = Job(make(1, "fsdp", trainer=hardware, checkpoint_every_steps=3), tmp_path / "again")
    Processes(1, [again], prepared, tmp_path / "second").wait(400)
    assert_same(tmp_path / "fsdp", tmp_path / "again", since=4, rel=1e-4)


@given(count=st.integers(1, 60), world_size=st.integers(1, 12))
def test_every_rank_validates_equally_many(count: int, world_size: int) -> None:
    shares = [equal_share(count, rank, world_size) for rank in range(world_size)]
    assert len({len(share) for share in shares}) == 1
    numbers = [number for share in shares for number in share]
    assert [number for number in numbers if number < count] == list(range(count))
    assert len(numbers) - count < world_size
