"""Pretraining on an NVIDIA GPU: the same numbers as on the CPU, in fp32, bf16 and fp16. One
command: pytest -m gpu.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from hubert_pretrain.config.schema import Recipe
from hubert_pretrain.frames import SAMPLE_RATE
from hubert_pretrain.model.config import HubertConfig
from hubert_pretrain.model.hubert import Hubert
from hubert_pretrain.model.precision import set_matmul_precision
from hubert_pretrain.pipeline.workspace import Workspace
from hubert_pretrain.pretrain.module import PretrainModule
from hubert_pretrain.stages.pretrain import run

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU"),
]


@pytest.mark.parametrize("pre_norm", [False, True])
def test_every_layer_equals_the_cpu(pre_norm: bool) -> None:
    set_matmul_precision(tf32=False)
    torch.manual_seed(0)
    norm = "layer" if pre_norm else "group"
    model = Hubert(
        HubertConfig(num_hidden_layers=3, feat_extract_norm=norm, do_stable_layer_norm=pre_norm)
    ).eval()
    waveform = torch.randn(2, 2 * SAMPLE_RATE)
    with torch.no_grad():
        expected = model(waveform, hidden_states=True).hidden_states
        found = model.cuda()(waveform.cuda(), hidden_states=True).hidden_states
    assert (
        max((a - b.cpu()).abs().max().item() for a, b in zip(expected, found, strict=True)) < 1e-3
    )


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
def test_pretraining_in_every_precision(
    precision: str, recipe: Callable[..., Recipe], prepared: Workspace, tmp_path: Path
) -> None:
    on_cpu = run(recipe(), prepared, "it1/pretrain", tmp_path / "cpu")
    found = run(
        recipe(trainer={"accelerator": "gpu", "precision": precision}),
        prepared,
        "it1/pretrain",
        tmp_path / "gpu",
    )
    # Dropout draws other numbers on a GPU, so eight steps end near each other, not on the same
    # spot.
    assert found["masked_loss_nats"] == pytest.approx(on_cpu["masked_loss_nats"], rel=0.05)


def on_gpu(
    recipe: Callable[..., Recipe],
    *,
    precision: str = "32-true",
    compile: str = "none",
    mode: str = "default",
    **changes: Any,
) -> Recipe:
    """A recipe without anything random, so that two ways to compute it can be compared."""
    made = recipe(
        trainer={
            "accelerator": "gpu",
            "precision": precision,
            "compile": compile,
            "compile_mode": mode,
        },
        **changes,
    )
    quiet = {
        "layerdrop": 0.0,
        "hidden_dropout": 0.0,
        "attention_dropout": 0.0,
        "feat_proj_dropout": 0.0,
    }
    return dataclasses.replace(made, model=dataclasses.replace(made.model, **quiet))


@pytest.mark.parametrize("mode", ["default", "max-autotune-no-cudagraphs"])
def test_compiled_training_goes_where_eager_training_goes(
    mode: str, recipe: Callable[..., Recipe], prepared: Workspace, tmp_path: Path
) -> None:
    set_matmul_precision(tf32=False)
    torch._dynamo.reset()
    eager = run(
        on_gpu(recipe, freeze_conv_after_steps=4), prepared, "it1/pretrain", tmp_path / "eager"
    )
    found = run(
        on_gpu(recipe, compile="parts", mode=mode, freeze_conv_after_steps=4),
        prepared,
        "it1/pretrain",
        tmp_path / "compiled",
    )
    assert found["masked_loss_nats"] == pytest.approx(eager["masked_loss_nats"], rel=1e-3)


def test_nobody_waits_for_the_gpu_between_two_logs(
    recipe: Callable[..., Recipe],
    prepared: Workspace,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of the whole loop: Lightning, the loader's copies, clipping, the update."""
    begin = PretrainModule.on_train_batch_start
    watched = []

    def watching(self: PretrainModule, *batch: Any) -> None:
        if inside := 2 <= self.trainer.global_step < 7:
            watched.append(self.trainer.global_step)
        torch.cuda.set_sync_debug_mode("error" if inside else "default")
        begin(self, *batch)

    monkeypatch.setattr(PretrainModule, "on_train_batch_start", watching)
    try:
        values = on_gpu(
            recipe, precision="bf16-mixed", log_every_steps=100, checkpoint_every_steps=100
        )
        run(values, prepared, "it1/pretrain", tmp_path)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert set(watched) == {2, 3, 4, 5, 6}


def test_attention_without_padding_is_flash_attention() -> None:
    model = Hubert(HubertConfig(num_hidden_layers=1)).cuda().train()
    with (
        sdpa_kernel(SDPBackend.FLASH_ATTENTION),
        torch.autocast("cuda", torch.bfloat16),
    ):  # an error where it cannot be used
        loss = model(torch.randn(2, SAMPLE_RATE, device="cuda")).last.float().square().mean()
    loss.backward()
    assert model.context_encoder.layers[0].attention.qkv.weight.grad.isfinite().all()
