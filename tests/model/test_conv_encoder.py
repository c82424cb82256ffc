"""The conv encoder: its gradients, what it keeps for them, and what a compiler makes of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from hubert_pretrain.model import conv_encoder
from hubert_pretrain.model.config import HubertConfig
from hubert_pretrain.model.conv_encoder import ConvEncoder, TimeNorm, convolve, scale_gradient
from hubert_pretrain.model.positional_conv import BatchNormPositionalConv, PositionalConv

LAYER_NORM = {"feat_extract_norm": "layer", "conv_bias": True}
VARIANTS = pytest.mark.parametrize("changes", [{}, LAYER_NORM], ids=["group", "layer"])
FORMATS = pytest.mark.parametrize("channels_last", [False, True])
DEVICES = pytest.mark.parametrize(
    "device",
    [
        "cpu",
        pytest.param(
            "cuda",
            marks=[
                pytest.mark.gpu,
                pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU"),
            ],
        ),
    ],
)


class Convolutions(TorchDispatchMode):
    """Records the dtype and the memory format of every convolution's input."""

    def __init__(self) -> None:
        super().__init__()
        self.dtypes: list[torch.dtype] = []
        self.channels_last: list[bool] = []
        self.forward = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        name = function.overloadpacket.__name__
        if name in ("convolution", "convolution_backward"):
            x = args[name == "convolution_backward"]
            self.dtypes.append(x.dtype)
            self.channels_last.append(x.ndim == 4 and x.stride(1) == 1)
            self.forward += name == "convolution"
        return function(*args, **(kwargs or {}))


def encoder(channels: int = 24, **changes: Any) -> ConvEncoder:
    torch.manual_seed(0)
    return ConvEncoder(HubertConfig(conv_dim=[channels] * 7, **changes))


def one_by_one(encoder: ConvEncoder, waveform: Tensor) -> Tensor:
    """PyTorch's modules in a row, as in other implementations."""
    x = waveform[:, None]
    for layer in encoder.layers:
        x = layer.conv(x)
        if isinstance(layer.norm, nn.LayerNorm):
            x = nn.LayerNorm.forward(layer.norm, x.transpose(1, 2)).transpose(1, 2)
        elif layer.norm is not None:
            x = nn.GroupNorm.forward(layer.norm, x)
        x = layer.activation(x)
    return x.transpose(1, 2)


@VARIANTS
@FORMATS
@pytest.mark.parametrize("gradient_checkpointing", [False, True])
def test_equal_to_pytorchs_modules_in_a_row(
    changes: dict[str, Any],
    channels_last: bool,
    gradient_checkpointing: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(conv_encoder, "prefers_channels_last", lambda x, groups=1: channels_last)
    module = encoder(**changes)
    waveform = torch.randn(3, 4_000, requires_grad=True)
    expected = one_by_one(module, waveform)
    found = module(waveform, gradient_checkpointing=gradient_checkpointing)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    inputs = [waveform, *module.parameters()]
    direction = torch.randn_like(found)
    ours = torch.autograd.grad(found, inputs, direction)
    theirs = torch.autograd.grad(expected, inputs, direction)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=2e-5 * float(b.abs().max()), rtol=0)


