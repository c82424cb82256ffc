"""Averaged weights: an exponential moving average over the updates, for validation and for what the
stage leaves behind.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import lightning as L
import torch
from torch import Tensor


class EMA(L.Callback):
    """average <- decay average + (1 - decay) weights, after each update; both are in each
    checkpoint.

    Validation, and what comes after the training, see the average; training goes on with the
    weights themselves. In the first updates the decay is (1 + n) / (10 + n), so that the average
    does not remember the random start (as TensorFlow's and timm's).
    """

    def __init__(self, decay: float) -> None:
        """
        Args:
            decay: below 1; 0.9999 averages about the last 10,000 updates.
        """
        self.decay = decay
        self._average: dict[str, Tensor] = {}
        self._validation = ExitStack()  # gives the weights back

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Begins with the weights as they are, unless a checkpoint had the average."""
        old = self._average
        self._average = {
            name: old[name].to(w.device) if old else w.detach().clone()
            for name, w in _learning(module)
        }

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Moves the average."""
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        updates = trainer.global_step
        decay = min(self.decay, (1 + updates) / (10 + updates))
        weights = [weight.detach() for _, weight in _learning(module)]
        torch._foreach_lerp_(list(self._average.values()), weights, 1 - decay)

    def on_validation_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """The average stands in for the weights."""
        if trainer.state.fn == "fit":
            self._validation.enter_context(self.standing_in(module))

    def on_validation_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """The weights are back, before a checkpoint is written."""
        self._validation.close()

    @contextmanager
    def standing_in(self, module: L.LightningModule) -> Iterator[None]:
        """While this is open, the average stands in for the weights, which come back to the bit."""
        own = {name: weight.detach().clone() for name, weight in _learning(module)}
        _set(module, self._average)
        try:
            yield
        finally:
            _set(module, own)

    def on_fit_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """The average is what training has made."""
        _set(module, self._average)

    def on_save_checkpoint(
        self, trainer: L.Trainer, module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Beside the weights."""
        checkpoint["average"] = dict(self._average)

    def on_load_checkpoint(
        self, trainer: L.Trainer, module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """After a checkpoint without an average, it begins at the weights."""
        self._average = dict(checkpoint.get("average", {}))


@contextmanager
def ema_weights(trainer: L.Trainer, module: L.LightningModule) -> Iterator[None]:
    """While this is open, a module that trains has the weights that are validated: their average
    where there is one.
    """
    average = next((each for each in trainer.callbacks if isinstance(each, EMA)), None)  # type: ignore[attr-defined]
    if average is None:
        yield
        return
    with average.standing_in(module):
        yield


def _learning(module: L.LightningModule) -> list[tuple[str, Tensor]]:
    return [
        (name, parameter)
        for name, parameter in module.named_parameters()
        if parameter.requires_grad
    ]


def _set(module: L.LightningModule, values: dict[str, Tensor]) -> None:
    with torch.no_grad():
        for name, weight in _learning(module):
            weight.copy_(values[name])
