"""Hardware utilisation: peak memory, and the peak operations per second that MFU (model FLOPs
utilisation) is a share of.
"""

from __future__ import annotations

import functools
import resource
import sys
import time

import torch

_DENSE_16_BIT = {
    "B300": 2250e12,
    "GB300": 2500e12,
    "B200": 2250e12,
    "GB200": 2500e12,
    "B100": 1750e12,
    "GH200": 989e12,
    "H200 NVL": 835e12,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "H800 PCIe": 756e12,
    "H800": 989e12,
    "H20": 148e12,
    "A100": 312e12,
    "A800": 312e12,
    "A40": 149.7e12,
    "A30": 165e12,
    "A10G": 70e12,
    "A10": 125e12,
    "RTX A6000": 154.8e12,
    "RTX A5000": 111.1e12,
    "RTX A4000": 76.7e12,
    "RTX 6000 Ada": 364.2e12,
    "L40S": 362e12,
    "L40": 181e12,
    "L4": 121e12,
    "V100S": 130e12,
    "V100 PCIE": 112e12,
    "V100": 125e12,
    "T4": 65e12,
    "RTX 5090": 209.5e12,
    "RTX 4090": 165.2e12,
    "RTX 3090": 71e12,
}
"""Operations per second in bf16 or fp16, summed in fp32, without sparsity, from the vendors' data
sheets. The first entry counts whose words occur in the device's name."""


def known_gpus() -> list[str]:
    """Names of the GPUs whose data sheets are known."""
    return list(_DENSE_16_BIT)


def data_sheet_flops(device_name: str) -> float | None:
    """Peak operations per second in 16 bits of a GPU, from its name; None for an unknown one, and
    for a slice of one (MIG), which has a share of them.

    device_name: such as "NVIDIA A100-SXM4-80GB".
    """
    words = f" {device_name.replace('-', ' ')} "
    if " MIG " in words:
        return None
    for known, peak in _DENSE_16_BIT.items():
        if f" {known} " in words:
            return peak
    return None


def peak_flops(device: torch.device, precision: str) -> float:
    """Peak operations per second of a device: from the data sheet for 16 bits, else measured by a
    matrix product.
    """
    if device.type == "cuda" and "16" in precision:
        known = data_sheet_flops(torch.cuda.get_device_name(device))
        if known is not None:
            return known
    return _measured(device, _dtype_of(precision))


def _dtype_of(precision: str) -> torch.dtype:
    """The type of matrix products under one of Lightning's precisions."""
    if "bf16" in precision:
        return torch.bfloat16
    return torch.float16 if "16" in precision else torch.float32


@functools.lru_cache(maxsize=8)
def _measured(device: torch.device, dtype: torch.dtype) -> float:
    """The best of a few square matrix products, once per process: a tenth of a second."""
    size = 4096 if device.type == "cuda" else 512
    left = torch.ones(size, size, device=device, dtype=dtype)
    best = float("inf")
    for _ in range(5):
        _wait(device)
        start = time.perf_counter()
        left @ left
        _wait(device)
        best = min(best, time.perf_counter() - start)
    return 2.0 * size**3 / best


def memory_gb(device: torch.device) -> float:
    """Peak memory in 10^9 bytes: of tensors on a GPU, or of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used * (1 if sys.platform == "darwin" else 1024) / 1e9


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