@pytest.mark.parametrize("lengths", [None, torch.tensor([4_000, 3_000, 2_000])])
def test_rows_in_chunks_are_the_rows_of_a_batch(
    lengths: Tensor | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = encoder()
    waveform = torch.randn(3, 4_000)
    results = []
    for rows in (3, 2, 1):
        monkeypatch.setattr(conv_encoder, "CHUNK_BYTES", rows * 4 * 24 * 4_000 // 5)
        assert module.rows_per_chunk(waveform) == rows
        module.zero_grad()
        frames = module(waveform, lengths)
        frames.square().sum().backward()
        gradients = [parameter.grad for parameter in module.parameters()]
        results.append([frames.detach(), *gradients])
    for other in results[1:]:
        for a, b in zip(other, results[0], strict=True):
            torch.testing.assert_close(a, b, atol=1e-5 * float(b.abs().max()), rtol=1e-4)


@VARIANTS
def test_without_gradients_every_bit_is_that_of_pytorchs_modules(changes: dict[str, Any]) -> None:
    module = encoder(**changes)
    waveform = torch.randn(2, 4_000)
    with torch.no_grad():
        assert torch.equal(module(waveform), one_by_one(module, waveform))


@settings(max_examples=40)
@given(
    extra=st.integers(0, 40),
    kernel=st.integers(1, 10),
    stride=st.integers(1, 6),
    channels=st.sampled_from([1, 3, 40]),
    groups=st.sampled_from([1, 5]),
    biased=st.booleans(),
)
def test_convolve_is_conv1d_in_both_memory_formats(
    extra: int, kernel: int, stride: int, channels: int, groups: int, biased: bool
) -> None:
    x = torch.randn(2, channels * groups, kernel + extra, dtype=torch.float64)
    weight = torch.randn(5, channels, kernel, dtype=torch.float64)
    bias = torch.randn(5, dtype=torch.float64) if biased else None
    expected = F.conv1d(x, weight, bias, stride, padding=kernel // 2, groups=groups)
    for channels_last in (False, True):
        with pytest.MonkeyPatch.context() as patch:
            rule = lambda x, groups, answer=channels_last: answer  # noqa: E731
            patch.setattr(conv_encoder, "prefers_channels_last", rule)
            found = convolve(x, weight, bias, stride=stride, padding=kernel // 2, groups=groups)
        torch.testing.assert_close(found, expected)


@settings(max_examples=20)
@given(samples=st.integers(15, 1200), offset=st.floats(-3, 3))  # one window has no variance
def test_a_norm_over_time_folded_into_its_convolution(samples: int, offset: float) -> None:
    generator = torch.Generator().manual_seed(1)
    conv = nn.Conv1d(1, 7, 10, stride=5, bias=False)
    norm = TimeNorm(7)
    with torch.no_grad():
        for parameter in (conv.weight, norm.weight, norm.bias):
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    x = torch.randn(2, 1, samples, generator=generator) + offset
    parameters = [conv.weight, norm.weight, norm.bias]
    found = norm.of_convolution(x, conv)
    exact = [parameter.detach().double().requires_grad_() for parameter in parameters]
    y = F.conv1d(x.double(), exact[0], stride=5)
    expected = F.group_norm(y, 7, exact[1], exact[2])
    torch.testing.assert_close(found, expected.float(), atol=2e-4, rtol=1e-4)
    direction = torch.linspace(-1, 1, found.numel()).view(found.shape)
    ours = torch.autograd.grad(found, parameters, direction)
    theirs = torch.autograd.grad(expected, exact, direction.double())
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b.float(), atol=3e-3, rtol=3e-3)


# -- gradients in bf16


@DEVICES
@pytest.mark.parametrize("channels", [64, 144], ids=["channels last", "channels first"])
@pytest.mark.parametrize("rows", [5, 43, 128])
def test_weight_gradients_in_bf16_are_sums_in_fp32(
    rows: int, channels: int, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every convolution's, given the bf16 frames and gradients that it saw, against fp64."""
    module = encoder(channels, **LAYER_NORM).to(device)
    seen: list[tuple[Tensor, Tensor, list[Tensor]]] = []
    plain = conv_encoder.convolve

    def recorded(x: Tensor, weight: Tensor, bias: Tensor | None, **options: Any) -> Tensor:
        y = plain(x, weight, bias, **options)
        gradients: list[Tensor] = []
        if y.requires_grad:
            y.register_hook(gradients.append)
        seen.append((x.detach(), weight, gradients))
        return y

    monkeypatch.setattr(conv_encoder, "convolve", recorded)
    torch.manual_seed(1)
    waveform = torch.randn(rows, 1_200, device=device)
    with torch.autocast(device, torch.bfloat16):
        frames = module(waveform)
    # A gradient with a mean, as sums over rows then grow and rounding them shows.
    frames.backward((torch.randn(frames.shape, device=device) + 0.5).to(frames.dtype))
    checked = 0
    for x, weight, gradients in seen:
        if not gradients or x.shape[1] == 1:
            continue
        assert gradients[0].dtype == torch.bfloat16
        windows = x.bfloat16().double().cpu().unfold(2, weight.shape[2], 2)  # (B, C, U, k)
        exact = torch.einsum("bcuk,bou->ock", windows, gradients[0].double().cpu())
        assert weight.grad is not None
        error = (weight.grad.double().cpu() - exact).norm() / exact.norm()
        assert error < 2e-3, (tuple(weight.shape), float(error))
        checked += 1
    assert checked == 6


@VARIANTS
def test_no_convolution_is_computed_in_bf16_on_a_cpu(changes: dict[str, Any]) -> None:
    """CPUs with AMX and CPUs without bf16 each have one that is wrong or inexact."""
    module = encoder(**changes)
    with Convolutions() as seen, torch.autocast("cpu", torch.bfloat16):
        frames = module(torch.randn(2, 4_000))
        frames.float().sum().backward()
    assert frames.dtype == torch.bfloat16
    assert seen.dtypes
    assert set(seen.dtypes) == {torch.float32}


@pytest.mark.parametrize("positions", [PositionalConv, BatchNormPositionalConv])
@pytest.mark.parametrize("whole", [False, True], ids=["autocast", "bf16 weights"])
def test_positions_in_bf16_on_a_cpu_are_those_of_fp32(
    positions: Callable[[HubertConfig], nn.Module], whole: bool
) -> None:
    """Eight channels a group and an even kernel: conv1d in bf16 is wrong for them with AMX."""
    torch.manual_seed(0)
    config = HubertConfig(
        hidden_size=32,
        num_attention_heads=4,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=4,
    )
    module = positions(config).eval()
    x = torch.randn(2, 49, 32)
    if whole:
        module = module.bfloat16()
        x = x.bfloat16()
        expected = positions(config).eval()
        expected.load_state_dict(module.state_dict())
        exact = expected(x.float())
    else:
        exact = module(x)
    with Convolutions() as seen, torch.autocast("cpu", torch.bfloat16, enabled=not whole):
        found = module(x)
        found.float().sum().backward()
    assert found.dtype == torch.bfloat16
    assert seen.dtypes
    assert set(seen.dtypes) == {torch.float32}
    # The result is rounded before and after the activation; with AMX's error it is off by 1.
    tolerance = {"atol": 0.02, "rtol": 0.02} if not whole else {"atol": 0.05, "rtol": 0.05}
    torch.testing.assert_close(found.float(), exact, **tolerance)


# -- memory and compilation


@pytest.mark.parametrize("gradient_checkpointing", [False, True])
def test_gradient_checkpointing_repeats_no_convolution(gradient_checkpointing: bool) -> None:
    module = encoder(**LAYER_NORM)
    with Convolutions() as seen:
        module(
            torch.randn(2, 4_000), gradient_checkpointing=gradient_checkpointing
        ).sum().backward()
    assert seen.forward == 7 + 1  # the first layer's again
    assert len(seen.dtypes) == 7 + 1 + 7


@VARIANTS
def test_memory_for_the_backward_pass(changes: dict[str, Any]) -> None:
    waveform = torch.randn(2, 16_000)
    stored = []
    for gradient_checkpointing in (False, True):
        module = encoder(**changes)
        storages: dict[int, int] = {}

        def pack(x: Tensor, storages: dict[int, int] = storages) -> Tensor:
            storages[x.untyped_storage().data_ptr()] = x.numel()
            return x

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            module(waveform, gradient_checkpointing=gradient_checkpointing)
        stored.append(sum(storages.values()))
    first = 2 * 24 * 3_199  # numbers that leave the first layer's convolution: not stored
    assert stored[1] < 1.3 * first  # 1/2 + 1/4 + ..., and weights
    assert stored[1] < stored[0] < 2.4 * first  # everything would be more than 4


@VARIANTS
@pytest.mark.parametrize("gradient_checkpointing", [False, True])
@pytest.mark.parametrize("channels", [24, 136], ids=["channels last", "channels first"])
def test_a_compiler_sees_one_graph(
    changes: dict[str, Any], gradient_checkpointing: bool, channels: int
) -> None:
    torch._dynamo.reset()
    module = encoder(channels, **changes)
    waveform = torch.randn(2, 4_000)
    compiled = torch.compile(module.forward, fullgraph=True, backend="aot_eager", dynamic=False)
    direction = torch.randn_like(module(waveform).detach())
    gradients = []
    for function in (module, compiled):
        module.zero_grad()
        y = function(waveform, gradient_checkpointing=gradient_checkpointing)
        y.backward(direction)
        gradients.append([y.detach(), *(parameter.grad for parameter in module.parameters())])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4 * float(b.abs().max()), rtol=0)
    assert torch._dynamo.explain(module)(waveform).graph_break_count == 0


# -- the scaled gradient


def test_a_scaled_gradient_changes_no_bit_of_its_input() -> None:
    x = torch.randn(1000, requires_grad=True)
    y = scale_gradient(x, 0.1)
    assert torch.equal(y, x)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    assert torch.equal(gradient, torch.full_like(x, 0.1))
    assert scale_gradient(x, 1.0) is x
