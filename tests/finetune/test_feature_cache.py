"""A frozen encoder runs once per utterance, with the results of one that runs in each step."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hubert_pretrain.data.corpus import Corpus
from hubert_pretrain.finetune import feature_cache
from hubert_pretrain.finetune.feature_cache import Contents, FeatureCache, make_cache
from hubert_pretrain.model.checkpoint import load_model
from hubert_pretrain.model.config import HubertConfig, SpanMask
from hubert_pretrain.model.heads import ClassificationHead, CTCHead, TaskHead
from hubert_pretrain.model.hubert import Hubert
from hubert_pretrain.pipeline.workspace import Workspace
from hubert_pretrain.training.loggers import read_metrics
from tests.finetune.conftest import run_task

CTC = {"_target_": "hubert_pretrain.finetune.ctc.CtcTask"}
SPEAKERS = {"_target_": "hubert_pretrain.finetune.classify.ClassifyTask", "label": "speaker"}
NOTHING = SpanMask(probability=0.0, min_spans=0)
FROZEN: dict[str, Any] = {
    "freeze_encoder_steps": 6,
    "mask": NOTHING,
    "channel_mask": NOTHING,
    "layerdrop": 0.0,
    "activation_dropout": 0.0,
    "norm_over_valid": True,
}


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Number of utterances that the encoder has computed."""
    counted: Counter[str] = Counter()
    forward = Hubert.forward

    def count(self: Hubert, waveform: torch.Tensor, **more: Any) -> Any:
        counted["utterances"] += len(waveform)
        return forward(self, waveform, **more)

    monkeypatch.setattr(Hubert, "forward", count)
    return counted


@pytest.mark.parametrize(
    "task",
    [
        {**SPEAKERS, "weighted_layers": True},
        SPEAKERS,
        {**SPEAKERS, "weighted_layers": True, "pooling": "attentive"},
        {**CTC, "weighted_layers": True},
    ],
    ids=["mixture", "last", "attentive", "ctc"],
)
def test_results_are_those_of_an_encoder_in_each_step(
    workspace: Workspace, calls: Counter[str], task: dict[str, Any]
) -> None:
    found = {}
    for name, gb in (("each", 0.0), ("once", 1.0)):
        calls.clear()
        facts = run_task(workspace, "task", task, **FROZEN, feature_cache_gb=gb, log_every_steps=1)
        folder = workspace.root / name
        workspace.partial_folder("finetune/task").rename(folder)
        rows = read_metrics(folder / "logs" / "metrics.csv")
        losses = [row["loss"] for row in rows if "loss" in row]
        valid = [row["valid/loss"] for row in rows if "valid/loss" in row]
        found[name] = (facts, losses, valid, load_model(folder), calls["utterances"])
    each = found["each"]
    once = found["once"]
    assert once[4] == 16  # those of training and validation, once
    assert each[4] > 40
    assert once[0] == each[0]
    assert (len(once[1]), len(once[2])) == (6, 2)
    assert once[1][0] == pytest.approx(each[1][0], rel=1e-6)
    assert once[1] == pytest.approx(each[1], rel=1e-5)
    assert once[2] == pytest.approx(each[2], rel=1e-5)
    for name, tensor in each[3].head_state.items():
        torch.testing.assert_close(once[3].head_state[name], tensor, rtol=0, atol=2e-5)
    assert not list((workspace.root / "once").glob("features.*"))


@pytest.mark.parametrize(
    "change",
    [
        {"freeze_encoder_steps": 5},
        {"mask": SpanMask(probability=0.1, span_frames=2)},
        {"channel_mask": SpanMask(probability=0.1, span_frames=2)},
        {"layerdrop": 0.1},
        {"activation_dropout": 0.1},
        {"norm_over_valid": False},
        {"feature_cache_gb": 1e-9},
    ],
    ids=lambda change: next(iter(change)),
)
def test_what_changes_from_step_to_step_is_not_kept(
    workspace: Workspace, calls: Counter[str], change: dict[str, Any]
) -> None:
    run_task(workspace, "speakers", SPEAKERS, **{**FROZEN, "steps": 6, **change})
    assert calls["utterances"] > 30


