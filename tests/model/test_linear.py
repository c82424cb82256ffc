from __future__ import annotations

import pytest
import torch
from torch import nn

from hubert_pretrain.model.linear import Linear


@pytest.mark.parametrize("shape", [(1, 24), (3, 24), (2, 7, 24), (0, 24)])
@pytest.mark.parametrize("biased", [True, False])
def test_equal_to_nn_linear_and_its_gradients(shape: tuple[int, ...], biased: bool) -> None:
    torch.manual_seed(0)
    ours, theirs = Linear(24, 40, bias=biased), nn.Linear(24, 40, bias=biased)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(*shape, requires_grad=True)
    outputs = [layer(x) for layer in (ours, theirs)]
    torch.testing.assert_close(outputs[0], outputs[1])
    direction = torch.randn_like(outputs[0]).mT.contiguous().mT  # gradients arrive in any order in memory
    for mine, reference in zip(
        torch.autograd.grad(outputs[0], [x, *ours.parameters()], direction),
        torch.autograd.grad(outputs[1], [x, *theirs.parameters()], direction),
        strict=True,
    ):
        torch.testing.assert_close(mine, reference)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_precisions_are_left_to_pytorch(dtype: torch.dtype) -> None:
    layer = Linear(24, 40).to(dtype)
    x = torch.randn(3, 24, dtype=dtype)
    assert torch.equal(layer(x), nn.functional.linear(x, layer.weight, layer.bias))
    with torch.autocast("cpu", torch.bfloat16):
        assert Linear(24, 40)(torch.randn(3, 24)).dtype == torch.bfloat16


def test_no_gradient_that_nobody_wants() -> None:
    layer = Linear(24, 40)
    layer.weight.requires_grad_(False)
    x = torch.randn(3, 24)
    layer(x).sum().backward()
    assert layer.weight.grad is None
    assert layer.bias.grad is not None
    assert x.grad is None
