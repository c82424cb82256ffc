"""Matrix products of strided views against PyTorch's convolution."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hubert_pretrain.model.strided_matmul import (
    add_gradient_by_taps,
    as_taps,
    as_weight,
    convolve,
    gradient_by_x,
)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@settings(max_examples=60)
@given(
    extra=st.integers(0, 40),
    kernel=st.integers(1, 10),
    stride=st.integers(1, 6),
    channels=st.sampled_from([1, 3, 40, 300]),
)
def test_equal_to_a_convolution_and_its_gradients_for_any_length_kernel_and_stride(
    extra: int, kernel: int, stride: int, channels: int
) -> None:
    x = random(2, kernel + extra, channels).requires_grad_()
    weight = random(5, channels, kernel, seed=1).requires_grad_()
    expected = F.conv1d(x.transpose(1, 2), weight, None, stride).transpose(1, 2)
    direction = random(*expected.shape, seed=3)
    by_x, by_weight = torch.autograd.grad(expected, (x, weight), direction)
    with torch.no_grad():
        taps = as_taps(weight)
        assert torch.equal(as_weight(taps, kernel), weight)
        torch.testing.assert_close(
            convolve(x, taps, kernel, stride, torch.empty_like(expected)), expected
        )
        torch.testing.assert_close(gradient_by_x(direction, x, taps, kernel, stride), by_x)
        by_taps = as_taps(random(*weight.shape, seed=4))
        before = by_taps.clone()
        add_gradient_by_taps(by_taps, direction, x.detach(), kernel, stride)
        torch.testing.assert_close(as_weight(by_taps - before, kernel), by_weight)
