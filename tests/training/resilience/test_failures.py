"""Failures that a user can fix, in one line with the fix."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from hubert_pretrain.errors import HubertPretrainError
from hubert_pretrain.training.resilience.failures import BatchShape, explain_failures


def trainer(batch: Any = None) -> Any:
    last = BatchShape()
    last.record(batch)
    return SimpleNamespace(callbacks=[last], global_step=41)


def test_out_of_memory_names_the_shape_and_half_of_it() -> None:
    batch = {"waveform": torch.empty(8, 160_000, device="meta")}
    message = (
        r"out of memory at step 42 in a forward pass of 8 x 160000 samples \(80\.0 s of audio\): "
        r"CUDA out of memory.*=40 .*gradient_checkpointing"
    )
    with pytest.raises(HubertPretrainError, match=message), explain_failures(trainer(batch)):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


def test_out_of_memory_elsewhere() -> None:
    with (
        pytest.raises(
            HubertPretrainError, match=r"out of memory at step 42 .*halve micro_batch_seconds"
        ),
        explain_failures(trainer()),
    ):
        raise torch.OutOfMemoryError("CUDA out of memory")


def test_a_killed_worker_is_named() -> None:
    with (
        pytest.raises(
            HubertPretrainError,
            match=r"worker \(process 4711\) died: DataLoader worker \(pid 4711\) is killed by "
            r"signal: Killed.*loader_workers",
        ),
        explain_failures(trainer()),
    ):
        raise RuntimeError("DataLoader worker (pid 4711) is killed by signal: Killed. ")


def test_other_errors_pass() -> None:
    with pytest.raises(RuntimeError, match="the size of tensor a"), explain_failures(trainer()):
        raise RuntimeError("the size of tensor a must match")
