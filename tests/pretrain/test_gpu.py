"""What only an NVIDIA GPU can show: the same numbers as on the CPU, in fp32, bf16 and fp16. One command: pytest -m gpu."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from hubert_pretrain.config import Recipe
from hubert_pretrain.frames import SAMPLE_RATE
from hubert_pretrain.model.config import HubertConfig
from hubert_pretrain.model.hubert import Hubert
from hubert_pretrain.pretrain.stage import run
from hubert_pretrain.workspace import Workspace

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU")]


@pytest.mark.parametrize("pre_norm", [False, True])
def test_every_layer_equals_the_cpu(pre_norm: bool) -> None:
    torch.manual_seed(0)
    norm = "layer" if pre_norm else "group"
    model = Hubert(HubertConfig(num_hidden_layers=3, feat_extract_norm=norm, do_stable_layer_norm=pre_norm)).eval()
    waveform = torch.randn(2, 2 * SAMPLE_RATE)
    with torch.no_grad():
        expected = model(waveform, hidden_states=True).hidden_states
        found = model.cuda()(waveform.cuda(), hidden_states=True).hidden_states
    assert max((a - b.cpu()).abs().max().item() for a, b in zip(expected, found, strict=True)) < 1e-3


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
def test_pretraining_in_every_precision(precision: str, recipe: Callable[..., Recipe], prepared: Workspace, tmp_path: Path) -> None:
    on_cpu = run(recipe(), prepared, "it1/pretrain", tmp_path / "cpu")
    on_gpu = run(recipe(trainer={"accelerator": "gpu", "precision": precision}), prepared, "it1/pretrain", tmp_path / "gpu")
    # Dropout draws other numbers on a GPU, so eight steps end near each other, not on the same spot.
    assert on_gpu["masked_loss_nats"] == pytest.approx(on_cpu["masked_loss_nats"], rel=0.05)
