"""tools/census.py: kernels and bytes of a step of Base, counted on the meta device."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hubert_pretrain.tools.census import Count

from hubert_pretrain.tools import census, roofline

META = torch.device("meta")


def test_bytes_are_those_that_a_kernel_reads_and_writes() -> None:
    x = torch.ones(10, 5)
    y = torch.ones(10, 5)
    with Count() as count:
        x + y
    assert (count.kernels, count.bytes) == (1, 3 * 200)


def test_an_expanded_axis_and_a_tensor_that_is_given_twice_are_read_once() -> None:
    x = torch.ones(1, 5)
    with Count() as count:
        x.expand(10, 5) * 2.0
    assert count.bytes == 20 + 200
    y = torch.ones(10, 5)
    with Count() as count:
        y * y
    assert count.bytes == 2 * 200


def test_views_and_allocations_are_no_kernels_and_writing_in_place_is_one() -> None:
    x = torch.ones(10, 5)
    with Count() as count:
        x.view(50)[3:].unsqueeze(0).t()
        torch.empty(3)
    assert count.kernels == 0
    with Count() as count:
        x.mul_(2.0)
    assert (count.kernels, count.bytes) == (1, 200)


def test_autocast_by_hand_casts_as_torch_does() -> None:
    x = torch.empty(4, 8, device=META)
    with census.autocast_by_hand():
        assert F.linear(x, torch.empty(3, 8, device=META)).dtype == torch.float32
        with torch.autocast("meta", torch.bfloat16):
            product = F.linear(x, torch.empty(3, 8, device=META))
            assert product.dtype == torch.bfloat16
            assert F.layer_norm(product, (3,)).dtype == torch.float32
            with torch.autocast("meta", enabled=False):
                assert F.linear(x, torch.empty(3, 8, device=META)).dtype == torch.float32
        assert not torch.is_autocast_enabled("meta")
    assert torch.autocast is not census.Autocast


def test_attention_is_one_kernel() -> None:
    q = torch.empty(2, 4, 50, 16, device=META)
    with census.autocast_by_hand(), Count() as count:
        F.scaled_dot_product_attention(q, q, q, dropout_p=0.1)
    casts = 3
    assert count.kernels == 1 + casts


@pytest.fixture(scope="module")
def base() -> census.Census:
    return census.count("base_ls960")


def test_a_step_of_base_has_no_more_kernels_and_bytes_than_the_estimate_says(
    base: census.Census,
) -> None:
    """The estimate of docs/benchmarks.md rests on these."""
    assert base.audio_seconds == pytest.approx(roofline.BASE.unit_seconds)
    assert 500 < base.kernels <= 1.02 * roofline.BASE.kernels
    assert 100e6 < base.bytes_per_second <= 1.02 * roofline.BASE.memory_bytes_per_second


def test_micro_batches_in_one_pass_share_its_kernels(base: census.Census) -> None:
    together = census.count("base_ls960", fuse=8)
    assert together.audio_seconds == pytest.approx(8 * base.audio_seconds)
    assert together.kernels <= base.kernels
    assert together.bytes_per_second < base.bytes_per_second
