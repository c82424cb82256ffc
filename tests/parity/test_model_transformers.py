"""Our network against `transformers` with random weights: every layer's output, with and without padding, masks and gradients."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from hubert_pretrain.export.huggingface import import_transformers
from hubert_pretrain.model.config import ACTIVATIONS, HubertConfig
from hubert_pretrain.model.heads import ClassificationHead
from hubert_pretrain.model.hubert import Hubert
from hubert_pretrain.model.naming import TRANSFORMERS, TRANSFORMERS_CLASSES, left_over, rename_in, rename_out

BASE = HubertConfig(
    conv_dim=[24, 24, 32, 32, 32, 40, 40],
    conv_gradient_scale=1.0,
    hidden_size=48,
    num_hidden_layers=4,
    num_attention_heads=4,
    intermediate_size=96,
    num_conv_pos_embeddings=16,
    num_conv_pos_embedding_groups=4,
)
# Not selu: `transformers` names it in its documentation, but its 5.x releases do not have it.
VARIANTS = {
    "base": BASE,
    "large": dataclasses.replace(BASE, feat_extract_norm="layer", do_stable_layer_norm=True, conv_bias=True),
    "pre-norm, group norm": dataclasses.replace(BASE, do_stable_layer_norm=True),
    "post-norm, layer norm": dataclasses.replace(BASE, feat_extract_norm="layer"),
    "no projection norm": dataclasses.replace(BASE, feat_proj_layer_norm=False),
    "odd positional kernel": dataclasses.replace(BASE, num_conv_pos_embeddings=15),
    "another grid": dataclasses.replace(BASE, conv_dim=[24, 32, 40], conv_kernel=[16, 5, 3], conv_stride=[8, 5, 2]),
    "other eps": dataclasses.replace(BASE, layer_norm_eps=1e-3),
    **{
        name: dataclasses.replace(BASE, hidden_act=name, feat_extract_activation=name)
        for name in ACTIVATIONS
        if name not in ("gelu", "selu")
    },
}


def pair(config: HubertConfig, architecture: str = "HubertModel", **more: Any) -> tuple[Hubert, Any]:
    """Our network and theirs with the same random weights (all of them random, norms and biases too)."""
    torch.manual_seed(1)
    shared = {
        name: value for name, value in dataclasses.asdict(config).items() if name not in ("conv_gradient_scale", "normalize_waveform")
    }
    transformers = import_transformers()
    theirs = getattr(transformers, architecture)(transformers.HubertConfig(**shared, **more)).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    encoder = getattr(theirs, "hubert", theirs)
    ours = Hubert(config).eval()
    ours.load_state_dict(rename_in(encoder.state_dict(), ours.state_dict(), TRANSFORMERS, "transformers"))
    assert left_over(encoder.state_dict(), ours.state_dict(), TRANSFORMERS) == []
    return ours, theirs


def layer_outputs(theirs: Any, *args: Any, **kwargs: Any) -> tuple[list[Tensor], Tensor]:
    """Output of each of their layers by hooks (`hidden_states[-1]` means another thing in 4.57 than in 5.x), and the last hidden state."""
    states: list[Tensor] = []
    hooks = [
        layer.register_forward_hook(lambda _, __, output: states.append(output[0] if isinstance(output, tuple) else output))
        for layer in theirs.encoder.layers
    ]
    last = theirs(*args, **kwargs).last_hidden_state
    for hook in hooks:
        hook.remove()
    return states, last


def assert_equal(ours: list[Tensor], theirs: list[Tensor]) -> None:
    assert len(ours) == len(theirs)
    differences = [float((a - b).abs().max()) for a, b in zip(ours, theirs, strict=True)]
    assert max(differences) < 1e-5, differences


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("padded", [False, True], ids=["whole", "padded"])
def test_hidden_states_of_every_layer(name: str, padded: bool) -> None:
    config = VARIANTS[name]
    ours, theirs = pair(config)
    lengths = torch.tensor([16_000, 9_321 if padded else 16_000])
    waveform = torch.randn(2, 16_000) * (torch.arange(16_000) < lengths[:, None])
    frames = config.grid.num_frames(16_000)
    valid = torch.arange(frames) < config.grid.num_frames(lengths)[:, None] if padded else None
    attention_mask = (torch.arange(16_000) < lengths[:, None]).long() if padded else None
    with torch.no_grad():
        output = ours(waveform, valid=valid, hidden_states=True)
        states, last = layer_outputs(theirs, waveform, attention_mask=attention_mask)
    assert_equal([*output.hidden_states, output.last], [*states, last])


@pytest.mark.parametrize("name", ["base", "large"])
def test_span_mask(name: str) -> None:
    ours, theirs = pair(VARIANTS[name])
    waveform, mask = torch.randn(2, 16_000), torch.rand(2, 49) < 0.5
    with torch.no_grad():
        output = ours(waveform, mask=mask, hidden_states=True)
        states, last = layer_outputs(theirs, waveform, mask_time_indices=mask)
    assert_equal([*output.hidden_states, output.last], [*states, last])


@pytest.mark.parametrize("name", ["base", "large"])
def test_gradient_of_every_weight(name: str) -> None:
    ours, theirs = pair(VARIANTS[name])
    waveform, direction = torch.randn(2, 16_000), torch.randn(2, 49, BASE.hidden_size)
    mask = torch.rand(2, 49) < 0.5
    (ours(waveform, mask=mask).last * direction).mean().backward()
    (theirs(waveform, mask_time_indices=mask).last_hidden_state * direction).mean().backward()
    found = rename_out({key: parameter.grad for key, parameter in ours.named_parameters()}, TRANSFORMERS)
    expected = {key: parameter.grad for key, parameter in theirs.named_parameters()}
    assert found.keys() == expected.keys()
    for key, gradient in expected.items():
        torch.testing.assert_close(found[key], gradient, rtol=1e-3, atol=1e-7, msg=lambda text, key=key: f"{key}: {text}")


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", ["base", "large"])
def test_classifier_with_padding(name: str, weighted: bool) -> None:
    config = VARIANTS[name]
    more = {"classifier_proj_size": 20, "num_labels": 5, "use_weighted_layer_sum": weighted}
    ours, theirs = pair(config, "HubertForSequenceClassification", **more)
    head = ClassificationHead(config.hidden_size, 5, 20, n_layers=config.num_hidden_layers, weighted_layers=weighted)
    head.load_state_dict(rename_in(theirs.state_dict(), head.state_dict(), TRANSFORMERS_CLASSES, "transformers"))
    lengths = torch.tensor([16_000, 11_000])
    waveform = torch.randn(2, 16_000) * (torch.arange(16_000) < lengths[:, None])
    valid = torch.arange(49) < config.grid.num_frames(lengths)[:, None]
    with torch.no_grad():
        logits = head(ours(waveform, valid=valid, hidden_states=True), valid)
        expected = theirs(waveform, attention_mask=(torch.arange(16_000) < lengths[:, None]).long()).logits
    assert (logits - expected).abs().max() < 1e-5
