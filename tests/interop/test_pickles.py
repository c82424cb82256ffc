"""The restricted unpickler: no code in a file runs."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from hubert_pretrain.errors import ArtefactError
from hubert_pretrain.interop.fairseq_reader import load_fairseq
from hubert_pretrain.interop.pickles import Inert, read_pickle


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
