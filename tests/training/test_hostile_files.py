"""F28, F31: a folder that was made to do harm does none, and a path may have any name."""

from __future__ import annotations

import json
import re
import resource
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from hubert_pretrain.errors import ArtefactError
from hubert_pretrain.interop.load import load_checkpoint
from hubert_pretrain.interop.transformers_writer import export_huggingface
from hubert_pretrain.model.checkpoint import load_model, save_model
from hubert_pretrain.model.config import HubertConfig
from hubert_pretrain.model.heads import CodebookHead
from hubert_pretrain.model.hubert import Hubert
from hubert_pretrain.training.resilience.checkpoint_io import VerifiedCheckpointIO, newest


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    form = {
        "conv_dim": [4] * 7,
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "intermediate_size": 8,
    }
    config = HubertConfig(
        **form, num_conv_pos_embeddings=2, num_conv_pos_embedding_groups=1, projection_size=4
    )  # type: ignore[arg-type]
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


def change(folder: Path, part: str, name: str, value: object) -> None:
    """One value of config.json."""
    stored = json.loads((folder / "config.json").read_text())
    (stored[part] if part else stored)[name] = value
    (folder / "config.json").write_text(json.dumps(stored))


ABSURD = [
    *(
        ("hidden_size", 2**40),
        ("num_hidden_layers", 10**9),
        ("intermediate_size", 2**50),
        ("projection_size", 10**12),
    ),
    *(
        ("conv_dim", [2**40] * 7),
        ("conv_dim", [4] * 100_000),
        ("conv_stride", [10**9] * 100_000),
        ("conv_kernel", [10**9] * 7),
        ("num_conv_pos_embeddings", 10**10),
    ),
    *(
        ("adapter_attn_dim", 2**40),
        ("mel_bins", 10**9),
        ("mel_window_seconds", 1e12),
        ("hidden_size", float("inf")),
    ),
]


@pytest.fixture
def little_memory() -> Iterator[None]:
    """Limit the address space to 8 GB more than now: a larger allocation fails at once instead of
    filling the machine.
    """
    before = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (8 << 30), before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.mark.usefixtures("little_memory")
@pytest.mark.parametrize(("name", "value"), ABSURD, ids=lambda value: str(value)[:20])
def test_a_config_of_absurd_sizes_is_refused_before_anything_is_built(
    folder: Path, name: str, value: object
) -> None:
    change(folder, "model", name, value)
    if isinstance(value, list) and value[0] == 4:
        expected = rf"model\.{name} has 100000 layers, but at most \d+ are allowed"
    else:
        found = re.escape(str(value)[:200])
        expected = rf"model\.{name}={found}.*: expected .*(numbers? from 1 to \d+|at most 10 s)"
    with pytest.raises(ArtefactError, match=rf"config\.json.*(?s:.*){expected}") as caught:
        load_checkpoint(folder)
    assert len(str(caught.value)) < 1000


@pytest.mark.usefixtures("little_memory")
@pytest.mark.parametrize(
    "name", ["hidden_size", "num_hidden_layers", "intermediate_size", "conv_dim"]
)
def test_so_is_one_of_transformers(folder: Path, tmp_path: Path, name: str) -> None:
    export_huggingface(tmp_path / "theirs", load_model(folder))
    load_checkpoint(tmp_path / "theirs")
    change(tmp_path / "theirs", "", name, [2**40] * 7 if name == "conv_dim" else 2**40)
    with pytest.raises(
        ArtefactError, match=rf"config\.json.*model\.{name}=\[?1099511627776.*from 1 to \d+"
    ):
        load_checkpoint(tmp_path / "theirs")


@pytest.mark.usefixtures("little_memory")
def test_sizes_that_are_allowed_must_be_those_of_the_weights(folder: Path) -> None:
    """A network of 500 billion parameters, each size of it within the limits; then a head of as
    many clusters.
    """
    whole = (folder / "config.json").read_text()
    for name, value in (
        ("hidden_size", 32_768),
        ("intermediate_size", 262_144),
        ("num_hidden_layers", 20),
    ):
        change(folder, "model", name, value)
    with pytest.raises(ArtefactError, match=r"model\.safetensors: does not fit the network"):
        load_model(folder)
    (folder / "config.json").write_text(whole)
    change(folder, "head", "n_clusters", [2**40])
    with pytest.raises(
        ArtefactError, match=r"config\.json: does not fit the network.*1099511627776"
    ):
        load_model(folder).build_head()


@pytest.mark.usefixtures("little_memory")
def test_a_huge_config_is_not_read(folder: Path) -> None:
    with open(folder / "config.json", "ab") as file:
        file.truncate(2**40)  # a file with a hole: no disk is needed
    with pytest.raises(ArtefactError, match=r"config\.json: has 1\.1 TB, but at most"):
        load_checkpoint(folder)


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
