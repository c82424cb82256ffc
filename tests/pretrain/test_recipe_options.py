"""Options of masks and of the computation, in a whole pretraining."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from hubert_pretrain.config.schema import Recipe
from hubert_pretrain.model.checkpoint import load_tensors
from hubert_pretrain.model.config import SpanMask
from hubert_pretrain.model.hubert import Hubert
from hubert_pretrain.pipeline.workspace import Workspace
from hubert_pretrain.pretrain import dataset
from hubert_pretrain.stages.pretrain import run


def test_gradient_checkpointing_and_eager_attention_train_the_same_model(
    recipe: Callable[..., Recipe],
    prepared: Workspace,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[tuple[str, bool]] = []
    forward = Hubert.forward
    monkeypatch.setattr(
        Hubert,
        "forward",
        lambda self, *a, **k: (
            seen.append((self.attention, self.gradient_checkpointing)) or forward(self, *a, **k)
        ),
    )
    weights = {}
    for name, trainer in (
        ("plain", {}),
        ("checkpointing", {"gradient_checkpointing": True}),
        ("eager", {"attention": "eager"}),
    ):
        seen.clear()
        values = recipe(trainer=trainer, steps=3)
        values.model.attention_dropout = 0.0  # its draws differ between back ends
        run(values, prepared, "it1/pretrain", tmp_path / name)
        assert set(seen) == {
            (trainer.get("attention", "sdpa"), trainer.get("gradient_checkpointing", False))
        }
        weights[name] = load_tensors(tmp_path / name / "model.safetensors")
    for name, expected in weights["plain"].items():
        assert torch.equal(weights["checkpointing"][name], expected), name
        torch.testing.assert_close(weights["eager"][name], expected, rtol=1e-3, atol=1e-4)


def test_masks_of_other_spans(
    recipe: Callable[..., Recipe],
    prepared: Workspace,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = []
    sampler = dataset.span_mask
    monkeypatch.setattr(dataset, "span_mask", lambda *a: asked.append(a) or sampler(*a))
    mask = SpanMask(probability=0.4, span_frames=4, lengths="poisson", overlap=False, min_space=2)
    run(recipe(mask=mask, steps=2), prepared, "it1/pretrain", tmp_path)
    assert asked
    for _, spans, _ in asked:
        assert spans == mask
