"""Sums of a training: on the device and in Python, in one order on every rank."""

from __future__ import annotations

import torch

from hubert_pretrain.training.module import Meter

CPU = torch.device("cpu")


def test_sums_of_scalars_and_numbers() -> None:
    meter = Meter()
    meter.add(loss=torch.tensor(2.0), audio=1.5)
    meter.add(torch.tensor(False), loss=torch.tensor(torch.inf), frames=4)
    meter.add(torch.tensor(True), loss=torch.tensor(3.0), frames=5)
    meter.add(loss=1.0)
    assert meter.read(CPU) == {"audio": 1.5, "frames": 5.0, "loss": 6.0}
    assert meter.read(CPU) == {}


def test_a_rank_with_fillers_reads_as_many_sums_as_the_others() -> None:
    """The sum over ranks adds them by their place."""
    scored = Meter()
    scored.add(loss=torch.tensor(2.0), utterances=1.0)
    scored.add(loss=torch.tensor(1.0), utterances=1.0)
    filled = Meter()
    filled.add(utterances=0.0, loss=0.0)
    mixed = Meter()
    mixed.add(loss=torch.tensor(2.0), utterances=1.0)
    mixed.add(loss=0.0, utterances=0.0)
    sums = [list(meter.read(CPU).items()) for meter in (scored, filled, mixed)]
    assert sums == [
        [("loss", 3.0), ("utterances", 2.0)],
        [("loss", 0.0), ("utterances", 0.0)],
        [("loss", 2.0), ("utterances", 1.0)],
    ]
