"""Precision of fp32 products and convolutions: set for both, whatever PyTorch's defaults."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from hubert_pretrain.model.precision import set_matmul_precision


@pytest.fixture(autouse=True)
def _restore() -> Iterator[None]:
    before = (
        torch.get_float32_matmul_precision(),
        torch.backends.cudnn.allow_tf32,
        torch.backends.cuda.cudnn_sdp_enabled(),
    )
    yield
    torch.set_float32_matmul_precision(before[0])
    torch.backends.cudnn.allow_tf32 = before[1]
    torch.backends.cuda.enable_cudnn_sdp(before[2])


@pytest.mark.parametrize("tf32", [False, True])
def test_products_and_convolutions_agree(tf32: bool) -> None:
    set_matmul_precision(tf32=tf32)
    assert torch.backends.cudnn.allow_tf32 is tf32
    assert torch.backends.cuda.matmul.allow_tf32 is tf32
    assert not torch.backends.cuda.cudnn_sdp_enabled()
    assert torch.backends.cuda.flash_sdp_enabled()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU")
@pytest.mark.parametrize(("tf32", "bound"), [(False, 1e-5), (True, 1e-2)])
def test_fp32_has_the_chosen_precision(tf32: bool, bound: float) -> None:
    set_matmul_precision(tf32=tf32)
    torch.manual_seed(0)
    x = torch.randn(1, 512, 1000)
    weight = torch.randn(512, 512, 3) / 40
    expected = torch.nn.functional.conv1d(x.double(), weight.double())
    found = torch.nn.functional.conv1d(x.cuda(), weight.cuda()).cpu().double()
    assert (found - expected).abs().max() < bound * expected.abs().max()
