"""Type and speeds of this machine's device: a large product, a copy, the launch of a kernel.

    python tools/machine_speed.py
    python tools/machine_speed.py --device cpu

Prints one line of JSON. A part of tools/gpu_report.py, in a process of its own.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch

from hubert_pretrain.tools import benchmarking
from hubert_pretrain.training.utilisation import data_sheet_flops

COPIED_BYTES = 1 << 30
CHAIN = 300
"""Operations of the chain whose launches are timed."""
Row = dict[str, Any]


def machine(device: torch.device) -> Row:
    """Type and speeds of a device: a large product, a copy, the launch of a kernel."""
    row: Row = {
        "device": device.type,
        "compiler": benchmarking.has_compiler(),
        "product_tflops": benchmarking.matmul_flops(device) / 1e12,
        "copy_gb_per_second": copied_bytes_per_second(device) / 1e9,
        "launch_microseconds": 1e6 * launch_seconds(device),
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        sheet = data_sheet_flops(properties.name)
        row |= {
            "name": properties.name,
            "memory_gb": properties.total_memory / 1e9,
            "gpus": torch.cuda.device_count(),
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
            "bf16": torch.cuda.is_bf16_supported(including_emulation=False),
            "data_sheet_tflops": sheet and sheet / 1e12,
        }
    return row


def copied_bytes_per_second(device: torch.device) -> float:
    """Bytes that a copy within the device's memory reads and writes."""
    size = COPIED_BYTES if device.type == "cuda" else COPIED_BYTES // 16
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    spent = min(
        benchmarking.device_seconds_of(partial(target.copy_, source), device) for _ in range(5)
    )
    return 2 * size / spent


def launch_seconds(device: torch.device) -> float:
    """Host time of one small operation, forwards and backwards, without waiting for the device."""
    x = torch.ones(8, device=device, requires_grad=True)

    def chain() -> None:
        y = x
        for _ in range(CHAIN):
            y = y * 1.0
        y.sum().backward()

    chain()
    return min(benchmarking.seconds_of(chain) for _ in range(5)) / (2 * CHAIN)


def main(words: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(parser.parse_args(words).device)
    benchmarking.print_json("machine", machine(device), gpu=device.type == "cuda")
    return 0


if __name__ == "__main__":
    sys.exit(main())
