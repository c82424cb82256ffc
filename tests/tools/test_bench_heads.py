"""tools/bench_heads.py: counts of kernels and bytes, and both heads in one row."""

from __future__ import annotations

import dataclasses

import pytest
from torch import nn

from hubert_pretrain.tools import bench_heads, bench_train


def test_a_softmax_head_needs_fewer_kernels_and_bytes() -> None:
    tiny = bench_train.WORKS["tiny_step"]
    row = bench_heads.measure(dataclasses.replace(tiny, rows=1, seconds=1.0), pairs=1)
    assert row["masked_frames"] == round(0.53 * 49)
    assert row["softmax_kernels"] < row["cosine_kernels"]
    assert row["softmax_megabytes"] < row["cosine_megabytes"]
    # d (D + K) against D K multiplications of a frame: 64 x 628 and 128 x 500.
    expected = (64 * 628) / (128 * 500)
    shares = row["cosine_share_of_operations"] / row["softmax_share_of_operations"]
    assert shares == pytest.approx(expected, rel=0.02)
    for name in ("head_and_loss", "step"):
        assert row[name]["ratio_min"] <= row[name]["ratio"] <= row[name]["ratio_max"]
        assert row[name]["cosine_seconds"] > 0


def test_the_step_trains_network_and_head() -> None:
    tiny = dataclasses.replace(bench_train.WORKS["tiny_step"], rows=1, seconds=1.0)
    losses = []
    step = bench_heads.whole_step("softmax", tiny, bench_train.Batch.of(tiny))
    for _ in range(6):
        losses.append(float(step()))
    assert losses[-1] < losses[0]
    assert isinstance(bench_heads.head_of("softmax", tiny).projection, nn.Linear)
