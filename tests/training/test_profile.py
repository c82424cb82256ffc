"""`trainer.profile`: the trace of the steps that were asked for, and nothing beside."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

from hubert_pretrain.config import compose
from hubert_pretrain.config.schema import TrainerConfig
from hubert_pretrain.errors import ConfigError
from hubert_pretrain.training.trainer import build_trainer, fit


class Network(L.LightningModule):
    """Marks each micro-batch in the trace with the number of its step."""

    def __init__(self, fails_at: int = 0) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(4, 1)
        self.fails_at = fails_at

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        step = self.trainer.global_step + 1
        if step == self.fails_at:
            raise torch.OutOfMemoryError("full")
        with torch.profiler.record_function(f"step {step}"):
            return self.linear(batch).sum()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def train(folder: Path, module: Network, **settings: Any) -> None:
    config = TrainerConfig(accelerator="cpu", progress_bar=False, **settings)
    trainer = build_trainer(
        folder, config, steps=6, accumulate=2, valid_every_steps=100, checkpoint_every_steps=100
    )
    loader = torch.utils.data.DataLoader(torch.zeros(64, 4), batch_size=2)
    fit(trainer, module, loader, None, folder)


def recorded(folder: Path) -> dict[str, int]:
    """Step -> micro-batches of the only trace in the folder."""
    (path,) = (folder / "logs").glob("trace.*.json.gz")
    events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    names = [event["name"] for event in events if event.get("cat") == "user_annotation"]
    return {name: names.count(name) for name in names if name.startswith("step ")}


def test_the_steps_that_were_asked_for_are_recorded(tmp_path: Path) -> None:
    train(tmp_path, Network(), profile=[3, 4])
    assert recorded(tmp_path) == {"step 3": 2, "step 4": 2}
    assert (tmp_path / "logs" / "trace.steps-3-4.rank-0.json.gz").is_file()
    assert "aten::addmm" in (tmp_path / "logs" / "profile.txt").read_text()
    figures = json.loads((tmp_path / "logs" / "profile.json").read_text())
    calls = {each["name"]: each["calls"] for each in figures["kernels"]}
    assert calls["aten::addmm"] == 4
    times = [each["milliseconds"] for each in figures["kernels"]]
    assert times == sorted(times, reverse=True)
    assert sum(each["share"] for each in figures["kernels"]) <= 1.0 + 1e-6
    assert 0 < sum(times) / 1e3 <= figures["busy"] * figures["seconds"] * (1 + 1e-6)
    assert figures["calls"] >= sum(calls.values())


def test_a_training_that_ends_before_leaves_what_there_is(tmp_path: Path) -> None:
    train(tmp_path, Network(), profile=[5, 50])
    assert recorded(tmp_path) == {"step 5": 2, "step 6": 2}


def test_full_memory_leaves_a_snapshot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a GPU: the calls are replaced by ones that write down what they got."""
    calls: list[Any] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    memory = torch.cuda.memory
    monkeypatch.setattr(memory, "_record_memory_history", lambda **_: calls.append("record"))
    monkeypatch.setattr(memory, "_dump_snapshot", lambda path: calls.append(path))
    from hubert_pretrain.training.profile import Profile

    callback = Profile([3, 4], tmp_path / "logs")
    trainer: Any = None
    module: Any = None
    callback.on_train_start(trainer, module)
    callback.on_exception(trainer, module, ValueError("another fault"))
    assert calls == ["record"]
    callback.on_exception(trainer, module, torch.OutOfMemoryError("full"))
    assert calls == ["record", str(tmp_path / "logs" / "memory.pickle")]


@pytest.mark.parametrize("steps", ["[3]", "[0,4]", "[5,4]", "[1,2,3]"])
def test_steps_that_make_no_range_are_refused(steps: str) -> None:
    with pytest.raises(ConfigError, match=r"trainer.profile.*e.g. \[20, 23\]"):
        compose.recipe_of(["+recipe=smoke", f"trainer.profile={steps}"])
