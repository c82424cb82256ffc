"""Can the loader keep up with the device? What one process reads is measured, what a GPU takes is
estimated.
"""

from __future__ import annotations

import math
import time

from hubert_pretrain.data.batching import BucketSampler
from hubert_pretrain.data.corpus import Corpus
from hubert_pretrain.distributed import usable_cores
from hubert_pretrain.errors import HubertPretrainError
from hubert_pretrain.frames import seconds
from hubert_pretrain.model.config import HubertConfig
from hubert_pretrain.model.flops import training_flops_per_second
from hubert_pretrain.preflight.report import CheckResult, of_error, ok, skipped, warning

GPU_EFFICIENCY = 0.4
"""Share of a GPU's peak that training is taken to reach."""


def loader_throughput(
    name: str,
    corpus: Corpus | None,
    *,
    model: HubertConfig,
    seed: int,
    readers: int,
    devices: int,
    precision: str | None,
    **values: float,
) -> CheckResult:
    """Reads crops of the training stream in this process.

    Args:
        name: of the row.
        corpus: None before it is prepared.
        model: that is to be trained.
        seed: of the plan.
        readers: processes that read, per device (0: the training process does).
        devices: on this machine.
        precision: in which a GPU computes; None: there is none.
        values: the lengths that `BatchPlan` takes.
    """
    if corpus is None:
        return skipped(name, "prepare")
    try:
        plan = BucketSampler(
            corpus.manifest.length_sorted("train"),
            grid=model.grid,
            seed=seed,
            masked_frames=lambda frames: frames,
            **values,
        )  # type: ignore[arg-type]
        rate = reading_rate(corpus, plan)
    except HubertPretrainError as failure:
        return of_error(name, failure)
    cores = usable_cores() / devices
    fed = rate * max(1.0, min(readers, cores))
    found = f"one process reads {rate:,.0f} s of audio a second, {readers or 'the training process'} per device {fed:,.0f}"
    if precision is None:
        return ok(name, found)
    wanted = gpu_rate(model, values["max_crop_seconds"], precision)
    found += f"; a GPU takes about {wanted:,.0f} (an estimate)"
    if fed >= wanted:
        return ok(name, found)
    enough = math.ceil(wanted / rate)
    more = f"it would take {enough} cores per GPU: use data.shards=pcm, or a faster disk"
    return warning(name, found, f"set trainer.loader_workers={enough}" if enough <= cores else more)


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
