"""ONNX graphs and exported programs: equal outputs at any length and batch; 8-bit graphs."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from hubert_pretrain.errors import ArtefactError
from hubert_pretrain.interop.compare import probe
from hubert_pretrain.interop.onnx import (
    Deployed,
    compare_onnx,
    compare_torch,
    export_onnx,
    export_program,
    export_torch,
    quantise_onnx,
    run_onnx,
)
from hubert_pretrain.model.checkpoint import LoadedModel, load_model, save_model
from hubert_pretrain.model.config import HubertConfig
from hubert_pretrain.model.heads import CodebookHead, CTCHead
from hubert_pretrain.model.hubert import Hubert

pytestmark = pytest.mark.slow

SMALL = HubertConfig(
    conv_dim=[8] * 7,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=64,
    num_conv_pos_embeddings=8,
    num_conv_pos_embedding_groups=2,
    projection_size=8,
)
LAYER = dataclasses.replace(
    SMALL, feat_extract_norm="layer", do_stable_layer_norm=True, normalize_waveform=True
)


def checkpoint(folder: Path, config: HubertConfig, head: torch.nn.Module) -> LoadedModel:
    extra = {"vocabulary": ["<pad>", "|", "A"]}
    save_model(folder, Hubert(config), head=head, extra=extra)  # type: ignore[arg-type]
    return load_model(folder)


def test_graph_and_its_8_bit_form(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="the extra `onnx` is not installed")
    pytest.importorskip("onnxscript", reason="the extra `onnx` is not installed")
    import onnx

    torch.manual_seed(0)
    loaded = checkpoint(tmp_path / "ours", LAYER, CTCHead(32, 3))
    export_onnx(tmp_path / "hubert.onnx", loaded)
    assert compare_onnx(tmp_path / "hubert.onnx", loaded).max_difference < 1e-4
    metadata = {item.key: item.value for item in onnx.load(tmp_path / "hubert.onnx").metadata_props}
    assert json.loads(metadata["hubert_pretrain"])["extra"]["vocabulary"] == ["<pad>", "|", "A"]
    waveform = 0.1 * torch.randn(2, 8_000)
    assert run_onnx(tmp_path / "hubert.onnx", waveform)["logits"].shape == (2, 24, 3)
    # The graph normalises its waveforms itself.
    louder = run_onnx(tmp_path / "hubert.onnx", 5 * waveform + 1)["logits"]
    torch.testing.assert_close(
        louder, run_onnx(tmp_path / "hubert.onnx", waveform)["logits"], atol=1e-3, rtol=0
    )

    quantise_onnx(tmp_path / "hubert.onnx", tmp_path / "small.onnx")
    exact, rough = (
        run_onnx(tmp_path / name, waveform)["logits"] for name in ("hubert.onnx", "small.onnx")
    )
    assert 0 < (rough - exact).norm() / exact.norm() < 0.1
    with torch.no_grad():
        loaded.head_state["linear.bias"] += 0.01
    with pytest.raises(
        ArtefactError, match=r"logits of 1 x 16000 samples of the exported model differs by 0\.01"
    ):
        compare_onnx(tmp_path / "hubert.onnx", loaded)


def test_weights_beside_the_graph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As for a network of more than 1.5 GB: torch puts its weights into a second file."""
    pytest.importorskip("onnxruntime", reason="the extra `onnx` is not installed")
    pytest.importorskip("onnxscript", reason="the extra `onnx` is not installed")
    from torch.onnx._internal.exporter import _onnx_program

    loaded = checkpoint(tmp_path / "ours", SMALL, CTCHead(32, 3))
    waveform = 0.1 * torch.randn(1, 8_000)
    with monkeypatch.context() as patched:
        patched.setattr(_onnx_program, "_LARGE_MODEL_THRESHOLD", 1)
        export_onnx(tmp_path / "a" / "hubert.onnx", loaded)
    names = sorted(file.name for file in (tmp_path / "a").iterdir())
    assert names == ["hubert.onnx", "hubert.onnx.data"]
    (tmp_path / "a").rename(tmp_path / "b")
    expected = run_onnx(tmp_path / "b" / "hubert.onnx", waveform)["logits"]
    quantise_onnx(tmp_path / "b" / "hubert.onnx", tmp_path / "c" / "small.onnx")
    rough = run_onnx(tmp_path / "c" / "small.onnx", waveform)["logits"]
    assert 0 < (rough - expected).norm() / expected.norm() < 0.1
    export_onnx(tmp_path / "b" / "hubert.onnx", loaded)  # now small: one file
    assert [file.name for file in (tmp_path / "b").iterdir()] == ["hubert.onnx"]


@pytest.mark.parametrize("frames", [1, 2, 3])
def test_an_exported_program_takes_a_few_frames(tmp_path: Path, frames: int) -> None:
    loaded = checkpoint(tmp_path / "ours", SMALL, CTCHead(32, 3))
    export_torch(tmp_path / "hubert.pt2", loaded)
    program = torch.export.load(tmp_path / "hubert.pt2").module()
    for rows in (1, 2):
        waveform = 0.1 * torch.randn(rows, loaded.model.grid.num_samples(frames))
        with torch.inference_mode():
            assert torch.equal(program(waveform)[0], Deployed(loaded)(waveform)[0])


def test_exported_program(tmp_path: Path) -> None:
    torch.manual_seed(0)
    loaded = checkpoint(tmp_path / "ours", SMALL, CodebookHead(32, 8, 5))
    export_torch(tmp_path / "hubert.pt2", loaded)
    report = compare_torch(tmp_path / "hubert.pt2", loaded)
    assert report.max_difference < 1e-5
    assert {name.split(" of ")[0] for name in report.differences} == {
        "layer_1",
        "layer_2",
        "last_hidden_state",
        "logits",
    }
    with torch.no_grad():
        loaded.head_state["projection.bias"] += 1e-4
    with pytest.raises(ArtefactError, match=r"logits of 1 x 16000 samples of the exported model"):
        compare_torch(tmp_path / "hubert.pt2", loaded, tolerance=1e-5)


@pytest.mark.parametrize("config", [SMALL, LAYER], ids=["group norm", "layer norm"])
def test_exported_program_has_the_operations_of_inference(config: HubertConfig) -> None:
    """Equal bits: an export traced with gradients would differ by the rounding of another order of
    sums, about 1e-5 in logits that are cosines over a temperature of .1.
    """
    for seed in range(3):
        torch.manual_seed(seed)
        head = CodebookHead(32, 8, 5)
        description = {"head": head.settings}
        loaded = LoadedModel(Hubert(config).eval(), "pretrain", head.state_dict(), description)
        program = export_program(loaded).module()
        waveform = probe(loaded, 3, 0.7)
        with torch.inference_mode():
            for found, expected in zip(program(waveform), Deployed(loaded)(waveform), strict=True):
                assert torch.equal(found, expected)
