"""Our loss function against what fairseq's own criterion computed (reference/README.md)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hubert_pretrain.interop.load import load_checkpoint
from hubert_pretrain.interop.tensor_names import FAIRSEQ_HEAD, fairseq_key_map, to_theirs
from hubert_pretrain.model.heads import CodebookHead
from hubert_pretrain.pretrain.loss import LossWeights, SupervisedLayer, masked_prediction_loss

SPECIAL_SYMBOLS = (
    4  # rows that fairseq's dictionary puts before the clusters; its softmax runs over them too
)


@pytest.mark.parametrize("name", ["base", "large"])
def test_loss_parts_and_every_gradient(name: str, fairseq_outputs: Path) -> None:
    folder = fairseq_outputs
    tensors = load_file(folder / f"{name}.safetensors")
    facts = json.loads((folder / f"{name}.json").read_text())
    model = load_checkpoint(folder / f"{name}_checkpoint.pt").model.train()
    units = tensors["model.label_embs_concat"]
    head = CodebookHead(model.config.hidden_size, units.shape[1], len(units))
    weight = tensors["model.final_proj.weight"]
    bias = tensors["model.final_proj.bias"]
    head.load_state_dict(
        {"unit_embeddings": units, "projection.weight": weight, "projection.bias": bias}
    )
    output = model(tensors["waveform"], mask=tensors["mask"])
    result = masked_prediction_loss(
        [SupervisedLayer(head, output.last)],
        tensors["target"] + SPECIAL_SYMBOLS,
        tensors["mask"],
        output.feature_penalty,
        n_clusters=head.n_clusters,
        masked_frames=int(tensors["mask"].sum()),
        normaliser=facts["sample_size"],
        weights=LossWeights(
            masked=facts["weights"]["masked"],
            unmasked=facts["weights"]["unmasked"],
            feature_penalty=facts["weights"]["feature_penalty"],
        ),
    )
    assert result.loss.item() * facts["sample_size"] == pytest.approx(
        facts["log"]["loss"], rel=1e-4
    )
    assert result.masked.nll.item() == pytest.approx(facts["log"]["loss_m_0"], rel=1e-4)
    assert result.unmasked is not None
    assert result.unmasked.nll.item() == pytest.approx(facts["log"]["loss_u_0"], rel=1e-4)

    result.loss.backward()
    ours = {}
    for module, rules in (
        (model, fairseq_key_map(model.config.feat_extract_norm)),
        (head, FAIRSEQ_HEAD),
    ):
        ours |= to_theirs(
            {key: value.grad for key, value in module.named_parameters() if value.grad is not None},
            rules,
        )
    theirs = {
        key.removeprefix("grad."): value
        for key, value in tensors.items()
        if key.startswith("grad.")
    }
    assert ours.keys() == theirs.keys()
    largest = max(float(value.norm()) for value in theirs.values())
    for key, expected in theirs.items():
        if key.endswith("k_proj.bias"):  # softmax ignores it: its gradient is 0 but for rounding
            assert ours[key].abs().max() < 1e-6 * largest, key
        else:
            assert torch.linalg.vector_norm(ours[key] - expected) < 1e-4 * expected.norm(), key
