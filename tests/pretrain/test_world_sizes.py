"""One process, two, four; DDP, FSDP or HSDP: the same run. Processes of one machine that
communicate through gloo.
"""

from __future__ import annotations

import json
import math
import pickle
import shutil
from collections import Counter
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
from tests.pretrain.conftest import make_recipe, make_workspace
from tests.ranks import Ranks

pytestmark = [
    pytest.mark.slow,
    pytest.mark.xdist_group("world sizes"),  # one process makes the fixture for all of them
]

STEPS = 20

SCRIPT = """
import errno, importlib, json, pickle, shutil, sys
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

# What is sent in the second step, by the first rank: [name, numbers].
COUNTED = ("gloo:all_reduce", "c10d::_reduce_scatter_base_")
micro_batch = PretrainModule.training_step
clip = PretrainModule.configure_gradient_clipping

def counting(self, batch, batch_idx):
    if self.trainer.global_step == 1 and batch_idx % self.trainer.accumulate_grad_batches == 0:
        self.counter = torch.profiler.profile(record_shapes=True)
        self.counter.__enter__()
        self.fused = batch["micro_batches"]
    return micro_batch(self, batch, batch_idx)

def counted(self, *args, **kwargs):
    if self.trainer.global_step == 1:
        counter = self.__dict__.pop("counter")
        counter.__exit__(None, None, None)
        sent = [
            [event.name, max(sum(shape) for shape in event.input_shapes)]
            for event in counter.events() if event.name in COUNTED
        ]
        if distributed.rank() == 0:
            weights = sum(each.numel() for each in self.parameters())
            path = Path(self.trainer.default_root_dir) / "sent.json"
            path.write_text(json.dumps([weights, sent, self.fused]))
    clip(self, *args, **kwargs)

PretrainModule.training_step = counting
PretrainModule.configure_gradient_clipping = counted

def full_disk_on_the_last_rank():
    from torch.distributed.checkpoint import HuggingFaceStorageWriter
    write = HuggingFaceStorageWriter.write_data

    def failing(self, plan, planner):
        if distributed.rank() == distributed.world_size() - 1 and "step=00000006" in str(self.path):
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(self, plan, planner)

    HuggingFaceStorageWriter.write_data = failing
    return lambda: setattr(HuggingFaceStorageWriter, "write_data", write)

# Curves take longer than the tiny networks of these tests.
importlib.import_module("hubert_pretrain.stages.pretrain").plot_pretraining = lambda *_, **__: None

jobs, root = pickle.loads(Path(sys.argv[1]).read_bytes())
for recipe, folder, full, stage, begun in jobs:
    if begun and distributed.rank() == 0:
        (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
        for path in begun.parent.glob(begun.name + "*"):
            copy = shutil.copytree if path.is_dir() else shutil.copy
            copy(path, folder / "checkpoints" / path.name)
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
    begun: Path | None = None
    """Checkpoint of another run to go on from."""


class Processes:
    """Ranks on one machine that do one job after the other."""

    def __init__(
        self,
        world_size: int,
        jobs: Sequence[Job],
        workspace: Workspace,
        folder: Path,
        *,
        nodes: int = 1,
    ) -> None:
        folder.mkdir()
        path = folder / "jobs.pickle"
        path.write_bytes(pickle.dumps(([tuple(job) for job in jobs], workspace.root)))
        self.ranks = Ranks(SCRIPT, folder, str(path), world_size=world_size, nodes=nodes)

    def wait(self, seconds: float = 500) -> str:
        """All logs. Fails when any rank did, or hangs."""
        return "".join(self.ranks.outputs(seconds))


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


TWO_NODES = {"num_nodes": 2}


def checkpoint(folder: Path, step: int) -> Path:
    return folder / "checkpoints" / f"step={step:08d}.ckpt"


@pytest.fixture(scope="module")
def runs(prepared: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of runs: `one`, `ddp2`, `ddp4`, `bf16`; `fsdp2`, and `fsdp1`, `fsdp4`, `plain1` that
    go on from its checkpoint of step 3; `file4`, fsdp again, from that of `ddp2`; `hsdp4`, two
    nodes of two, and `hsdp_plain1`, `hsdp_again`, `hsdp_fsdp4` from its checkpoint; `of_fsdp` and
    `of_file`, hsdp from those of `fsdp2` and `ddp2`; `step2`, `micro2`, `step4`, `micro4`:
    fsdp and hsdp with gradients reduced per step or per micro-batch."""
    root = tmp_path_factory.mktemp("runs")
    often = {"checkpoint_every_steps": 3}
    once = {"reduce_gradients": "step"}
    each = {"reduce_gradients": "micro_batch"}
    # A head that also predicts unmasked frames runs twice, and sends its gradients twice.
    masked = {"steps": 6, "loss": LossConfig(supervised_layers=[1, 2], separate_layer_heads=True)}
    two = [
        Job(make(2, "fsdp", trainer={"async_checkpoints": True}, **often), root / "fsdp2"),
        Job(make(2, "fsdp", trainer=once, **masked), root / "step2"),
        Job(make(2, "fsdp", trainer=each, **masked), root / "micro2"),
        Job(make(2, "ddp"), root / "ddp2"),
        Job(make(2, "ddp", trainer={"gradient_compression": "bf16"}, steps=6), root / "bf16"),
        Job(make(2, "fsdp", **{**often, "steps": 8}), root / "full", True),
    ]
    eight = masked | {"batch_seconds": 32}
    hsdp = [
        Job(make(2, "hsdp", trainer=TWO_NODES, **often), root / "hsdp4"),
        Job(make(2, "hsdp", trainer=TWO_NODES | once, **eight), root / "step4"),
        Job(make(2, "hsdp", trainer=TWO_NODES | each, **eight), root / "micro4"),
    ]
    (root / "log").write_text(Processes(2, two, prepared, root / "two").wait())
    Processes(4, hsdp, prepared, root / "nodes", nodes=2).wait()
    fsdp2 = checkpoint(root / "fsdp2", 3)
    ddp2 = checkpoint(root / "ddp2", 3)
    hsdp4 = checkpoint(root / "hsdp4", 3)
    # A writer was killed here.
    (root / "fsdp4" / "checkpoints" / ".step=00000006.ckpt.tmp").mkdir(parents=True)
    one = [
        Job(make(1), root / "one"),
        Job(make(1, "fsdp", **often), root / "fsdp1", begun=fsdp2),
        Job(make(1, **often), root / "plain1", begun=fsdp2),
        Job(make(1, **often), root / "hsdp_plain1", begun=hsdp4),
    ]
    four = [
        Job(make(2, trainer=TWO_NODES), root / "ddp4"),
        Job(make(2, "fsdp", trainer=TWO_NODES, **often), root / "fsdp4", begun=fsdp2),
        Job(make(2, "fsdp", trainer=TWO_NODES), root / "file4", begun=ddp2),
        Job(make(2, "fsdp", trainer=TWO_NODES), root / "hsdp_fsdp4", begun=hsdp4),
        Job(make(2, "hsdp", trainer=TWO_NODES, **often), root / "hsdp_again", begun=hsdp4),
        Job(make(2, "hsdp", trainer=TWO_NODES), root / "of_fsdp", begun=fsdp2),
        Job(make(2, "hsdp", trainer=TWO_NODES), root / "of_file", begun=ddp2),
    ]
    together = [
        Processes(1, one, prepared, root / "single"),
        Processes(4, four, prepared, root / "four", nodes=2),
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


@pytest.mark.parametrize("name", ["ddp2", "ddp4", "fsdp2", "hsdp4"])
def test_losses_are_equal_at_every_world_size(runs: Path, name: str) -> None:
    """Layer drop of one half: were a rank to wait for a gradient of a dropped layer, this would
    hang; were the layer to move, differ.
    """
    assert_same(runs / "one", runs / name)
    one = load_model(runs / "one")
    other = load_model(runs / name)
    for key, tensor in one.model.state_dict().items():
        torch.testing.assert_close(other.model.state_dict()[key], tensor, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["ddp2", "ddp4", "fsdp2", "hsdp4"])
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


@pytest.mark.parametrize("name", ["ddp2", "ddp4", "fsdp2", "hsdp4"])
def test_validation_counts_everything_once(runs: Path, name: str) -> None:
    """Also with more ranks than micro-batches of the valid split, where ranks without work have to
    stay in step.
    """
    one = losses(runs / "one", "valid/loss/masked")
    other = losses(runs / name, "valid/loss/masked")
    assert sorted(other) == [10, 20]
    assert other == pytest.approx(one, rel=1e-5)


@pytest.mark.parametrize(
    "name",
    ["fsdp1", "fsdp4", "plain1", "file4", "hsdp_plain1", "hsdp_fsdp4", "of_fsdp", "of_file"],
)
def test_a_checkpoint_goes_on_at_another_world_size_and_strategy(runs: Path, name: str) -> None:
    """Uneven parts, too: 5 clusters and 8 channels over 4 ranks. The next loss and all that follow
    are the same.
    """
    assert_same(runs / "one", runs / name, since=4)
    assert not list((runs / name / "checkpoints").glob(".*"))


def test_hsdp_goes_on_bit_by_bit(runs: Path) -> None:
    first = losses(runs / "hsdp4")
    again = losses(runs / "hsdp_again")
    assert again == {step: loss for step, loss in first.items() if step > 3}
    result = load_model(runs / "hsdp_again").model.state_dict()
    for name, tensor in load_model(runs / "hsdp4").model.state_dict().items():
        assert torch.equal(result[name], tensor), name


def gradients_sent(folder: Path) -> tuple[int, Counter[int], Counter[int]]:
    """(numbers in the weights, sizes of what is reduced into shards, of what is reduced whole) in
    a step, up to its last backward pass.
    """
    weights, sent, _ = json.loads((folder / "sent.json").read_text())
    scattered = Counter(size for name, size in sent if "reduce_scatter" in name)
    whole = Counter(size for name, size in sent if "all_reduce" in name)
    # gloo makes each reduction into shards from one of the whole. One number is no gradient.
    return weights, scattered, Counter({n: m for n, m in (whole - scattered).items() if n > 1})


def total(sizes: Counter[int]) -> int:
    return sum(size * times for size, times in sizes.items())


@pytest.mark.parametrize("name", ["ddp2", "ddp4", "step2", "step4"])
def test_gradients_are_sent_once_per_step(runs: Path, name: str) -> None:
    """Each rank has two micro-batches per step, except in ddp4."""
    weights, scattered, whole = gradients_sent(runs / name)
    if name.startswith("ddp"):
        assert (total(scattered), total(whole)) == (0, weights)
        return
    # Shards are padded to one size; a dropped layer may send nothing.
    assert 0.3 * weights < total(scattered) < 1.1 * weights
    assert max(scattered.values()) <= 2  # of two heads
    assert total(whole) == (total(scattered) / 2 if name == "step4" else 0)


@pytest.mark.parametrize(("once", "each"), [("step2", "micro2"), ("step4", "micro4")])
def test_gradients_may_be_sharded_after_every_micro_batch(runs: Path, once: str, each: str) -> None:
    """Between the nodes of hsdp they are sent once per step in either case."""
    _, scattered, whole = gradients_sent(runs / once)
    _, scattered_twice, whole_once = gradients_sent(runs / each)
    assert scattered_twice == scattered + scattered
    assert whole_once == whole
    assert_same(runs / once, runs / each)


@pytest.mark.parametrize("name", ["fsdp2", "hsdp4"])
def test_a_folder_of_shards_is_what_one_process_writes(runs: Path, name: str) -> None:
    reader = VerifiedCheckpointIO()
    cut = reader.load_checkpoint(runs / name / "checkpoints" / "step=00000006.ckpt")
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


@pytest.mark.parametrize("run", ["fsdp2", "hsdp4"])
def test_a_folder_of_shards_is_loaded_like_a_result(runs: Path, run: str) -> None:
    at = Path("checkpoints") / "step=00000020.ckpt"
    parts = load_checkpoint(runs / run / at).model.state_dict()
    result = load_model(runs / run).model.state_dict()
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


HARDWARE = {
    "one": (1, 1, "auto"),
    "ddp2": (2, 1, "ddp"),
    "fsdp2": (2, 1, "fsdp"),
    "ddp4": (4, 2, "ddp"),
    "fsdp4": (4, 2, "fsdp"),
    "hsdp4": (4, 2, "hsdp"),
}
"""Processes, nodes, strategy."""
FUSED = [1, 2, 8]


@pytest.mark.parametrize(
    ("steps", "is_resumed"), [(6, True), pytest.param(50, False, marks=pytest.mark.long)]
)
def test_the_same_run_on_any_hardware(tmp_path: Path, steps: int, is_resumed: bool) -> None:
    """Micro-batches per forward pass, processes, strategy: equal losses, and every run that is
    resumed in its middle goes on bit by bit.

    Of two lengths there are sixteen crops each, so that a step of 32 micro-batches of one crop is
    an epoch, and eight of one length follow each other.
    """
    train = iter([0.3, 0.5] * 16)
    # Every seventh utterance is validated.
    lengths = [next(train) if number % 7 else 0.5 for number in range(38)]
    workspace = make_workspace(tmp_path / "workspace", lengths)
    half = steps // 2

    def recipe(per_node: int, nodes: int, strategy: str, fuse: int) -> Recipe:
        hardware = {"num_nodes": nodes, "fuse": str(fuse), "keep_checkpoints": 1}
        made = make(
            per_node,
            strategy,
            trainer=hardware | {"keep_every_steps": half},
            steps=steps,
            batch_seconds=16,
            micro_batch_seconds=0.5,
            min_seconds=0.2,
            max_crop_seconds=0.6,
            valid_every_steps=steps,
            checkpoint_every_steps=half,
        )
        made.model.hidden_dropout = 0.0
        made.model.attention_dropout = 0.0
        made.model.activation_dropout = 0.0
        made.model.feat_proj_dropout = 0.0
        return made

    together = []
    for ranks, nodes in ((1, 1), (2, 1), (4, 2)):
        jobs = []
        for name, (processes, _, strategy) in HARDWARE.items():
            if processes != ranks:
                continue
            for fuse in FUSED:
                folder = tmp_path / f"{name}-{fuse}"
                again = tmp_path / f"{name}-{fuse}-again"
                job = Job(recipe(ranks // nodes, nodes, strategy, fuse), folder)
                jobs.append(job)
                if is_resumed:
                    jobs.append(job._replace(folder=again, begun=checkpoint(folder, half)))
        logs = tmp_path / f"{ranks}.logs"
        together.append(Processes(ranks, jobs, workspace, logs, nodes=nodes))
    for group in together:
        output = group.wait(3000)
        assert (
            "32 micro-batches per epoch, 32 per step; shapes (rows x frames) 1x14, 1x24" in output
        )

    for name in HARDWARE:
        for fuse in FUSED:
            folder = tmp_path / f"{name}-{fuse}"
            assert json.loads((folder / "sent.json").read_text())[-1] == fuse
            assert_same(tmp_path / "one-1", folder)
            if not is_resumed:
                continue
            again = tmp_path / f"{name}-{fuse}-again"
            first = losses(folder)
            assert losses(again) == {step: first[step] for step in first if step > half}
            result = load_model(again).model.state_dict()
            for key, tensor in load_model(folder).model.state_dict().items():
                assert torch.equal(result[key], tensor), f"{name} {fuse} {key}"


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
