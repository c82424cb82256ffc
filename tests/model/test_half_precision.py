"""Copies of weights in half precision, and norms that read and write bf16."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode

from hubert_pretrain.model.attention import key_mask, sdpa
from hubert_pretrain.model.config import HubertConfig
from hubert_pretrain.model.half_precision import Conv1d, HalfCopies, Linear, layer_norm, weights_of
from hubert_pretrain.model.hubert import Block, Hubert

SMALL = HubertConfig(
    conv_dim=[16] * 7,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=64,
    num_conv_pos_embeddings=16,
    num_conv_pos_embedding_groups=2,
    layerdrop=0.0,
    hidden_dropout=0.0,
    attention_dropout=0.0,
    activation_dropout=0.0,
    feat_proj_dropout=0.0,
)


class Casts(TorchDispatchMode):
    """Counts casts of fp32 tensors of given shapes, and copies of many tensors at once."""

    def __init__(self, parameters: list[Tensor]) -> None:
        super().__init__()
        self.storages = {parameter.untyped_storage()._cdata for parameter in parameters}
        self.single = 0
        self.together = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        name = function.overloadpacket.__name__
        if name == "_to_copy" and args[0].dtype == torch.float32:
            self.single += args[0].untyped_storage()._cdata in self.storages
        self.together += name == "_foreach_copy_"
        return function(*args, **(kwargs or {}))


class GradientCasts(TorchDispatchMode):
    """Counts casts of half-precision tensors of the weights' shapes to fp32, and additions of
    half-precision tensors to fp32 sums.
    """

    def __init__(self, model: Hubert) -> None:
        super().__init__()
        self.shapes = {
            module.weight.shape for module in model.modules() if isinstance(module, Linear)
        }
        self.casts = 0
        self.additions = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        name = function.overloadpacket.__name__
        if name == "_to_copy" and args[0].dtype == torch.bfloat16:
            to = (kwargs or {}).get("dtype")
            self.casts += args[0].shape in self.shapes and to == torch.float32
        if name == "add_" and isinstance(args[1], Tensor):
            self.additions += (args[0].dtype, args[1].dtype) == (torch.float32, torch.bfloat16)
        return function(*args, **(kwargs or {}))


def test_the_sum_of_a_step_takes_gradients_in_half_precision() -> None:
    torch.manual_seed(0)
    model = Hubert(SMALL)
    matrices = sum(isinstance(module, Linear) for module in model.modules())
    HalfCopies(model, torch.bfloat16, used_once=model).take()
    for first in (True, False):
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(torch.randn(2, 4_000)).last.float().square().sum()
        with GradientCasts(model) as counted:
            loss.backward()
        assert counted.casts == (matrices if first else 0)
        assert counted.additions == (0 if first else 2 * matrices)  # and as many biases
    assert all(
        parameter.grad is None or parameter.grad.dtype == torch.float32
        for parameter in model.parameters()
    )


def gradients(model: Hubert, waveforms: list[Tensor], copies: HalfCopies | None) -> list[Tensor]:
    """Of a step of several micro-batches under autocast."""
    model.zero_grad()
    if copies is not None:
        copies.take()
    for waveform in waveforms:
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(waveform).last.float().square().sum()
        loss.backward()
    if copies is not None:
        copies.drop()
    return [
        parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None
    ]


@pytest.mark.parametrize("gradient_checkpointing", [False, True])
def test_copies_give_the_gradients_of_autocast_to_the_bit(gradient_checkpointing: bool) -> None:
    torch.manual_seed(0)
    model = Hubert(SMALL).configure(gradient_checkpointing=gradient_checkpointing)
    waveforms = [torch.randn(2, 4_000) for _ in range(3)]
    expected = gradients(model, waveforms, None)
    copies = HalfCopies(model, torch.bfloat16, used_once=model)
    for _ in range(2):
        found = gradients(model, waveforms, copies)
        assert len(found) == len(expected)
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
        assert {each.dtype for each in found} == {torch.float32}
        with torch.no_grad():  # an update, which the next copies have to see
            for parameter in model.parameters():
                parameter.mul_(0.9)
        expected = gradients(model, waveforms, None)


def test_a_step_casts_each_matrix_once() -> None:
    model = Hubert(SMALL)
    modules = [each for each in model.modules() if isinstance(each, Linear)]
    parameters = [tensor for each in modules for tensor in (each.weight, each.bias)]
    waveforms = [torch.randn(2, 4_000) for _ in range(3)]
    with Casts(parameters) as seen:
        gradients(model, waveforms, None)
    assert seen.single == 3 * len(parameters)
    with Casts(parameters) as seen:
        gradients(model, waveforms, HalfCopies(model, torch.bfloat16))
    assert (seen.single, seen.together) == (0, 1)


def test_nothing_of_the_copies_is_in_a_checkpoint_or_stays_after_a_step() -> None:
    model = Hubert(SMALL)
    before = copy.deepcopy(model.state_dict())
    copies = HalfCopies(model, torch.bfloat16)
    copies.take()
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(after[name].dtype == tensor.dtype for name, tensor in before.items())
    linear = model.projection.linear
    assert weights_of(linear)[0].dtype == torch.bfloat16
    copies.drop()
    assert weights_of(linear) == (linear.weight, linear.bias)


def test_convolutions_have_copies_except_on_a_cpu() -> None:
    with torch.device("meta"):
        model = Hubert(SMALL)
    HalfCopies(model, torch.bfloat16).take()
    convolutions = [each for each in model.modules() if isinstance(each, Conv1d)]
    assert len(convolutions) == 7
    assert all(weights_of(each)[0].dtype == torch.bfloat16 for each in convolutions)
    on_cpu = nn.Sequential(Conv1d(2, 2, 3), Linear(2, 2))
    HalfCopies(on_cpu, torch.bfloat16).take()
    assert [each.copies is None for each in on_cpu] == [True, False]


def test_ddp_reduces_gradients_of_copied_weights(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(Linear(8, 8), nn.ReLU(), Linear(8, 1))
    plain = copy.deepcopy(network)
    store = f"file://{tmp_path / 'store'}"
    torch.distributed.init_process_group("gloo", init_method=store, rank=0, world_size=1)
    try:
        parallel = DistributedDataParallel(network, gradient_as_bucket_view=True)
        HalfCopies(network, torch.bfloat16).take()
        batches = [torch.randn(4, 8) for _ in range(3)]
        for index, x in enumerate(batches):
            parallel.require_backward_grad_sync = index == 2
            with torch.autocast("cpu", torch.bfloat16):
                parallel(x).float().sum().backward()
    finally:
        torch.distributed.destroy_process_group()
    for x in batches:
        with torch.autocast("cpu", torch.bfloat16):
            plain(x).float().sum().backward()
    for a, b in zip(network.parameters(), plain.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad)  # type: ignore[arg-type]


def test_a_compiler_sees_one_graph_that_casts_no_weight() -> None:
    torch._dynamo.reset()
    torch.manual_seed(0)
    block = Block(SMALL)
    x = torch.randn(2, 9, 32, requires_grad=True)
    casts: list[int] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        sources = {
            node
            for node in graph.graph.nodes
            if node.op == "placeholder" and isinstance(node.meta["example_value"], nn.Parameter)
        }
        casts.append(
            sum(
                node.op == "call_method" and node.target == "to" and node.args[0] in sources
                for node in graph.graph.nodes
            )
        )
        from torch._dynamo.backends.debugging import aot_eager

        return aot_eager(graph, inputs)

    HalfCopies(block, torch.bfloat16).take()
    results = []
    compiled = torch.compile(block, backend=backend, fullgraph=True, dynamic=False)
    for function in (block, compiled):
        block.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            y, _ = function(x, None, sdpa)
        y.sum().backward()
        results.append([y.detach(), *(each.grad for each in block.parameters())])
    assert casts == [0]
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)


# -- norms


@pytest.mark.parametrize("offset", [0.0, 10.0])
def test_a_norm_of_bf16_has_statistics_in_fp32(offset: float) -> None:
    torch.manual_seed(0)
    norm = nn.LayerNorm(512)
    nn.init.normal_(norm.weight, 1.0, 0.1)
    nn.init.normal_(norm.bias, 0.0, 0.1)
    x = (torch.randn(4, 50, 512) + offset).bfloat16().requires_grad_()
    exact = F.layer_norm(x.double(), (512,), norm.weight.double(), norm.bias.double())
    direction = torch.randn_like(exact)
    expected = torch.autograd.grad(exact, [x, norm.weight, norm.bias], direction)
    found = layer_norm(x, norm)
    assert found.dtype == torch.bfloat16
    assert float((found.detach() - exact.detach()).norm() / exact.detach().norm()) < 4e-3
    ours = torch.autograd.grad(found, [x, norm.weight, norm.bias], direction.bfloat16())
    for a, b in zip(ours, expected, strict=True):
        assert float((a.double() - b.double()).norm() / b.double().norm()) < 6e-3


@pytest.mark.parametrize("pre_norm", [False, True])
def test_the_residual_stream_is_fp32_unless_it_may_be_bf16(pre_norm: bool) -> None:
    torch.manual_seed(0)
    model = Hubert(HubertConfig(**{**vars(SMALL), "do_stable_layer_norm": pre_norm}))
    waveform = torch.randn(2, 4_000)
    exact = model(waveform).last
    errors = {}
    for residual, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        model.configure(residual=residual)
        with torch.autocast("cpu", torch.bfloat16):
            output = model(waveform, hidden_states=True)
        states = [output.encoder_input, *(output.hidden_states or []), output.last]
        assert {state.dtype for state in states} == {dtype}
        errors[residual] = float((output.last.float() - exact).norm() / exact.norm())
        assert model(waveform).last.dtype == torch.float32  # without autocast it is fp32
    assert errors["fp32"] < errors["bf16"] < 0.05


# -- attention with dropout on a CPU


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("cached", [1, 1 << 20], ids=["a head at a time", "all heads"])
def test_dropped_attention_is_pytorchs(
    cached: int, padded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same draws, so the same outputs and gradients as PyTorch's own."""
    monkeypatch.setattr("hubert_pretrain.model.attention.CACHED_BYTES", cached)
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 3, 17, 8, requires_grad=True) for _ in range(3))
    valid = torch.ones(2, 17, dtype=torch.bool)
    valid[1, 11:] = False
    mask = key_mask(valid) if padded else None
    results = []
    for ours in (True, False):
        torch.manual_seed(1)
        y = (
            sdpa(q, k, v, mask, 0.2)[0]
            if ours
            else F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=0.2)
        )
        direction = torch.linspace(-1, 1, y.numel()).view(y.shape)
        results.append([y, *torch.autograd.grad(y, [q, k, v], direction)])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)
