"""Number of micro-batches that fit into a GPU's memory at once, measured before training starts.

The loss of a step is a sum over its micro-batches, so their number in one forward pass is a matter
of speed alone.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from contextlib import AbstractContextManager

import torch

from hubert_pretrain.data.batching import BatchShape, BucketSampler
from hubert_pretrain.errors import ConfigError
from hubert_pretrain.pretrain.module import PretrainModule

logger = logging.getLogger(__name__)

USABLE = 0.9
"""Share of a GPU's memory that tensors may take; the rest is for the allocator's gaps and for
libraries."""
WEIGHT_BYTES = 4
"""Per parameter: fp32. The measured passes have all weights, also those that will be sharded."""
ADAM_BYTES = 8
"""Per parameter: two moments in fp32, which the measured passes do not have yet."""


def fitting_micro_batches(
    peak_bytes: Callable[[BatchShape, int], float],
    shapes: list[BatchShape],
    *,
    most: int,
    available_bytes: int,
) -> int:
    """The largest number of micro-batches, up to `most`, that fits for every shape.

    Memory is what one micro-batch needs plus the same again for each further one.

    Args:
        peak_bytes: a shape and a number of micro-batches -> the peak of a forward and backward
            pass; infinite where memory ran out.
        shapes: of the training.
        most: as many as a device has of one shape in a step.
        available_bytes: for the passes.

    Raises ConfigError, with two ways out, when not even one fits.
    """
    fitting = most
    for shape in shapes:
        one = peak_bytes(shape, 1)
        if one > available_bytes:
            audio = f"{shape.batch_rows} x {shape.num_frames} frames"
            room = f"{available_bytes / 1e9:.1f} GB"
            need = f"more than {room}" if one == math.inf else f"{one / 1e9:.1f} GB"
            raise ConfigError(
                f"a micro-batch of {audio} needs {need}, the GPU has {room} for it; set "
                "trainer.gradient_checkpointing=true, or halve micro_batch_seconds"
            )
        if fitting > 1:
            further = max(1, peak_bytes(shape, 2) - one)
            fitting = min(fitting, 1 + int((available_bytes - one) / further))
    return fitting


def bytes_for_passes(total: int, parameters: int, *, shard_size: int) -> int:
    """Memory of a GPU of `total` bytes for passes that are measured with the whole network.

    Gradients count whole: under fsdp, too, they are whole while micro-batches are accumulated.

    Args:
        parameters: number of those that learn.
        shard_size: processes that share weights and moments.
    """
    moments = ADAM_BYTES * parameters // shard_size
    not_there = WEIGHT_BYTES * (parameters - parameters // shard_size)
    return int(USABLE * total) - moments + not_there


def measured_fuse(
    module: PretrainModule,
    plan: BucketSampler,
    device: torch.device,
    *,
    devices: int,
    shard_size: int,
    autocast: Callable[[], AbstractContextManager[None]],
) -> int:
    """`BucketSampler.fuse` for this GPU.

    The same on every GPU of one type: it depends on the sizes of tensors only.

    Args:
        module: its network and head are on the device while they are measured.
        devices: of the training.
        shard_size: processes that share one copy of the weights; 1: each has its own.
        autocast: as the trainer runs `training_step`.
    """
    most = plan.fuse(plan.group, devices)
    total = torch.cuda.get_device_properties(device).total_memory
    parameters = sum(each.numel() for each in module.parameters() if each.requires_grad)
    available = total  # an estimate refuses no run in which nothing can be fused
    if most > 1:
        available = bytes_for_passes(total, parameters, shard_size=shard_size)

    def peak_bytes(shape: BatchShape, micro_batches: int) -> float:
        torch.cuda.reset_peak_memory_stats(device)
        try:
            batch = module.blank_batch(shape, micro_batches, device)
            # Uncompiled, because these shapes would be compiled for nothing. A compiled pass
            # stores no more.
            with autocast(), torch.compiler.set_stance("force_eager"):
                loss = module.loss_of(batch)
            loss.backward()
        except torch.OutOfMemoryError:
            return math.inf
        finally:
            module.zero_grad(set_to_none=True)
        return torch.cuda.max_memory_allocated(device)

    try:
        module.to(device)
        module.train()
        fitting = fitting_micro_batches(
            peak_bytes,
            plan.shapes,
            most=most,
            available_bytes=available,
        )
    except torch.OutOfMemoryError as error:  # of the weights alone
        raise ConfigError(
            f"the network ({parameters / 1e6:.0f} M parameters) does not fit into the GPU's "
            f"{total / 1e9:.1f} GB; choose a smaller model, or a GPU with more memory"
        ) from error
    finally:
        module.cpu()
        torch.cuda.empty_cache()
    fuse = plan.fuse(fitting, devices)
    logger.info("%d micro-batches in one forward pass fit into the GPU's memory", fuse)
    return fuse
