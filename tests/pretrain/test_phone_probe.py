"""The probe measures what it says, on any number of ranks, and training does not notice it."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hubert_pretrain.config.schema import ProbeConfig, Recipe
from hubert_pretrain.errors import ConfigError, Preempted
from hubert_pretrain.frames import SAMPLE_RATE
from hubert_pretrain.model.checkpoint import load_model
from hubert_pretrain.pipeline.workspace import Workspace
from hubert_pretrain.pretrain.phone_probe import PhoneProbe
from hubert_pretrain.stages.pretrain import run
from hubert_pretrain.training.curves import plot_pretraining
from hubert_pretrain.training.loggers import read_metrics
from tests.pretrain.test_ema import leave_after
from tests.pretrain.test_world_sizes import Job, Processes, make

Recipes = Callable[..., Recipe]
PROBE = ProbeConfig(every_steps=2, n_clusters=6)


def values(folder: Path, name: str = "health/pnmi") -> dict[int, float]:
    return {
        int(row["step"]): row[name]
        for row in read_metrics(folder / "logs" / "metrics.csv")
        if name in row
    }


@pytest.mark.parametrize("ema_decay", [0.0, 0.5])
def test_training_does_not_notice(
    recipe: Recipes, aligned: Workspace, tmp_path: Path, ema_decay: float
) -> None:
    """Dropout, layer drop and augmentation are drawn as before: not a bit of the weights or of the
    losses differs.
    """
    settings: dict[str, Any] = {
        "ema_decay": ema_decay,
        "valid_every_steps": 3,
        "log_every_steps": 1,
    }
    run(recipe(**settings), aligned, "it1/pretrain", tmp_path / "without")
    run(recipe(probe=PROBE, **settings), aligned, "it1/pretrain", tmp_path / "with")
    one, other = (load_model(tmp_path / name) for name in ("without", "with"))
    assert all(
        torch.equal(other.model.state_dict()[name], value)
        for name, value in one.model.state_dict().items()
    )
    assert all(torch.equal(other.head_state[name], value) for name, value in one.head_state.items())
    assert values(tmp_path / "with", "loss") == values(tmp_path / "without", "loss")
    assert values(tmp_path / "without") == {}
    assert sorted(values(tmp_path / "with")) == [2, 4, 6, 8]


def test_an_interrupted_run_probes_the_same(
    recipe: Recipes, aligned: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = recipe(probe=PROBE, ema_decay=0.5)
    run(settings, aligned, "it1/pretrain", tmp_path / "whole")
    with monkeypatch.context() as patch:
        leave_after(patch, 5)
        with pytest.raises(Preempted):
            run(settings, aligned, "it1/pretrain", tmp_path / "cut")
    run(settings, aligned, "it1/pretrain", tmp_path / "cut")
    assert values(tmp_path / "cut") == values(tmp_path / "whole")
    assert all(0 < value < 1 for value in values(tmp_path / "whole").values())


@pytest.mark.parametrize("layer", [1, 2])
def test_it_hears_what_is_exported(
    recipe: Recipes, aligned: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layer: int
) -> None:
    """The frames of the last step are those of the average that is exported, beside the phones of
    exactly those frames.
    """
    seen: list[tuple[PhoneProbe, np.ndarray[Any, Any]]] = []
    original = PhoneProbe._pnmi
    monkeypatch.setattr(
        PhoneProbe,
        "_pnmi",
        lambda self, frames: seen.append((self, frames)) or original(self, frames),
    )
    run(
        recipe(probe=ProbeConfig(every_steps=4, layer=layer, n_clusters=6), ema_decay=0.5),
        aligned,
        "it1/pretrain",
        tmp_path,
    )
    phone_probe, frames = seen[-1]
    corpus = phone_probe.source.corpus
    loaded = load_model(tmp_path)
    at = 0
    assert sum(each.counted_rows for each in phone_probe.micro_batches) == len(
        corpus.manifest.rows("valid")
    )
    for micro_batch in phone_probe.micro_batches:
        num_frames = micro_batch.shape.num_frames
        crops = zip(micro_batch.rows.tolist(), micro_batch.starts.tolist(), strict=True)
        for row, start in list(crops)[: micro_batch.counted_rows]:
            waveform = torch.from_numpy(corpus.read(row, 320 * start, 320 * (num_frames - 1) + 400))
            expected = loaded.features(waveform[None], layer=layer, sampling_rate=SAMPLE_RATE)[
                0
            ].numpy()
            np.testing.assert_allclose(frames[at : at + num_frames], expected, rtol=1e-4, atol=1e-5)
            assert corpus.alignments is not None
            expected_phones = corpus.alignments.frame_phone_ids(row, start + num_frames)[start:]
            np.testing.assert_array_equal(phone_probe.phones[at : at + num_frames], expected_phones)
            at += num_frames
    assert at == len(frames) == len(phone_probe.phones)


def test_what_it_measures() -> None:
    """1 where clusters are phones, nearly 0 where they have nothing to do with them, whatever lies
    in frames without a phone.
    """
    draw_numbers = np.random.default_rng(0)
    phones = draw_numbers.integers(-1, 3, size=600).astype(np.int32)
    source: Any = None
    probe = PhoneProbe([], [phones], source, layer=1, n_clusters=4, every_steps=1, seed=1)
    by_phone = np.eye(4, dtype=np.float32)[phones]
    assert probe._pnmi(by_phone) == pytest.approx(1.0)
    assert probe._pnmi(draw_numbers.standard_normal((600, 4)).astype(np.float32)) < 0.05
    assert math.isnan(probe._pnmi(np.full((600, 4), np.nan, dtype=np.float32)))


def test_ranks_share_it(aligned: Workspace, tmp_path: Path) -> None:
    """Nearly no learning, so that weights are the same: so is the value; with more ranks than
    micro-batches, and with weights cut.
    """
    settings: dict[str, Any] = {
        "steps": 4,
        "learning_rate": 1e-12,
        "probe": PROBE,
        "valid_every_steps": 100,
        "max_crop_seconds": 0.8,
    }
    run(make(1, **settings), aligned, "it1/pretrain", tmp_path / "auto1")
    for world_size, strategy in ((2, "fsdp"), (4, "ddp")):
        name = f"{strategy}{world_size}"
        Processes(
            world_size,
            [Job(make(world_size, strategy, **settings), tmp_path / name)],
            aligned,
            tmp_path / f"{name}.logs",
        ).wait()
    expected = values(tmp_path / "auto1")
    assert sorted(expected) == [2, 4]
    for name in ("fsdp2", "ddp4"):
        assert values(tmp_path / name) == pytest.approx(expected, rel=1e-6)


def test_without_alignments_it_says_so_and_trains(
    recipe: Recipes, prepared: Workspace, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run(recipe(probe=PROBE, steps=2), prepared, "it1/pretrain", tmp_path)
    assert "no alignments, so PNMI is not measured" in caplog.text
    assert values(tmp_path) == {}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (ProbeConfig(every_steps=2, layer=3), "layers 1 to 2"),
        (ProbeConfig(every_steps=2, n_clusters=500), "needs 5 aligned frames per cluster"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    recipe: Recipes, aligned: Workspace, tmp_path: Path, settings: ProbeConfig, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        run(recipe(probe=settings), aligned, "it1/pretrain", tmp_path)


def test_it_is_drawn(tmp_path: Path) -> None:
    rows = [{"step": step, "loss/masked": 3.0, "accuracy/masked": 0.1} for step in (1.0, 2.0)]
    plot_pretraining(rows, tmp_path / "without.png", title="t")
    plot_pretraining([row | {"health/pnmi": 0.4} for row in rows], tmp_path / "with.png", title="t")
    assert (tmp_path / "with.png").read_bytes() != (tmp_path / "without.png").read_bytes()
