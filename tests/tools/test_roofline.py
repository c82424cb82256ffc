"""tools/roofline.py: the expected speed of a step."""

from __future__ import annotations

from pathlib import Path

import pytest
from hubert_pretrain.tools.roofline import Gpu, Work, expect, work_of

from hubert_pretrain.tools import roofline

GPU = Gpu(product_flops=100.0, memory_bytes=10.0, launch_seconds=0.01)


def test_products_and_memory_follow_each_other() -> None:
    found = expect(Work(flops=50.0, memory_bytes=5.0, kernels=0.0), GPU)
    assert (found.products, found.memory) == (0.5, 0.5)
    assert found.audio_seconds_per_second == 1.0
    assert found.limit == "device"


def test_launches_run_beside_the_device_and_only_the_longer_side_counts() -> None:
    work = Work(flops=50.0, memory_bytes=5.0, kernels=100.0)
    assert expect(work, GPU).audio_seconds_per_second == pytest.approx(1.0)
    slower = Work(flops=50.0, memory_bytes=5.0, kernels=400.0)
    assert expect(slower, GPU).audio_seconds_per_second == pytest.approx(0.25)
    assert expect(slower, GPU).limit == "host"


def test_a_pass_of_several_micro_batches_has_the_kernels_of_one() -> None:
    alone = work_of(roofline.BASE, 46e9, 1)
    together = work_of(roofline.BASE, 46e9, 8)
    assert together.kernels == pytest.approx(alone.kernels / 8)
    assert together.memory_bytes == alone.memory_bytes


def test_a_data_sheet_is_reached_in_part() -> None:
    gpu = Gpu.of_data_sheet(989e12, 4.8e12)
    assert gpu.product_flops < 989e12
    assert gpu.memory_bytes < 4.8e12


def test_the_table_of_the_docs_is_that_of_the_formula(repository: Path) -> None:
    text = (repository / "docs" / "benchmarks.md").read_text()
    assert roofline.table() in text
    counted = f"{roofline.BASE.kernels:,} kernels"
    assert counted in text
