"""Our network and loss against what fairseq's own HuBERT computed (reference/README.md)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from hubert_pretrain.interop.fairseq_reader import conv_layers
from hubert_pretrain.interop.tensor_names import (
    FAIRSEQ_HEAD,
    fairseq_key_map,
    left_over,
    to_ours,
    to_theirs,
)
from hubert_pretrain.model.config import HubertConfig
from hubert_pretrain.model.heads import CodebookHead
from hubert_pretrain.model.hubert import Hubert

SPECIAL_SYMBOLS = 4  # rows that fairseq's dictionary puts before the clusters


def config_of(theirs: dict[str, Any]) -> HubertConfig:
    layers = conv_layers(theirs["conv_feature_layers"], Path("config"))
    return HubertConfig(
        conv_dim=[layer[0] for layer in layers],
        conv_kernel=[layer[1] for layer in layers],
        conv_stride=[layer[2] for layer in layers],
        conv_bias=theirs["conv_bias"],
        feat_extract_norm="layer" if theirs["extractor_mode"] == "layer_norm" else "group",
        conv_gradient_scale=theirs["feature_grad_mult"],
        feat_proj_dropout=theirs["dropout_input"],
        hidden_size=theirs["encoder_embed_dim"],
        num_hidden_layers=theirs["encoder_layers"],
        num_attention_heads=theirs["encoder_attention_heads"],
        intermediate_size=theirs["encoder_ffn_embed_dim"],
        hidden_dropout=theirs["dropout"],
        attention_dropout=theirs["attention_dropout"],
        layerdrop=theirs["encoder_layerdrop"],
        do_stable_layer_norm=theirs["layer_norm_first"],
        num_conv_pos_embeddings=theirs["conv_pos"],
        num_conv_pos_embedding_groups=theirs["conv_pos_groups"],
        projection_size=theirs["final_dim"],
    )


class Reference:
    """Fairseq's outputs, and our network with fairseq's weights."""

    def __init__(self, folder: Path, name: str) -> None:
        self.tensors = load_file(folder / f"{name}.safetensors")
        self.facts = json.loads((folder / f"{name}.json").read_text())
        config = config_of(self.facts["config"])
        self.model = Hubert(config)
        weights = {
            key.removeprefix("model."): value
            for key, value in self.tensors.items()
            if key.startswith("model.")
        }
        self.head = CodebookHead(
            config.hidden_size,
            config.projection_size,
            weights["label_embs_concat"].shape[0],
            temperature=0.1,
        )
        self.rules = fairseq_key_map(config.feat_extract_norm)
        self.model.load_state_dict(to_ours(weights, self.model.state_dict(), self.rules, name))
        self.head.load_state_dict(to_ours(weights, self.head.state_dict(), FAIRSEQ_HEAD, name))
        unused = set(left_over(weights, self.model.state_dict(), self.rules))
        assert unused == {"final_proj.weight", "final_proj.bias", "label_embs_concat"}


@pytest.fixture(params=["base", "large"])
def reference(request: pytest.FixtureRequest, fairseq_outputs: Path) -> Reference:
    return Reference(fairseq_outputs, request.param)


def test_hidden_states_of_every_layer(reference: Reference) -> None:
    with torch.no_grad():
        states = reference.model.eval()(
            reference.tensors["waveform"], hidden_states=True
        ).hidden_states
    for layer, state in enumerate(states, start=1):
        assert (state - reference.tensors[f"hidden.{layer}"]).abs().max() < 1e-5, layer


def test_asking_for_a_layer_runs_only_the_layers_before(reference: Reference) -> None:
    ran = []
    reference.model.context_encoder.layers[2].register_forward_hook(lambda *_: ran.append(3))
    output = reference.model.eval()(reference.tensors["waveform"], layers=2)
    torch.testing.assert_close(output.last, reference.tensors["hidden.2"], atol=1e-5, rtol=0)
    assert not ran


def loss_parts(reference: Reference) -> dict[str, torch.Tensor]:
    """fairseq's loss: sums over frames, and the feature penalty times the masked frames."""
    mask = reference.tensors["mask"]
    target = reference.tensors["target"] + SPECIAL_SYMBOLS
    output = reference.model.train()(reference.tensors["waveform"], mask=mask)
    logits = reference.head(output.last)
    weights = reference.facts["weights"]
    frames = reference.facts["sample_size"]
    masked = F.cross_entropy(logits[mask], target[mask], reduction="sum")
    unmasked = F.cross_entropy(logits[~mask], target[~mask], reduction="sum")
    penalty = weights["feature_penalty"] * output.feature_penalty * frames
    total = weights["masked"] * masked + weights["unmasked"] * unmasked + penalty
    return {"loss": total, "loss_m_0": masked, "loss_u_0": unmasked, "loss_features_pen": penalty}


def test_loss_and_its_parts(reference: Reference) -> None:
    for name, value in loss_parts(reference).items():
        assert value.item() == pytest.approx(reference.facts["log"][name], rel=1e-4), name


def test_gradient_of_every_parameter(reference: Reference) -> None:
    (loss_parts(reference)["loss"] / reference.facts["sample_size"]).backward()
    ours = {}
    for module, rules in ((reference.model, reference.rules), (reference.head, FAIRSEQ_HEAD)):
        ours |= to_theirs(
            {name: parameter.grad for name, parameter in module.named_parameters()}, rules
        )
    theirs = {
        name.removeprefix("grad."): value
        for name, value in reference.tensors.items()
        if name.startswith("grad.")
    }
    assert ours.keys() == theirs.keys()
    largest = max(float(value.norm()) for value in theirs.values())
    for name, expected in theirs.items():
        if name.endswith("k_proj.bias"):  # softmax ignores it: its gradient is 0 but for rounding
            assert ours[name].abs().max() < 1e-6 * largest, name
        else:
            assert (ours[name] - expected).norm() < 1e-4 * expected.norm(), name
