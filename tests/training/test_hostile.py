"""F28, F31: a folder that was made to do harm does none, and a path may have any name."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
import torch

from hubert_pretrain.errors import ArtefactError
from hubert_pretrain.model.checkpoint import load_model, save_model
from hubert_pretrain.model.config import HubertConfig
from hubert_pretrain.model.hubert import Hubert
from hubert_pretrain.model.pretraining_head import CodebookHead
from hubert_pretrain.training.checkpoint_io import VerifiedCheckpointIO, newest


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    form = {"conv_dim": [4] * 7, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    config = HubertConfig(**form, num_conv_pos_embeddings=2, num_conv_pos_embedding_groups=1, projection_size=4)  # type: ignore[arg-type]
    save_model(tmp_path / "made", Hubert(config), head=CodebookHead(8, 4, 3))
    return tmp_path / "made"


def test_code_beside_the_weights_is_never_run(folder: Path) -> None:
    sentinel = folder / "ran"
    for name in ("modeling_hubert.py", "__init__.py", "config.py", "pytorch_model.py"):
        (folder / name).write_text(f"open({str(sentinel)!r}, 'w')")
    stored = json.loads((folder / "config.json").read_text())
    stored["auto_map"] = {"AutoModel": "modeling_hubert.Evil"}
    (folder / "config.json").write_text(json.dumps(stored))
    load_model(folder)
    assert not sentinel.exists()


@pytest.mark.parametrize("length", [2**62, 2**40, 10])
def test_a_header_that_lies_is_refused(folder: Path, length: int) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(struct.pack("<Q", length) + weights.read_bytes()[8:])
    with pytest.raises(ArtefactError, match=r"model\.safetensors"):
        load_model(folder)


@pytest.mark.parametrize("name", ["a folder with spaces", "Größe-语音", "a=b,c", "link"])
def test_checkpoints_lie_in_any_folder(tmp_path: Path, name: str) -> None:
    folder = tmp_path / name
    if name == "link":
        (tmp_path / "real").mkdir()
        folder.symlink_to(tmp_path / "real")
    path = folder / "step=00000001.ckpt"
    VerifiedCheckpointIO().save_checkpoint({"global_step": 1, "weights": torch.ones(3)}, path)
    assert newest(folder) == path
    assert VerifiedCheckpointIO().load_checkpoint(path)["global_step"] == 1
