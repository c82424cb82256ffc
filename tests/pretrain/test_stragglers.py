"""The rank that makes the others wait is found, by the time that each needs for itself."""

from __future__ import annotations

import pickle
import socket
from pathlib import Path

import pytest
import torch

from hubert_pretrain.pipeline.workspace import Workspace
from hubert_pretrain.training.loggers import read_metrics
from hubert_pretrain.training.stragglers import PATIENCE, Comparison, ForwardTimer
from tests.pretrain.conftest import make_recipe
from tests.ranks import Ranks

NO_WAITING = [0.0] * 4
SLOW = [1.0, 1.1, 1.5, 0.9]


def test_values_of_a_log() -> None:
    values = Comparison(list("abcd")).values([1.0, 1.0, 1.0, 1.5], [0.1, 0.0, 0.9, 0.0])
    assert values == {
        "health/rank_seconds/min": 1.0,
        "health/rank_seconds/median": pytest.approx(1.3),
        "health/rank_seconds/max": 1.9,
        "health/slowest_rank": 2.0,
    }


def test_a_rank_that_stays_slower_is_named_once_with_its_host_and_what_it_does() -> None:
    comparison = Comparison(["first", "first", "second", "second"])
    found = [comparison.advice([1.0, 1.0, 1.1, 1.0], [0.0, 0.1, 0.4, 0.0]) for _ in range(9)]
    assert [advice is not None for advice in found] == [n == PATIENCE - 1 for n in range(9)]
    assert "rank 2 on second needs 1.5 s a step" in (found[PATIENCE - 1] or "")
    assert "forward passes 1.1 s, waiting for data 0.4 s), the others 1 s" in found[PATIENCE - 1]


@pytest.mark.parametrize(
    "others",
    [
        [1.5, 1.1, 1.0, 0.9],  # another rank
        [1.0, 1.1, 1.1, 0.9],  # hardly slower
    ],
)
def test_a_rank_that_is_slower_now_and_then_is_not_reported(others: list[float]) -> None:
    comparison = Comparison(list("abcd"))
    for _ in range(5):
        for times in (*[SLOW] * (PATIENCE - 1), others):
            assert comparison.advice(times, NO_WAITING) is None


def test_of_two_ranks_the_slower_one_is_compared_with_the_other() -> None:
    comparison = Comparison(["a", "b"])
    found = [comparison.advice([1.0, 1.3], [0.0, 0.0]) for _ in range(PATIENCE)]
    assert "rank 1 on b" in (found[-1] or "")


def test_the_time_in_which_weights_are_gathered_is_taken_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 0.0

    def pass_by(seconds: float) -> None:
        nonlocal now
        now += seconds

    monkeypatch.setattr("time.perf_counter", lambda: now)
    module = torch.nn.Linear(1, 1)
    module.register_forward_pre_hook(lambda *_: pass_by(100))  # gathers
    module.register_forward_hook(lambda *_: pass_by(2))  # computes
    timer = ForwardTimer([module])
    for _ in range(2):
        timer.start(torch.device("cpu"))
        pass_by(1)
        module(torch.ones(1))
        timer.stop()
        pass_by(1000)  # a backward pass
        module(torch.ones(1))
    assert timer.read() == 6
    assert timer.read() == 0
    timer.remove()
    timer.start(torch.device("cpu"))
    module(torch.ones(1))
    timer.stop()
    assert timer.read() == 102


PROGRAM = """
import pickle, sys
from pathlib import Path

import torch
from torch.distributed.fsdp._fully_shard._fsdp_param_group import FSDPParamGroup

from hubert_pretrain import distributed
from hubert_pretrain.model.conv_encoder import ConvEncoder
from hubert_pretrain.pipeline.workspace import Workspace
from hubert_pretrain.stages.pretrain import run
from hubert_pretrain.training import progress, stragglers

class Clock:
    '''Stands still but for what is named here.'''
    now = 0.0
    def perf_counter(self):
        return self.now
    monotonic = perf_counter

clock = stragglers.time = progress.time = Clock()

def takes(kind, name, seconds):
    method = getattr(kind, name)
    def slow(self, *args, **kwargs):
        clock.now += seconds()
        return method(self, *args, **kwargs)
    setattr(kind, name, slow)

takes(ConvEncoder, "forward", lambda: 1.0 + 2.0 * distributed.rank())
takes(FSDPParamGroup, "wait_for_unshard", lambda: 100.0)
takes(torch.Tensor, "backward", lambda: 1000.0)

for recipe, root, folder in pickle.loads(Path(sys.argv[1]).read_bytes()):
    run(recipe, Workspace(root), "it1/pretrain", folder)
distributed.leave_group()
"""


@pytest.mark.slow
def test_the_slower_of_two_ranks_is_in_the_log(prepared: Workspace, tmp_path: Path) -> None:
    """Two micro-batches of each rank per step, with a clock that only the test moves."""
    recipes = [
        make_recipe(
            trainer={"devices": 2, "strategy": strategy}, batch_seconds=16, log_every_steps=2
        )
        for strategy in ("ddp", "fsdp")
    ]
    jobs = [(each, prepared.root, tmp_path / each.trainer.strategy) for each in recipes]
    (tmp_path / "jobs").write_bytes(pickle.dumps(jobs))
    first, second = Ranks(PROGRAM, tmp_path, str(tmp_path / "jobs")).outputs()
    for strategy in ("ddp", "fsdp"):
        rows = read_metrics(tmp_path / strategy / "logs" / "metrics.csv")
        logged = [row for row in rows if "health/slowest_rank" in row]
        assert [row["step"] for row in logged] == [2, 4, 6, 8]
        for row in logged:
            assert row["health/slowest_rank"] == 1
            seconds = [row[f"health/rank_seconds/{name}"] for name in ("min", "median", "max")]
            assert seconds == [2, 4, 6]
    assert first.count(f"step 6: rank 1 on {socket.gethostname()} needs") == 2
    assert "rank 1 on" not in second
