"""Diagnostics are right and computed only on logging steps; each alarm fires once."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from hubert_pretrain.config.schema import Recipe
from hubert_pretrain.pipeline.workspace import Workspace
from hubert_pretrain.pretrain import alarms
from hubert_pretrain.pretrain.alarms import ADVICE, COLUMN, PATIENCE, Alarms
from hubert_pretrain.pretrain.dataset import MicroBatches
from hubert_pretrain.pretrain.health import Health, embedding_norms, usage
from hubert_pretrain.pretrain.loss import Prediction
from hubert_pretrain.pretrain.module import PretrainModule
from hubert_pretrain.stages.pretrain import run
from hubert_pretrain.training import progress
from hubert_pretrain.training.curves import plot_pretraining
from hubert_pretrain.training.loggers import read_metrics
from hubert_pretrain.training.resilience.checkpoint_callback import CheckpointCallback

Recipes = Callable[..., Recipe]


def prediction(targets: list[int], predictions: list[int]) -> Prediction:
    zero = torch.zeros(())
    return Prediction(
        nll=zero,
        correct=zero,
        frames=len(targets),
        targets=torch.tensor(targets),
        predictions=torch.tensor(predictions),
    )


def test_use_of_a_codebook() -> None:
    found = usage(torch.tensor([4, 4, 0, 0, 8, 0]).numpy())
    entropy = 0.25 * math.log(4) * 2 + 0.5 * math.log(2)
    assert found == pytest.approx(
        {
            "codebook_use": 0.5,
            "entropy": entropy,
            "perplexity": math.exp(entropy),
            "largest_share": 0.5,
        }
    )


def test_counts_add_up_over_micro_batches_and_are_forgotten_when_read() -> None:
    health = Health([3])
    health.add(prediction([0, 1, 2, 2], [2, 2, 2, 2]))
    health.add(prediction([2, 2, 2, 2], [2, 2, 1, 2]))
    values = health.read()
    assert values["health/largest_share/targets"] == 6 / 8
    assert values["health/largest_share/predictions"] == 7 / 8
    assert values["health/codebook_use/predictions"] == 2 / 3
    assert values["health/unigram_entropy"] == values["health/entropy/targets"]
    assert health.read() == {}


def test_several_codebooks_are_told_apart() -> None:
    health = Health([2, 4])
    zero = torch.zeros(())
    parts = prediction([0, 1], [0, 0]), prediction([3, 3], [0, 1])
    health.add(Prediction(nll=zero, correct=zero, frames=2, codebooks=parts))
    values = health.read()
    assert values["health/perplexity/targets/codebook_1"] == pytest.approx(2)
    assert values["health/perplexity/targets/codebook_2"] == pytest.approx(1)
    assert values["health/unigram_entropy"] == pytest.approx(math.log(2))


def test_layers_are_measured_where_they_ran() -> None:
    health = Health([2])
    states = [torch.randn(2, 3, 4), torch.randn(2, 3, 4)]
    for factor in (1, 3):
        health.measure([factor * states[0], factor * states[1]], None)
    health.add(prediction([0], [0]))
    values = health.read()
    for layer, state in enumerate(states, start=1):
        assert values[f"health/layer_scale/{layer:02d}"] == pytest.approx(
            5**0.5 * float(state.square().mean().sqrt())
        )
    for active in ([False, True], [torch.tensor([False, False]), torch.tensor([True, False])]):
        health.measure(states, active)
    health.add(prediction([0], [0]))
    found = health.read()
    assert "health/layer_scale/01" not in found
    rows = torch.cat([states[1], states[1][:1]])
    assert found["health/layer_scale/02"] == pytest.approx(float(rows.square().mean().sqrt()))


def test_norms_of_embeddings() -> None:
    head = nn.Module()
    assert embedding_norms(head) == {}
    head.unit_embeddings = nn.Parameter(torch.tensor([[3.0, 4.0], [0.0, 1.0]]))
    assert embedding_norms(head) == {
        "health/embedding_norm/min": 1,
        "health/embedding_norm/mean": 3,
        "health/embedding_norm/max": 5,
    }


HEALTHY = {
    "loss/masked": 3.0,
    "health/unigram_entropy": 4.0,
    "health/largest_share/targets": 0.05,
    "health/largest_share/predictions": 0.1,
}
SICK = {
    "collapse": ({"health/largest_share/predictions": 0.95}, "collapsed"),
    "nothing_learnt": ({"loss/masked": 4.1}, "below the unigram entropy"),
    "dominant_cluster": (
        {"health/largest_share/targets": 0.4},
        "40% of the frames have one cluster",
    ),
    "slow_loader": ({"health/data_wait": 0.2}, "loader_workers"),
    "loss_scale": ({"loss_scale": 0.5}, "bf16-mixed"),
    "vanishing_layer": ({"health/layer_scale/03": 0.01}, "layer 3 has shrunk"),
}


@pytest.mark.parametrize("name", SICK)
def test_every_alarm_is_raised_once_with_advice(name: str) -> None:
    change, advice = SICK[name]
    raising = Alarms(warmup_steps=100)
    healthy = HEALTHY | {"health/layer_scale/03": 1.0}
    assert not any(raising.check(step, healthy) for step in range(100, 200, 10))
    raised = [raising.check(step, healthy | change) for step in range(200, 300, 10)]
    fired = {key: text for row in raised for key, text in row.items()}
    assert list(fired) == [name]
    assert advice in fired[name]
    assert sum(map(len, raised)) == 1
    assert raising.standing == {name: 10}
    raising.check(300, healthy)
    assert raising.standing == {}


def test_the_page_on_alarms_says_what_each_advises(repository: Path) -> None:
    page = (repository / "docs" / "health.md").read_text(encoding="utf-8")
    found = dict(re.findall(r"^\| `(\w+)` \|[^|]*\| ([^|]*) \|$", page, flags=re.MULTILINE))
    written = {name: found[name].replace("`", "").lower() for name in ADVICE}
    assert written == {name: advice.lower() for name, advice in ADVICE.items()}
    assert set(ADVICE) == set(SICK)


def test_no_alarm_about_learning_during_the_warm_up() -> None:
    raising = Alarms(warmup_steps=100)
    sick = HEALTHY | {"loss/masked": 5.0, "health/largest_share/predictions": 1.0}
    assert not any(raising.check(step, sick) for step in range(0, 100, 10))


def test_a_loss_that_falls_from_above_the_entropy_raises_no_alarm() -> None:
    """As in a small network, whose warm-up ends before its loss is below the entropy."""
    raising = Alarms(warmup_steps=0)
    falling = [HEALTHY | {"loss/masked": 5.2 - 0.1 * log} for log in range(20)]
    assert falling[5]["loss/masked"] > HEALTHY["health/unigram_entropy"]
    assert not any(raising.check(log, values) for log, values in enumerate(falling))
    stalled = HEALTHY | {"loss/masked": HEALTHY["health/unigram_entropy"] + 0.1}
    assert [set(raising.check(step, stalled)) for step in (20, 21, 22)][-1] == {"nothing_learnt"}


def test_a_single_slow_log_raises_no_alarm() -> None:
    raising = Alarms(warmup_steps=0)
    waits = [0.5, 0.5, 0.0, 0.5, 0.5, 0.0]
    assert not any(
        raising.check(step, HEALTHY | {"health/data_wait": wait}) for step, wait in enumerate(waits)
    )


def test_a_run_logs_its_health(
    recipe: Recipes, prepared: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(alarms, "DOMINANT_SHARE", 0.0)
    run(recipe(), prepared, "it1/pretrain", tmp_path)
    rows = read_metrics(tmp_path / "logs" / "metrics.csv")
    standing = [row[f"{COLUMN}dominant_cluster"] for row in rows if "health/alarms" in row]
    assert standing == list(range(1, len(standing) + 1))
    for row in rows:
        assert 0 <= row["health/data_wait"] < 1
        assert 0 < row["health/mfu"] < 1
        assert row["health/memory_gb"] > 0.01
        assert row["health/update_norm"] > 0
        assert 1 <= row["health/perplexity/predictions"] <= 5
        assert row["health/unigram_entropy"] <= math.log(5)
        assert row["health/embedding_norm/mean"] > 0
    assert any("health/layer_scale/02" in row for row in rows)


def test_only_the_loader_counts_as_waiting_for_data(
    recipe: Recipes,
    prepared: Workspace,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """On a clock that moves when a batch is made, a step is computed, a checkpoint is saved. On a
    CPU that alarms nobody.
    """
    now = [0.0]
    clock = SimpleNamespace(perf_counter=lambda: now[0], monotonic=lambda: now[0])
    monkeypatch.setattr(progress, "time", clock)

    def lasting(owner: Any, name: str, seconds: float) -> None:
        original = getattr(owner, name)

        def timed(*args: Any, **kwargs: Any) -> Any:
            now[0] += seconds
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, name, timed)

    lasting(MicroBatches, "__getitem__", 1.0)
    lasting(PretrainModule, "training_step", 3.0)
    lasting(CheckpointCallback, "on_train_batch_end", 6.0)
    run(recipe(), prepared, "it1/pretrain", tmp_path)
    rows = read_metrics(tmp_path / "logs" / "metrics.csv")
    waits = [row["health/data_wait"] for row in rows if "health/data_wait" in row]
    assert waits[1:-1] == [pytest.approx(0.1)] * (len(waits) - 2)
    assert len(waits) > PATIENCE
    assert "waits in its loader" not in caplog.text


class Questions(TorchDispatchMode):
    """Notes the step at which the host asks a tensor for its value: on a GPU it would wait
    there.
    """

    def __init__(self) -> None:
        super().__init__()
        self.step = 0
        self.asked: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            self.asked.add(self.step)
        return func(*args, **(kwargs or {}))


def test_the_device_is_asked_only_where_something_is_logged(
    recipe: Recipes, prepared: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    questions = Questions()
    original = PretrainModule.training_step

    def noting(self: PretrainModule, batch: dict[str, Any], batch_idx: int) -> torch.Tensor:
        questions.step = self.trainer.global_step + 1
        return original(self, batch, batch_idx)

    monkeypatch.setattr(PretrainModule, "training_step", noting)
    values = recipe(steps=12, log_every_steps=4, checkpoint_every_steps=100)
    values.model.attention_dropout = (
        0.0  # on a CPU it is computed head by head, from a number that is asked for
    )
    with questions:
        run(values, prepared, "it1/pretrain", tmp_path)
    assert questions.asked - {0} == {4, 8, 12}  # 0: before the first step


@pytest.mark.parametrize("published", ["it1", "it2", "it3"])
def test_the_picture_is_drawn_from_any_rows(tmp_path: Path, published: str) -> None:
    rows = [
        {
            "step": float(step),
            "loss/masked": 4.0,
            "health/layer_scale/01": 1.0,
            "gradient_norm": 2.0,
        }
        for step in (1, 200_000)
    ]
    for number, metrics in enumerate(([], rows[:1], rows)):
        plot_pretraining(metrics, tmp_path / f"{number}.png", title="x", published=published)
        assert (tmp_path / f"{number}.png").stat().st_size > 10_000
