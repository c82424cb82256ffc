"""Trainings that die at a chosen moment, in this process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from hubert_pretrain.pretrain.module import PretrainModule
from hubert_pretrain.training.module import TrainingModule


def killed_at_micro_batch(index: int, kind: type[TrainingModule] = PretrainModule) -> Any:
    """`with killed_at_micro_batch(9):` a training that dies when it comes to that micro-batch."""
    return _killed("training_step", lambda module, batch, batch_idx: batch["index"] == index, kind)


def killed_before_update(step: int) -> Any:
    """A training that dies `step` updates after its beginning, with the gradients of the next."""
    return _killed(
        "on_before_optimizer_step", lambda module, optimizer: module.trainer.global_step == step
    )


@contextmanager
def _killed(
    hook: str, is_time: Callable[..., bool], kind: type[TrainingModule] = PretrainModule
) -> Iterator[None]:
    original = getattr(kind, hook)

    def dying(self: TrainingModule, *arguments: Any) -> Any:
        if is_time(self, *arguments):
            raise RuntimeError("killed")
        return original(self, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kind, hook, dying)
        with pytest.raises(RuntimeError, match="killed"):
            yield
