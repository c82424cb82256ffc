"""`hubert-pretrain score-layers` on a tiny random checkpoint and tones."""

from __future__ import annotations

import json

import pytest
import torch
from hubert_pretrain.tools.score_layers import main

from hubert_pretrain.model.checkpoint import save_model
from hubert_pretrain.model.config import HubertConfig
from hubert_pretrain.model.hubert import Hubert
from tests.clustering.conftest import make_corpus


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    folder = tmp_path_factory.mktemp("tool")
    make_corpus(folder / "corpus")
    torch.manual_seed(0)
    sizes = {
        "conv_dim": [8] * 7,
        "hidden_size": 16,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "intermediate_size": 32,
    }
    (folder / "checkpoint").mkdir()
    save_model(
        folder / "checkpoint",
        Hubert(HubertConfig(**sizes, num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=4)),
    )  # type: ignore[arg-type]
    return str(folder / "checkpoint"), str(folder / "corpus")


def test_a_table_and_json(inputs: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint, corpus = inputs
    assert main([checkpoint, "--corpus", corpus, "--n-clusters", "8", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [score["layer"] for score in found["scores"]] == [1, 2, 3]
    assert found["best"] == max(found["scores"], key=lambda score: score["pnmi"])["layer"]
    assert main([checkpoint, "--corpus", corpus, "--n-clusters", "8"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == [
        "layer",
        "pnmi",
        "phone_purity",
        "cluster_purity",
        "abx",
        "stability",
        "speaker_nmi",
        "perplexity",
    ]
    assert lines[-1] == f"best by pnmi on 8 utterances of valid: layer {found['best']}"


def test_a_criterion_that_does_not_exist(
    inputs: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([inputs[0], "--corpus", inputs[1], "--criterion", "pmni"]) == 2
    assert "did you mean 'pnmi'?" in capsys.readouterr().err
