"""The peak of a device, of which MFU is a share."""

from __future__ import annotations

import pytest
import torch

from hubert_pretrain.training.utilisation import data_sheet_flops, peak_flops


@pytest.mark.parametrize(
    ("name", "teraflops"),
    [
        ("NVIDIA H200", 989),
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H200 NVL", 835),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H100 NVL", 835),
        ("NVIDIA GH200 480GB", 989),
        ("NVIDIA B200", 2250),
        ("NVIDIA GB200", 2500),
        ("NVIDIA H20", 148),
        ("NVIDIA A100-PCIE-40GB", 312),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA A10", 125),
        ("NVIDIA A10G", 70),
        ("NVIDIA A40", 149.7),
        ("NVIDIA RTX A4000", 76.7),
        ("NVIDIA RTX A5000", 111.1),
        ("NVIDIA RTX A6000", 154.8),
        ("NVIDIA RTX 6000 Ada Generation", 364.2),
        ("NVIDIA L40", 181),
        ("NVIDIA L40S", 362),
        ("NVIDIA L4", 121),
        ("Tesla V100-SXM2-32GB", 125),
        ("Tesla V100-PCIE-16GB", 112),
        ("Tesla V100S-PCIE-32GB", 130),
        ("Tesla T4", 65),
        ("NVIDIA GeForce RTX 4090", 165.2),
    ],
)
def test_a_gpu_is_not_taken_for_another_with_a_similar_name(name: str, teraflops: float) -> None:
    assert data_sheet_flops(name) == teraflops * 1e12


@pytest.mark.parametrize(
    "name",
    ["NVIDIA RTX 4000 Ada Generation", "NVIDIA A10X", "NVIDIA A100-SXM4-80GB MIG 1g.10gb"],
)
def test_an_unknown_gpu_or_a_slice_of_one_is_not_guessed(name: str) -> None:
    assert data_sheet_flops(name) is None


def test_the_peak_of_a_cpu_is_measured() -> None:
    assert peak_flops(torch.device("cpu"), "32-true") > 1e8
