"""Shares and waiting of processes that form no group. Groups are tested in the rooms that use them
(tests/clustering/test_ranks.py, tests/targets/test_torchrun.py, tests/training/)."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hubert_pretrain import distributed
from hubert_pretrain.errors import ConfigError
from tests.ranks import outputs_of_two_ranks


@given(count=st.integers(0, 500), world_size=st.integers(1, 20))
def test_shares_cover_a_range_once_and_differ_by_one_at_most(count: int, world_size: int) -> None:
    shares = [distributed.share(count, rank, world_size) for rank in range(world_size)]
    assert [number for share in shares for number in share] == list(range(count))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_devices_that_cannot_share_a_step_are_refused_with_those_that_can() -> None:
    assert distributed.accumulation(12, 4) == 3
    message = (
        r"^iterations\.it1\.pretrain: a step has 6 micro-batches, which 4 devices cannot share "
        r"equally; use 1, 2, 3, 6 devices, or another micro_batch_seconds$"
    )
    with pytest.raises(ConfigError, match=message):
        distributed.accumulation(6, 4, key="iterations.it1.pretrain")
    with pytest.raises(ConfigError, match=r"^a step has 6 micro-batches"):
        distributed.accumulation(6, 4)


def test_waiting_for_the_first_rank_ends_with_its_trace_or_in_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(distributed, "_POLL_SECONDS", 0.001)
    answers = iter([False, False, True])
    assert distributed.wait_for_first(lambda: next(answers), patience_seconds=60.0)
    assert not distributed.wait_for_first(lambda: False, patience_seconds=0.01)


def test_one_process_is_its_own_group(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "SLURM_PROCID", "LOCAL_RANK", "WORLD_SIZE", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(name, raising=False)
    with distributed.group():
        assert (distributed.rank(), distributed.world_size(), distributed.launched()) == (0, 1, 1)
        assert distributed.from_first("value") == "value"
        distributed.barrier()


def test_a_launcher_that_does_not_set_where_to_meet_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RANK", "1")
    for name in ("WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    message = (
        r"2 processes were started, but WORLD_SIZE, MASTER_ADDR, MASTER_PORT is not set; start"
    )
    with pytest.raises(ConfigError, match=message), distributed.group():
        pass
    with distributed.alone():
        assert distributed.rank() == 0


THREE_GROUPS = """
import sys, time
from datetime import timedelta
import torch.distributed as dist
from hubert_pretrain import distributed

distributed.PATIENCE = timedelta(seconds=60)
leave = distributed.leave_group

def leave_late():
    time.sleep(2.0 * (distributed.rank() == {late}))
    leave()

distributed.leave_group = leave_late
for turn in range(2):
    with distributed.group():
        print(distributed.from_all(distributed.rank() + turn), flush=True)
dist.init_process_group("gloo", timeout=distributed.PATIENCE)  # as Lightning does
print(distributed.from_all(distributed.rank()), flush=True)
leave()
"""


@pytest.mark.parametrize("late", [0, 1])
def test_groups_follow_each_other_though_one_rank_leaves_late(tmp_path: Path, late: int) -> None:
    for output in outputs_of_two_ranks(THREE_GROUPS.replace("{late}", str(late)), tmp_path):
        assert re.findall(r"\[.*\]", output) == ["[0, 1]", "[1, 2]", "[0, 1]"]


TRAINING_OF_TWO = """
import os, sys
import lightning as L
import torch
from hubert_pretrain import distributed
from hubert_pretrain.training.strategies import DDP

class Module(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(4, 1)
    def training_step(self, batch, batch_idx):
        return self.linear(batch).sum()
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

def train():
    strategy = DDP(compressed=False, timeout=distributed.PATIENCE)
    trainer = L.Trainer(
        accelerator="cpu", devices=2, strategy=strategy, max_steps=2, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )
    trainer.fit(Module(), torch.utils.data.DataLoader(torch.zeros(8, 4), batch_size=2))

def threads():
    names = []
    for task in os.listdir("/proc/self/task"):
        try:
            names.append(open(f"/proc/self/task/{task}/comm").read().strip())
        except FileNotFoundError:  # it has ended
            pass
    return sorted(name for name in names if "gloo" in name)

train()
assert threads(), "the trainer made no group"
distributed.leave_group()
print("threads after leaving:", threads(), flush=True)
"""


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="needs Linux's /proc")
def test_no_thread_of_a_group_outlives_it(tmp_path: Path) -> None:
    """A gloo thread that is alive while the interpreter ends aborts the process."""
    for output in outputs_of_two_ranks(TRAINING_OF_TWO, tmp_path):
        assert "threads after leaving: []\n" in output
