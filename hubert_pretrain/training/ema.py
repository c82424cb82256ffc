"""EMA of the weights: validation and exported checkpoints use it."""

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

    Validation and the exported checkpoint use the average; training goes on with the weights
    themselves. In the first updates n the decay is (1 + n) / (10 + n), so that the average does not
    remember the random start (as in TensorFlow and timm).
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
        """Start from the weights, unless a checkpoint had the average."""
        old = self._average
        self._average = {
            name: old[name].to(weight.device) if old else weight.detach().clone()
            for name, weight in _learning(module)
        }

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Update the average."""
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        updates = trainer.global_step
        decay = min(self.decay, (1 + updates) / (10 + updates))
        weights = [weight.detach() for _, weight in _learning(module)]
        torch._foreach_lerp_(list(self._average.values()), weights, 1 - decay)

    def on_validation_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Replace the weights by the average."""
        if trainer.state.fn == "fit":
            self._validation.enter_context(self.applied(module))

    def on_validation_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Restore the weights, before a checkpoint is written."""
        self._validation.close()

    @contextmanager
    def applied(self, module: L.LightningModule) -> Iterator[None]:
        """Context in which the average replaces the weights. They are restored to the bit."""
        own = {name: weight.detach().clone() for name, weight in _learning(module)}
        _set(module, self._average)
        try:
            yield
        finally:
            _set(module, own)

    def on_fit_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Leave the average as the result of the training."""
        _set(module, self._average)

    def on_save_checkpoint(
        self, trainer: L.Trainer, module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Store the average beside the weights."""
        checkpoint["average"] = dict(self._average)

    def on_load_checkpoint(
        self, trainer: L.Trainer, module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Restore the average. A checkpoint without one starts it at the weights."""
        self._average = dict(checkpoint.get("average", {}))


@contextmanager
def ema_weights(trainer: L.Trainer, module: L.LightningModule) -> Iterator[None]:
    """Context in which a module that trains has the weights that are validated: their average, if
    there is one.
    """
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    ema = next((each for each in callbacks if isinstance(each, EMA)), None)
    if ema is None:
        yield
        return
    with ema.applied(module):
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
