"""Checkpoints of fairseq, read without fairseq; hostile and damaged files."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from hubert_pretrain.errors import ArtefactError
from hubert_pretrain.interop.fairseq_dictionary import SPECIAL_SYMBOLS
from hubert_pretrain.interop.fairseq_reader import conv_layers, load_fairseq
from hubert_pretrain.interop.pickles import Inert, read_pickle
from hubert_pretrain.model.checkpoint import load_model, save_model


@pytest.mark.parametrize("name", ["base", "large"])
def test_the_file_gives_the_network_that_wrote_it(
    fairseq_outputs: Path, tmp_path: Path, name: str
) -> None:
    reference = load_file(fairseq_outputs / f"{name}.safetensors")
    loaded = load_fairseq(fairseq_outputs / f"{name}_checkpoint.pt")
    with torch.no_grad():
        states = loaded.model(reference["waveform"], hidden_states=True).hidden_states
    for layer, state in enumerate(states, start=1):
        assert (state - reference[f"hidden.{layer}"]).abs().max() < 1e-5, layer
    embeddings = reference["model.label_embs_concat"]
    assert torch.equal(loaded.head_state["unit_embeddings"], embeddings[SPECIAL_SYMBOLS:])
    assert torch.equal(
        torch.tensor(loaded.extra["fairseq"]["special_embeddings"]), embeddings[:SPECIAL_SYMBOLS]
    )
    save_model(tmp_path, loaded.model, head=loaded.build_head(), extra=loaded.extra)
    again = load_model(tmp_path)
    assert again.model.config == loaded.model.config
    assert again.extra == loaded.extra


class Bomb:
    """Creates a file when it is unpickled without protection."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("new_format", [True, False])
def test_nothing_in_a_pickle_runs(tmp_path: Path, new_format: bool) -> None:
    sentinel = tmp_path / "sentinel"
    bomb = {
        "model": {"label_embs_concat": Bomb(sentinel), "final_proj.weight": torch.zeros(1, 1)},
        "x": torch.arange(3),
        "cfg": Bomb(sentinel),
    }
    torch.save(bomb, tmp_path / "bomb.pt", _use_new_zipfile_serialization=new_format)
    content = read_pickle(tmp_path / "bomb.pt")
    assert isinstance(content["cfg"], Inert)
    assert torch.equal(content["x"], torch.arange(3))
    with pytest.raises(ArtefactError, match=r"bomb\.pt"):
        load_fairseq(tmp_path / "bomb.pt")
    assert not sentinel.exists()


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_truncated_file(fairseq_outputs: Path, tmp_path: Path, share: float) -> None:
    content = (fairseq_outputs / "base_checkpoint.pt").read_bytes()
    (tmp_path / "cut.pt").write_bytes(content[: int(len(content) * share)])
    with pytest.raises(ArtefactError, match=r"cut\.pt: cannot be read as a PyTorch checkpoint"):
        load_fairseq(tmp_path / "cut.pt")


def test_another_kind_of_checkpoint(tmp_path: Path) -> None:
    torch.save({"model": {"encoder.weight": torch.zeros(1)}}, tmp_path / "other.pt")
    with pytest.raises(
        ArtefactError, match=r"other\.pt: not a fairseq HuBERT .* \(found encoder.weight\)"
    ):
        load_fairseq(tmp_path / "other.pt")


def test_conv_layers_are_read_and_not_run(tmp_path: Path) -> None:
    assert conv_layers("[(512,10,5)] + [(512,3,2)] * 2", tmp_path) == [
        (512, 10, 5),
        (512, 3, 2),
        (512, 3, 2),
    ]
    for expression in ("__import__('os').getcwd()", "[(1, 2)]", "[("):
        with pytest.raises(ArtefactError, match="conv_feature_layers"):
            conv_layers(expression, tmp_path)
