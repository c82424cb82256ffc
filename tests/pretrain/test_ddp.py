"""DDP adds in one order, and does not send what is frozen."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from torch.nn.parallel import DistributedDataParallel

from hubert_pretrain import distributed
from hubert_pretrain.pipeline.workspace import Workspace
from hubert_pretrain.pretrain.module import PretrainModule
from hubert_pretrain.stages.pretrain import run
from tests.pretrain.test_world_sizes import make
from tests.ranks import outputs_of_ranks

pytestmark = pytest.mark.slow

STEPS = 6
FROZEN_FROM = 4
CHANGES = {
    "steps": STEPS,
    "freeze_conv_after_steps": FROZEN_FROM,
    "checkpoint_every_steps": 3,
    "valid_every_steps": 100,
}


PROGRAM = """
import torch
from torch import distributed, nn
from hubert_pretrain.training.strategies import OrderedDDP

distributed.init_process_group("gloo")
rank = distributed.get_rank()

def gradients(kind, first, end):
    torch.manual_seed(0)
    network = nn.Sequential(*[nn.Linear(300, 300) for _ in range(8)])
    wrapped = kind(network, gradient_as_bucket_view=True, bucket_cap_mb=1)
    for step in range(first, end):
        wrapped.zero_grad(set_to_none=True)
        for part in range(2):
            generator = torch.Generator().manual_seed(100 * step + 10 * part + rank)
            loss = lambda: wrapped(torch.randn(5, 300, generator=generator)).square().mean()
            if part == 0:
                with wrapped.no_sync():
                    loss().backward()
            else:
                loss().backward()
    return torch.cat([each.grad.flatten() for each in network.parameters()])

for kind in (OrderedDDP, nn.parallel.DistributedDataParallel):
    print(kind.__name__, torch.equal(gradients(kind, 0, 3), gradients(kind, 2, 3)))
distributed.destroy_process_group()
"""


def test_four_ranks_add_to_the_same_bits_in_a_process_that_has_just_started(
    tmp_path: Path,
) -> None:
    """The third step after two others, and the third step alone, as after a resume. Two ranks would
    show nothing: their sum has one order.
    """
    (output, *_) = outputs_of_ranks(PROGRAM, tmp_path, ranks=4)
    assert output.splitlines() == ["OrderedDDP True", "DistributedDataParallel False"]


@pytest.fixture
def group_of_one() -> Iterator[None]:
    """For a training under ddp in this process: its group, and what Lightning writes into the
    environment, end with the test.
    """
    before = dict(os.environ)
    yield
    distributed.leave_group()
    for name in os.environ.keys() - before.keys():
        del os.environ[name]
    os.environ.update(before)


@pytest.mark.usefixtures("group_of_one")
def test_a_frozen_conv_encoder_is_not_sent(
    prepared: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = PretrainModule.configure_gradient_clipping
    ignored = []

    def noting(self: PretrainModule, *arguments: Any, **keywords: Any) -> None:
        wrapped = self.trainer.strategy.model
        assert isinstance(wrapped, DistributedDataParallel)
        without = {name for name, each in self.named_parameters() if each.grad is None}
        assert without == wrapped.parameters_to_ignore
        ignored.append(without)
        step(self, *arguments, **keywords)

    monkeypatch.setattr(PretrainModule, "configure_gradient_clipping", noting)
    run(make(1, "ddp", **CHANGES), prepared, "it1/pretrain", tmp_path / "run")
    assert [bool(each) for each in ignored] == [False] * FROZEN_FROM + [True] * (
        STEPS - FROZEN_FROM
    )
    assert all(name.startswith("model.conv_encoder.") for each in ignored for name in each)
