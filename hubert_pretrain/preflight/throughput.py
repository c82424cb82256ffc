"""Data loading against training speed: the reading rate of one process is measured, the rate of a
GPU is estimated.
"""

from __future__ import annotations

import math
import time

from hubert_pretrain.config.schema import PretrainConfig
from hubert_pretrain.data.batching import BucketSampler
from hubert_pretrain.data.corpus import Corpus
from hubert_pretrain.distributed import usable_cores
from hubert_pretrain.errors import HubertPretrainError
from hubert_pretrain.frames import seconds
from hubert_pretrain.model.config import HubertConfig
from hubert_pretrain.model.flops import training_flops_per_second
from hubert_pretrain.preflight.corpus import micro_batches
from hubert_pretrain.preflight.report import CheckResult, of_error, ok, warning

GPU_EFFICIENCY = 0.4
"""Share of a GPU's peak FLOPs that training is assumed to reach."""


def loader_throughput(
    name: str,
    corpus: Corpus,
    config: PretrainConfig,
    *,
    model: HubertConfig,
    seed: int,
    readers: int,
    devices: int,
    precision: str | None,
) -> CheckResult:
    """The loader keeps up with the device: crops of the training stream are read in this process.

    Args:
        name: of the result.
        corpus: the prepared corpus.
        config: lengths of crops and micro-batches.
        model: the network.
        seed: of the micro-batches.
        readers: processes that read, per device (0: the training process does).
        devices: on this machine.
        precision: of a GPU; None: there is none.
    """
    try:
        rate = reading_rate(corpus, micro_batches(corpus, config, model.grid, seed))
    except HubertPretrainError as failure:
        return of_error(name, failure)
    cores = usable_cores() / devices
    supply = rate * max(1.0, min(readers, cores))
    found = (
        f"one process reads {rate:,.0f} s of audio a second, "
        f"{readers or 'the training process'} per device {supply:,.0f}"
    )
    if precision is None:
        return ok(name, found)
    demand = gpu_rate(model, config.max_crop_seconds, precision)
    found += f"; a GPU takes about {demand:,.0f} (an estimate)"
    if supply >= demand:
        return ok(name, found)
    enough = math.ceil(demand / rate)
    if enough <= cores:
        return warning(name, found, f"set trainer.loader_workers={enough}")
    fix = f"it would take {enough} cores per GPU: use data.shards=pcm, or a faster disk"
    return warning(name, found, fix)


def gpu_rate(model: HubertConfig, crop_seconds: float, precision: str) -> float:
    """Seconds of audio that a GPU of this machine trains on per second, as an estimate."""
    import torch

    from hubert_pretrain.training.utilisation import peak_flops

    return (
        GPU_EFFICIENCY
        * peak_flops(torch.device("cuda"), precision)
        / training_flops_per_second(model, clip_seconds=crop_seconds)
    )


def reading_rate(corpus: Corpus, plan: BucketSampler, least_seconds: float = 0.5) -> float:
    """Seconds of audio per second that one process reads, in the order of training."""
    read = 0
    index = 0
    started = time.perf_counter()
    while (spent := time.perf_counter() - started) < least_seconds or not read:
        micro_batch = plan.micro_batch(index)
        length = plan.grid.num_samples(micro_batch.shape.num_frames)
        for row, start in zip(micro_batch.rows.tolist(), micro_batch.starts.tolist(), strict=True):
            read += len(corpus.read(row, plan.grid.start_sample(start), length))
        index += 1
    return seconds(read) / spent
