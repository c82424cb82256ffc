"""Checkpoints of fairseq, read without fairseq: the network computes what fairseq's computes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hubert_pretrain.interop.fairseq_dictionary import SPECIAL_SYMBOLS
from hubert_pretrain.interop.fairseq_reader import load_fairseq
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
