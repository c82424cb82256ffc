"""Attention back ends and gradient checkpointing change speed and memory, not numbers."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from hubert_pretrain.errors import ConfigError
from hubert_pretrain.model.config import HubertConfig
from hubert_pretrain.model.hubert import Hubert

POST_NORM = HubertConfig(
    conv_dim=[16] * 7,
    hidden_size=64,
    num_hidden_layers=3,
    num_attention_heads=4,
    intermediate_size=64,
    num_conv_pos_embeddings=16,
    num_conv_pos_embedding_groups=4,
    attention_dropout=0.0,
)
PRE_NORM = dataclasses.replace(POST_NORM, do_stable_layer_norm=True, feat_extract_norm="layer")
CONFIGS = pytest.mark.parametrize("config", [POST_NORM, PRE_NORM], ids=["post-norm", "pre-norm"])
UNCOMPILED = pytest.mark.filterwarnings(
    "ignore:flex_attention called without torch.compile"
)  # on purpose: it is checked, not used
VALID = torch.arange(49) < torch.tensor([[49], [30]])


def network(config: HubertConfig, attention: str = "sdpa") -> Hubert:
    torch.manual_seed(0)
    model = Hubert(config).eval()
    with torch.no_grad():
        for layer in model.context_encoder.layers:
            layer.attention.qkv.weight.mul_(10)  # attention that prefers some frames clearly
    model.attention = attention
    return model


def waveform() -> Tensor:
    return torch.randn(2, 16_000, generator=torch.Generator().manual_seed(1))


def real(state: Tensor, valid: Tensor | None) -> Tensor:
    """The real frames of a state; padded frames may hold anything."""
    return state if valid is None else state[valid]


@UNCOMPILED
@CONFIGS
@pytest.mark.parametrize("valid", [None, VALID], ids=["whole", "padded"])
@pytest.mark.parametrize("name", ["eager", "flex"])
def test_back_ends_agree(config: HubertConfig, valid: Tensor | None, name: str) -> None:
    with torch.no_grad():
        expected = network(config)(waveform(), valid=valid, hidden_states=True)
        found = network(config, name)(waveform(), valid=valid, hidden_states=True)
    for ours, theirs in zip(
        [*found.hidden_states, found.last], [*expected.hidden_states, expected.last], strict=True
    ):
        assert (real(ours, valid) - real(theirs, valid)).abs().max() < 1e-5


@CONFIGS
def test_a_mask_of_real_frames_only_is_no_mask(config: HubertConfig) -> None:
    model = network(config)
    plain = model(waveform()).last
    masked = model(waveform(), valid=torch.ones(2, 49, dtype=torch.bool)).last
    assert (plain - masked).abs().max() < 1e-5


@CONFIGS
@pytest.mark.parametrize("valid", [None, VALID], ids=["whole", "padded"])
def test_gradients_agree(config: HubertConfig, valid: Tensor | None) -> None:
    gradients = []
    for name in ("sdpa", "eager"):  # FlexAttention has no gradient on a CPU
        model = network(config, name)
        real(model(waveform(), valid=valid).last, valid).square().mean().backward()
        gradients.append(
            [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        )
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)


@CONFIGS
@pytest.mark.parametrize("valid", [None, VALID], ids=["whole", "padded"])
def test_back_ends_drop_the_same_weights_on_a_cpu(
    config: HubertConfig, valid: Tensor | None
) -> None:
    results = []
    for name in ("sdpa", "eager"):
        model = network(dataclasses.replace(config, attention_dropout=0.3), name).train()
        torch.manual_seed(2)
        last = real(model(waveform(), valid=valid).last, valid)
        last.square().mean().backward()
        gradients = [each.grad for each in model.parameters() if each.grad is not None]
        results.append([last, *gradients])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="FlexAttention is for CUDA")
@CONFIGS
def test_flex_attention_on_cuda(config: HubertConfig) -> None:
    results = []
    for name in ("sdpa", "flex"):
        model = network(config, name).cuda()
        last = model(waveform().cuda(), valid=VALID.cuda()).last[VALID]
        last.square().mean().backward()
        results.append((last, model.context_encoder.layers[0].attention.qkv.weight.grad))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


def test_attentions_are_distributions_over_the_real_frames() -> None:
    output = network(POST_NORM)(
        waveform(), valid=VALID, attentions=True, active_layers=[True, False, True]
    )
    first, dropped, last = output.attentions
    assert dropped is None
    assert first.shape == last.shape == (2, 4, 49, 49)
    assert not first[1, :, :, 30:].any()
    torch.testing.assert_close(first.sum(-1), torch.ones(2, 4, 49))
    assert network(POST_NORM)(waveform()).attentions is None


@CONFIGS
def test_recomputed_layers_have_the_same_gradients(config: HubertConfig) -> None:
    config = dataclasses.replace(
        config, hidden_dropout=0.2, attention_dropout=0.2, activation_dropout=0.2
    )
    results = []
    for gradient_checkpointing in (False, True):
        model = network(config).train()
        model.gradient_checkpointing = gradient_checkpointing
        torch.manual_seed(3)
        output = model(waveform(), active_layers=[True, False, True])
        output.last.square().mean().backward()
        results.append(
            (output.last.detach(), [p.grad for p in model.parameters() if p.grad is not None])
        )
    assert torch.equal(results[0][0], results[1][0])
    assert all(
        torch.equal(ours, theirs) for ours, theirs in zip(results[0][1], results[1][1], strict=True)
    )


def test_gradient_checkpointing_stores_less() -> None:
    numbers = []
    for gradient_checkpointing in (False, True):
        model = network(POST_NORM).train()
        sizes = []
        model.gradient_checkpointing = gradient_checkpointing
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t, sizes=sizes: (sizes.append(t.numel()), t)[1], lambda t: t
        ):
            model(waveform())
        numbers.append(sum(sizes))
    assert numbers[1] < 0.8 * numbers[0]


def test_an_unknown_back_end() -> None:
    with pytest.raises(
        ConfigError,
        match=r"attention 'eagre' does not exist .did you mean 'eager'.*choose sdpa, eager, flex",
    ):
        network(POST_NORM, "eagre")(waveform())


def test_flex_attention_has_no_dropout() -> None:
    model = network(dataclasses.replace(POST_NORM, attention_dropout=0.1), "flex").train()
    with pytest.raises(ConfigError, match=r"attention_dropout is 0.1"):
        model(waveform())
