"""The reader of fairseq's checkpoints: truncated files, other kinds, and conv_feature_layers.
(tests/parity/ compares the networks that it reads with fairseq's.)
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from hubert_pretrain.errors import ArtefactError
from hubert_pretrain.interop.fairseq_reader import conv_layers, load_fairseq


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
