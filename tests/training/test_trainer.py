"""The trainer: its precision, and the checkpoint from which all ranks resume."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from lightning.fabric.plugins.environments import slurm

from hubert_pretrain.config.schema import TrainerConfig
from hubert_pretrain.training.trainer import build_trainer, resolve_precision
from tests.ranks import outputs_of_two_ranks


def test_bf16_is_not_chosen_where_it_is_emulated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for native, expected in ((True, "bf16-mixed"), (False, "32-true")):
        monkeypatch.setattr(
            torch.cuda,
            "is_bf16_supported",
            lambda including_emulation=True, native=native: native or including_emulation,
        )
        assert resolve_precision("auto") == expected
        assert resolve_precision("auto", "cpu") == "32-true"
        assert resolve_precision("16-mixed") == "16-mixed"


RESUMED_BY_TWO = """
import os, sys
from pathlib import Path

import lightning as L
import torch

from hubert_pretrain import distributed
from hubert_pretrain.config.schema import TrainerConfig
from hubert_pretrain.training import trainer as ours
from hubert_pretrain.training.resilience import checkpoint_io

class Module(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(4, 1)
    def training_step(self, batch, batch_idx):
        if batch_idx == 0:
            print("began at step", self.trainer.global_step, flush=True)
        return self.linear(batch).sum()
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

def fit(folder, steps):
    config = TrainerConfig(devices=2, strategy="ddp", accelerator="cpu", progress_bar=False)
    trainer = ours.build_trainer(
        folder, config, steps=steps, accumulate=1, valid_every_steps=1000,
        checkpoint_every_steps=2,
    )
    loader = torch.utils.data.DataLoader(torch.zeros(64, 4), batch_size=2)
    ours.fit(trainer, Module(), loader, None, folder)

folder = Path(sys.argv[1]) / "run"
listing = checkpoint_io.checkpoints
if os.environ["RANK"] == "1":
    # The listing of a network file system that is one checkpoint behind.
    checkpoint_io.checkpoints = lambda folder: listing(folder)[:-1]
fit(folder, 4)
fit(folder, 6)
distributed.leave_group()
"""


def test_all_ranks_resume_from_the_checkpoint_that_the_first_one_sees(tmp_path: Path) -> None:
    for output in outputs_of_two_ranks(RESUMED_BY_TWO, tmp_path):
        began = [line for line in output.splitlines() if line.startswith("began")]
        assert began == ["began at step 0", "began at step 4"]


SAVED_BY_THE_CLOCK = """
import sys
from pathlib import Path
from types import SimpleNamespace

import lightning as L
import torch

from hubert_pretrain import distributed
from hubert_pretrain.config.schema import TrainerConfig
from hubert_pretrain.training import trainer as ours
from hubert_pretrain.training.resilience import checkpoint_callback, checkpoint_io

class Module(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(4, 1)
    def training_step(self, batch, batch_idx):
        now[0] += 30.0  # half a minute per step
        return self.linear(batch).sum()
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

now = [0.0]
if distributed.rank() == 0:
    clock = lambda: now[0]
else:
    clock = lambda: 7.0 * now[0]  # another clock, which nobody asks
checkpoint_callback.time = SimpleNamespace(monotonic=clock)
saved = []
save = checkpoint_callback.CheckpointCallback.save
def recorded(self, trainer):
    saved.append(trainer.global_step)
    save(self, trainer)
    self.writer.finish()  # while a file is written, the clock asks for no other one
checkpoint_callback.CheckpointCallback.save = recorded

folder = Path(sys.argv[1]) / "run"
config = TrainerConfig(devices=2, strategy="ddp", accelerator="cpu", progress_bar=False)
trainer = ours.build_trainer(
    folder, config, steps=16, accumulate=1, valid_every_steps=1000,
    checkpoint_every_steps=1000, checkpoint_every_minutes=2.5,
)
loader = torch.utils.data.DataLoader(torch.zeros(64, 4), batch_size=2)
ours.fit(trainer, Module(), loader, None, folder)
print("saved", saved, flush=True)
distributed.leave_group()
"""


def test_all_ranks_save_when_the_clock_of_the_first_one_says_so(tmp_path: Path) -> None:
    """One step after it says so, because nobody waits for the answer."""
    outputs = outputs_of_two_ranks(SAVED_BY_THE_CLOCK, tmp_path)
    for output in outputs:
        assert "saved [6, 12, 16]" in output


def test_srun_on_the_machine_is_no_reason_to_advise_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slurm.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.delenv("SLURM_NTASKS", raising=False)
    with pytest.warns(UserWarning, match="srun"):
        slurm.SLURMEnvironment.detect()  # what Lightning does by itself
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        build_trainer(
            tmp_path,
            TrainerConfig(devices=1, accelerator="cpu", progress_bar=False),
            steps=1,
            accumulate=1,
            valid_every_steps=1,
            checkpoint_every_steps=1,
        )