def test_an_encoder_that_was_killed_goes_on_with_the_rest(
    workspace: Workspace, calls: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feature_cache, "WRITTEN_TOGETHER", 4)
    compute = FeatureCache._compute

    def die(self: FeatureCache, model: Hubert, waveform: torch.Tensor) -> Any:
        if calls["utterances"] == 10:
            raise RuntimeError("killed")
        return compute(self, model, waveform)

    monkeypatch.setattr(FeatureCache, "_compute", die)
    with pytest.raises(RuntimeError, match="killed"):
        run_task(workspace, "speakers", SPEAKERS, **FROZEN)
    monkeypatch.setattr(FeatureCache, "_compute", compute)
    calls.clear()
    again = run_task(workspace, "speakers", SPEAKERS, **FROZEN)
    assert calls["utterances"] == 16 - 8  # two were computed, but not yet noted
    folder = workspace.partial_folder("finetune/speakers")
    resumed = load_model(folder).head_state
    shutil.rmtree(folder)
    assert run_task(workspace, "speakers", SPEAKERS, **FROZEN) == again
    for name, tensor in load_model(folder).head_state.items():
        assert torch.equal(resumed[name], tensor)


def test_another_encoder_starts_again(corpus: Corpus, tiny: HubertConfig, tmp_path: Path) -> None:
    rows = corpus.manifest.rows("train")
    torch.manual_seed(0)
    model = Hubert(tiny).eval()
    head = CTCHead(16, 5)
    cache = make_cache(tmp_path, corpus, rows, model, head, 1.0)
    assert cache is not None
    cache.fill(model, corpus, torch.device("cpu"), workers=0, seed="one")
    before = cache.read(int(rows[0])).copy()
    with torch.no_grad():
        model.context_encoder.layers[0].feed_forward.up.weight.mul_(2.0)
    cache = make_cache(tmp_path, corpus, rows, model, head, 1.0)
    assert cache is not None
    cache.fill(model, corpus, torch.device("cpu"), workers=0, seed="one")
    assert np.array_equal(cache.read(int(rows[0])), before)
    cache.fill(model, corpus, torch.device("cpu"), workers=0, seed="two")
    assert not np.allclose(cache.read(int(rows[0])), before)
    assert feature_cache.identity(model, corpus) != feature_cache.identity(Hubert(tiny), corpus)


@pytest.mark.parametrize("pre_norm", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("pooling", ["mean", "attentive"])
def test_a_head_reads_what_was_packed(
    tiny: HubertConfig, pre_norm: bool, weighted: bool, pooling: str
) -> None:
    config = HubertConfig(**{**vars(tiny), "do_stable_layer_norm": pre_norm})
    torch.manual_seed(0)
    model = Hubert(config).eval()
    head: TaskHead = ClassificationHead(
        16, 3, 8, n_layers=2, weighted_layers=weighted, pooling=pooling
    )
    contents = Contents.of(head, model)
    with torch.no_grad():
        output = model(torch.randn(1, 8000), hidden_states=True)
        packed = contents.pack(output)
        assert packed.shape[0] == contents.layers
        assert packed.shape[1] == (1 if pooling == "mean" else 24)
        expected = head.logits(output)
        torch.testing.assert_close(head.logits(contents.unpack(packed[None])), expected)
    again = contents.unpack(packed[None])
    if pooling == "attentive":
        torch.testing.assert_close(again.last, output.last)


def test_a_file_that_would_be_too_large_is_not_made(
    corpus: Corpus, tiny: HubertConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = corpus.manifest.rows()
    model = Hubert(tiny)
    head = CTCHead(16, 5, n_layers=2, weighted_layers=True)
    assert make_cache(tmp_path, corpus, rows, model, head, 1e-6) is None
    assert "3 layers of 24 utterances, take 0.0 GB, feature_cache_gb is 1e-06" in caplog.text
    assert not list(tmp_path.glob("features.*"))
