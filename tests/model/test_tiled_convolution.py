"""A convolution and what comes before it, tile by tile, against PyTorch's operations one after the
other.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from hubert_pretrain.model import tiled_convolution
from hubert_pretrain.model.config import HubertConfig
from hubert_pretrain.model.conv_encoder import ConvEncoder, TimeNorm
from hubert_pretrain.model.tiled_convolution import Before, convolve_after


@pytest.fixture(autouse=True, params=[1 << 12, 1 << 22], ids=["many tiles", "one tile"])
def tile_bytes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(tiled_convolution, "TILE_BYTES", request.param)
    return int(request.param)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(
        *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    ).requires_grad_()


def by_conv1d(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int) -> Tensor:
    return F.conv1d(x.transpose(1, 2), weight, bias, stride).transpose(1, 2)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    extra=st.integers(0, 40),
    kernel=st.integers(1, 10),
    stride=st.integers(1, 6),
    channels=st.sampled_from([1, 3, 40]),
    biased=st.booleans(),
)
def test_equal_to_a_convolution_for_any_length_kernel_and_stride(
    extra: int, kernel: int, stride: int, channels: int, biased: bool
) -> None:
    x = random(2, kernel + extra, channels)
    weight = random(5, channels, kernel, seed=1)
    bias = random(5, seed=2) if biased else None
    found = convolve_after(Before(torch.tanh), x, weight, bias, stride)
    expected = by_conv1d(torch.tanh(x), weight, bias, stride)
    torch.testing.assert_close(found, expected)
    wanted = [tensor for tensor in (x, weight, bias) if tensor is not None]
    direction = random(*found.shape, seed=3).detach()
    for ours, theirs in zip(
        torch.autograd.grad(found, wanted, direction),
        torch.autograd.grad(expected, wanted, direction),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)
    with torch.no_grad():
        assert torch.equal(convolve_after(Before(torch.tanh), x, weight, bias, stride), found)


def test_what_comes_before_is_computed_again_with_its_weights(tile_bytes: int) -> None:
    x = random(2, 21, 40)
    weight = random(6, 40, 3, seed=1)
    scale = random(40, seed=2)
    shift = random(40, seed=3)
    calls = []

    def before(y: Tensor, *parameters: Tensor) -> Tensor:
        calls.append(torch.is_grad_enabled())
        return F.gelu(F.layer_norm(y, (40,), *parameters))

    found = convolve_after(Before(before, (scale, shift)), x, weight, None, 2)
    expected = by_conv1d(F.gelu(F.layer_norm(x, (40,), scale, shift)), weight, None, 2)
    wanted = (x, weight, scale, shift)
    for ours, theirs in zip(
        torch.autograd.grad(found.sum(), wanted),
        torch.autograd.grad(expected.sum(), wanted),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)
    tiles = 1 if tile_bytes > x.nbytes else 2 * 2  # of 6 and 4 of the 10 frames of each row
    assert calls == tiles * [False] + tiles * [True]


@pytest.mark.parametrize("frozen", ["x", "weight", "before"])
def test_no_gradient_is_made_that_nobody_asked_for(frozen: str) -> None:
    tensors = {
        "x": random(2, 21, 40),
        "weight": random(6, 40, 3, seed=1),
        "before": random(40, seed=2),
    }
    tensors[frozen].requires_grad_(False)
    before = Before(lambda y, scale: y * scale, (tensors["before"],))
    convolve_after(before, tensors["x"], tensors["weight"], None, 2).sum().backward()
    assert {name for name, tensor in tensors.items() if tensor.grad is None} == {frozen}


def test_bfloat16_under_autocast_as_a_convolution_has_it() -> None:
    x, weight, bias = (
        tensor.float().detach().requires_grad_()
        for tensor in (random(2, 41, 40), random(6, 40, 3, seed=1), random(6, seed=2))
    )
    with torch.autocast("cpu", torch.bfloat16):
        found = convolve_after(Before(F.gelu), x, weight, bias, 2)
        expected = by_conv1d(F.gelu(x), weight, bias, 2)
    assert found.dtype == expected.dtype == torch.bfloat16
    torch.testing.assert_close(found, expected, atol=0.2, rtol=0.02)
    wanted = (x, weight, bias)
    direction = torch.ones_like(found)
    for ours, theirs in zip(
        torch.autograd.grad(found, wanted, direction),
        torch.autograd.grad(expected, wanted, direction),
        strict=True,
    ):
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours, theirs, atol=0.5, rtol=0.05)


@pytest.mark.parametrize(
    "changes", [{}, {"feat_extract_norm": "layer", "conv_bias": True}], ids=["group", "layer"]
)
def test_the_conv_encoder_and_its_gradients_are_those_of_pytorchs_operations(
    changes: dict[str, Any],
) -> None:
    torch.manual_seed(0)
    encoder = ConvEncoder(HubertConfig(conv_dim=[24] * 7, **changes))
    waveform = torch.randn(3, 4_000, requires_grad=True)
    x = waveform[:, None]
    for layer in encoder.layers:
        x = layer(x)
    expected = x.transpose(1, 2)
    wanted = [waveform, *encoder.parameters()]
    found = encoder(waveform)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    direction = torch.randn_like(found)
    for ours, theirs in zip(
        torch.autograd.grad(found, wanted, direction),
        torch.autograd.grad(expected, wanted, direction),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, atol=2e-5 * float(theirs.abs().max()), rtol=0)


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    samples=st.integers(15, 1200), offset=st.floats(-3, 3)
)  # 15: two windows, as one has no variance and rounding is all there is
def test_a_norm_over_time_folded_into_its_convolution(samples: int, offset: float) -> None:
    norm = TimeNorm(7).double()
    kernel = random(7, 1, 10, seed=1)
    x = random(2, samples, 1)
    with torch.no_grad():
        norm.weight.copy_(random(7, seed=2).detach())
        norm.bias.copy_(random(7, seed=3).detach())
        x += offset
    folded = norm.folded_into(kernel.float(), x.float(), 5)  # (B, C, k + 1)
    found = torch.bmm(F.pad(x.float().unfold(1, 10, 5).flatten(2), (0, 1), value=1.0), folded.mT)
    expected = F.group_norm(
        F.conv1d(x.transpose(1, 2), kernel, stride=5), 7, norm.weight, norm.bias
    ).transpose(1, 2)
    torch.testing.assert_close(found, expected.float(), atol=2e-4, rtol=1e-4)
    direction = torch.linspace(-1, 1, found.numel()).view(found.shape)
    wanted = (kernel, norm.weight, norm.bias)
    for ours, theirs in zip(
        torch.autograd.grad(found, wanted, direction),
        torch.autograd.grad(expected, wanted, direction.double()),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs.to(ours.dtype), atol=3e-3, rtol=3e-3)
