"""Checkpoint folders: bit-equal round trip, permissions, refusals that name the file."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest
import torch

from hubert_pretrain.errors import ArtefactError, ConfigError
from hubert_pretrain.model.checkpoint import (
    CONFIG,
    WEIGHTS,
    load_model,
    load_tensors,
    save_model,
    save_tensors,
)
from hubert_pretrain.model.config import HubertConfig
from hubert_pretrain.model.heads import CodebookHead, CTCHead
from hubert_pretrain.model.hubert import Hubert

SMALL = HubertConfig(
    conv_dim=[8] * 7,
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=32,
    num_conv_pos_embeddings=8,
    num_conv_pos_embedding_groups=2,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    save_model(
        tmp_path / "model", Hubert(SMALL), head=CodebookHead(16, 8, 10, 0.2), extra={"step": 7}
    )
    return tmp_path / "model"


def test_round_trip(tmp_path: Path) -> None:
    model = Hubert(SMALL)
    head = CTCHead(16, 5, dropout=0.1)
    save_model(tmp_path, model, head=head, extra={"vocabulary": list("_ABC|")})
    loaded = load_model(tmp_path)
    assert loaded.kind == "ctc"
    assert loaded.model.config == SMALL
    assert loaded.extra == {"vocabulary": list("_ABC|")}
    assert not loaded.model.training
    for ours, theirs in ((loaded.model, model), (loaded.build_head(), head)):
        expected = theirs.state_dict()
        assert all(
            torch.equal(tensor, expected[name]) for name, tensor in ours.state_dict().items()
        )
    assert loaded.build_head().settings == head.settings


def test_bare_encoder(tmp_path: Path) -> None:
    save_model(tmp_path, Hubert(SMALL))
    with pytest.raises(ArtefactError, match="no head"):
        load_model(tmp_path).build_head()


def test_overrides_replace_values_of_the_config(folder: Path) -> None:
    loaded = load_model(folder, layerdrop=0.0, conv_gradient_scale=0.0)
    assert loaded.model.config.layerdrop == 0.0
    assert not next(loaded.model.conv_encoder.parameters()).requires_grad
    with pytest.raises(ConfigError, match="did you mean 'layerdrop'"):
        load_model(folder, layer_drop=0.0)


def test_nothing_else_is_left_in_the_folder(folder: Path) -> None:
    save_model(folder, Hubert(SMALL))
    assert sorted(os.listdir(folder)) == [CONFIG, WEIGHTS]


def test_permissions_follow_the_umask(tmp_path: Path) -> None:
    for umask, mode in ((0o022, 0o644), (0o027, 0o640), (0o077, 0o600)):
        old = os.umask(umask)
        try:
            save_tensors(tmp_path / "x.safetensors", {"x": torch.zeros(3)})
        finally:
            os.umask(old)
        assert stat.S_IMODE((tmp_path / "x.safetensors").stat().st_mode) == mode


def test_tensors_that_share_memory_or_are_views_are_written(tmp_path: Path) -> None:
    fused = torch.arange(12.0).view(6, 2)
    save_tensors(
        tmp_path / "x.safetensors", dict(zip("qkv", fused.chunk(3), strict=True)) | {"t": fused.T}
    )
    loaded = load_tensors(tmp_path / "x.safetensors")
    assert torch.equal(loaded["k"], fused[2:4])
    assert torch.equal(loaded["t"], fused.T)


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
def test_missing_file(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(ArtefactError, match=name):
        load_model(folder)


@pytest.mark.parametrize("length", [0, 4, 1000])
def test_truncated_weights(folder: Path, length: int) -> None:
    os.truncate(folder / WEIGHTS, length)
    with pytest.raises(ArtefactError, match=f"{WEIGHTS}: cannot be read as safetensors"):
        load_model(folder)


def test_config_of_another_shape(folder: Path) -> None:
    config = json.loads((folder / CONFIG).read_text())
    config["model"]["num_hidden_layers"] = 3
    (folder / CONFIG).write_text(json.dumps(config))
    with pytest.raises(
        ArtefactError,
        match=r"context_encoder.layers.2.attention.qkv.weight is missing.*12 such tensors",
    ):
        load_model(folder)
    config["model"] |= {"num_hidden_layers": 2, "intermediate_size": 48}
    (folder / CONFIG).write_text(json.dumps(config))
    with pytest.raises(ArtefactError, match=r"has shape \(32, 16\) where \(48, 16\) was expected"):
        load_model(folder)


def test_config_of_another_project(folder: Path) -> None:
    (folder / CONFIG).write_text('{"model_type": "hubert"}')
    with pytest.raises(
        ArtefactError, match=r"not the config\.json of a checkpoint of this project"
    ):
        load_model(folder)
