"""Precision of fp32 products and convolutions: set for both, whatever PyTorch's defaults."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from hubert_pretrain.model.config import HubertConfig
from hubert_pretrain.model.precision import compare_operations, set_matmul_precision


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


@pytest.mark.parametrize("static_shapes", [False, True])
@pytest.mark.parametrize("tf32", [False, True])
def test_products_and_convolutions_agree(tf32: bool, static_shapes: bool) -> None:
    set_matmul_precision(tf32=tf32, static_shapes=static_shapes)
    assert torch.backends.cudnn.allow_tf32 is tf32
    assert torch.backends.cuda.matmul.allow_tf32 is tf32
    assert torch.backends.cuda.cudnn_sdp_enabled() is static_shapes
    assert torch.backends.cuda.flash_sdp_enabled()


TINY = HubertConfig(
    conv_dim=[8] * 7,
    hidden_size=16,
    num_hidden_layers=3,
    num_attention_heads=2,
    intermediate_size=32,
    num_conv_pos_embeddings=8,
    num_conv_pos_embedding_groups=2,
)


class Wrong(TorchDispatchMode):
    """A kernel that is wrong in half precision alone."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> torch.Tensor:
        result = func(*args, **(kwargs or {}))
        if func.overloadpacket.__name__ == self.name and result.dtype == torch.bfloat16:
            return 1.1 * result
        return result


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_operations_in_half_precision_agree_with_fp32(dtype: torch.dtype) -> None:
    before = torch.get_rng_state()
    compared = compare_operations(TINY, dtype, torch.device("cpu"))
    assert compared.faults == []
    assert {"addmm", "mm", "gelu", "gelu_backward"} <= compared.operations
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("name", ["addmm", "mm", "gelu_backward"])
def test_a_wrong_kernel_is_named(name: str) -> None:
    """Also one of the backward pass."""
    with Wrong(name):
        compared = compare_operations(TINY, torch.bfloat16, torch.device("cpu"))
    assert len(compared.faults) == 1
    assert re.match(rf"{name} of bfloat16 \(.*\): relative error 0\.1", compared.faults[0]), (
        compared.faults
    )


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_operations_of_this_gpu_agree_with_fp32(dtype: torch.dtype) -> None:
    compared = compare_operations(HubertConfig(), dtype, torch.device("cuda"))
    assert compared.faults == []
    assert {"addmm", "mm", "convolution", "convolution_backward"} <= compared.operations


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
