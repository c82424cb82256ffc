from __future__ import annotations

import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from hubert_pretrain.model.long_convolution import long_convolution


@settings(max_examples=60)
@given(
    taps=st.integers(1, 40),
    frames=st.integers(1, 150),
    groups=st.sampled_from([1, 3]),
    rows=st.integers(1, 3),
)
def test_equal_to_conv1d_and_its_gradients(taps: int, frames: int, groups: int, rows: int) -> None:
    generator = torch.Generator().manual_seed(taps)
    shapes = ((rows, 6, frames), (6, 6 // groups, taps), (6,))
    inputs = [torch.randn(*shape, generator=generator).requires_grad_() for shape in shapes]
    wide = [tensor.detach().double().requires_grad_() for tensor in inputs]
    found = long_convolution(*inputs, padding=taps // 2, groups=groups)
    assert torch.equal(found, F.conv1d(*inputs, padding=taps // 2, groups=groups))
    expected = F.conv1d(*wide, padding=taps // 2, groups=groups)
    direction = torch.randn(found.shape, generator=generator)
    ours = torch.autograd.grad(found, inputs, direction)
    theirs = torch.autograd.grad(expected, wide, direction.double())
    for mine, reference in zip(ours, theirs, strict=True):
        torch.testing.assert_close(
            mine, reference.float(), atol=2e-6 * float(reference.abs().max() + 1), rtol=0
        )


def test_no_gradient_that_nobody_wants() -> None:
    x = torch.randn(2, 6, 50)
    weight = torch.randn(6, 2, 8, requires_grad=True)
    bias = torch.randn(6)
    long_convolution(x, weight, bias, padding=4, groups=3).sum().backward()
    assert weight.grad is not None
    assert x.grad is None
    assert bias.grad is None
