"""Parts of tools/gpu_report.py that measure in a process of their own: `machine` and `profile`.

    python tools/gpu_parts.py machine
    python tools/gpu_parts.py profile --recipe base_ls960 --fuse 8
    python tools/gpu_parts.py profile --device cpu --top 5 model.num_hidden_layers=2

Each prints one line of JSON at its end.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch.autograd.profiler_util import FunctionEventAvg
from torch.profiler import ProfilerActivity, profile

from hubert_pretrain.config import compose
from hubert_pretrain.config.schema import Recipe
from hubert_pretrain.data.batching import BatchShape
from hubert_pretrain.errors import HubertPretrainError
from hubert_pretrain.frames import samples, seconds
from hubert_pretrain.model.half_precision import HalfCopies
from hubert_pretrain.model.masking import expected_count
from hubert_pretrain.model.precision import set_matmul_precision
from hubert_pretrain.pretrain.module import PretrainModule
from hubert_pretrain.tools import benchmarking
from hubert_pretrain.tools.command import report
from hubert_pretrain.training.utilisation import data_sheet_flops

K = 500
COPIED_BYTES = 1 << 30
CHAIN = 300
"""Operations of the chain whose launches are timed."""
MICRO_BATCHES = 3
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


def profile_step(
    device: torch.device, recipe_name: str, overrides: Sequence[str], *, fuse: int, top: int
) -> Row:
    """The kernels of three forward and backward passes and an update, by time."""
    recipe = compose.recipe_of([f"+recipe={recipe_name}", "data.root=.", *overrides])
    set_matmul_precision(tf32=recipe.trainer.tf32)
    module, shape = training_module(recipe)
    module.to(device)
    module.train()
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-4, fused=True)
    batch = module.blank_batch(shape, fuse, device)
    copies = HalfCopies(module, torch.bfloat16) if device.type == "cuda" else None

    def step() -> None:
        if copies is not None:
            copies.take()
        for _ in range(MICRO_BATCHES):
            with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                loss = module.loss_of(batch)
            loss.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 10.0)
        if copies is not None:
            copies.drop()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    for _ in range(2):
        step()
    activities = [ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities) as profiled:
        began = time.perf_counter()
        benchmarking.device_seconds_of(step, device)
        spent = time.perf_counter() - began
    audio = MICRO_BATCHES * seconds(batch["waveform"].numel())
    kernels = [each for each in profiled.key_averages() if time_of(each, device) > 0]
    total = sum(time_of(each, device) for each in kernels)
    kernels.sort(key=lambda each: time_of(each, device), reverse=True)
    return {
        "recipe": recipe_name,
        "device": device.type,
        "fuse": fuse,
        "rows": shape.batch_rows,
        "frames": shape.num_frames,
        "audio_seconds": audio,
        "profiled_audio_seconds_per_second": audio / spent,
        "busy": total / 1e6 / spent,
        "kernels": [
            {
                "name": each.key,
                "calls": each.count,
                "milliseconds": time_of(each, device) / 1e3,
                "share": time_of(each, device) / total,
            }
            for each in kernels[:top]
        ],
        "calls": sum(each.count for each in kernels),
    }


def time_of(kernel: FunctionEventAvg, device: torch.device) -> float:
    """Microseconds on the device, without those of the operations that it calls."""
    if device.type == "cuda":
        # An operation of the host has the time of its kernels too, which are rows of their own.
        on_device = kernel.device_type == torch.autograd.DeviceType.CUDA
        return float(kernel.self_device_time_total) if on_device else 0.0
    return float(kernel.self_cpu_time_total)


def training_module(recipe: Recipe) -> tuple[PretrainModule, BatchShape]:
    """The module of the first iteration, uncompiled, and the longest shape of its micro-batches."""
    from hubert_pretrain.stages.runner import import_stage

    stage = import_stage("pretrain")
    config = next(iter(recipe.iterations.values())).pretrain
    recipe.trainer.compile = "none"
    module = stage.build_module(recipe, config, [K], recipe.seed)
    grid = recipe.model.grid
    longest = min(config.max_crop_seconds, config.micro_batch_seconds)
    num_frames = int(grid.num_frames(samples(longest)))
    return module, BatchShape(
        num_frames=num_frames,
        batch_rows=max(1, round(config.micro_batch_seconds / longest)),
        masked_frames=expected_count(num_frames, config.mask),
    )


def main(words: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", choices=["machine", "profile"])
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="of the recipe")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--recipe", default="base_ls960", help="whose first iteration")
    parser.add_argument("--fuse", type=int, default=1, help="micro-batches in one pass")
    parser.add_argument("--top", type=int, default=20, help="kernels to show")
    options = parser.parse_intermixed_args(words)
    device = torch.device(options.device)
    try:
        if options.part == "machine":
            row = machine(device)
        else:
            row = profile_step(
                device, options.recipe, options.overrides, fuse=options.fuse, top=options.top
            )
    except HubertPretrainError as error:
        return report(error)
    benchmarking.print_json(options.part, row, gpu=device.type == "cuda")
    return 0


if __name__ == "__main__":
    sys.exit(main())
