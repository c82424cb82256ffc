"""The part of a LightningModule that pretraining and fine-tuning share: optimiser, clipping, measuring without slowing the device down."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import lightning as L
import torch
from torch import Tensor

from hubert_pretrain import distributed
from hubert_pretrain.errors import HubertPretrainError
from hubert_pretrain.training.loggers import report
from hubert_pretrain.training.optimizer import adamw, with_schedule
from hubert_pretrain.training.progress import Stopwatch


@dataclass(frozen=True, kw_only=True)
class Optimisation:
    """How weights move."""

    learning_rate: float  # peak
    factor: Callable[[int], float]  # updates done -> share of the peak (training/schedule.py)
    betas: Sequence[float] = (0.9, 0.98)
    eps: float = 1e-6
    weight_decay: float = 0.01
    clip_norm: float = 10.0  # global gradient norm; 0: no clipping


@dataclass
class Meter:
    """Sums that stay on the device until someone reads them: one transfer per logging step instead of one wait per step."""

    sums: dict[str, Tensor] = field(default_factory=dict)

    def add(self, **values: Tensor | float) -> None:
        """Adds detached scalars to their sums."""
        for name, value in values.items():
            value = value.detach().float() if isinstance(value, Tensor) else torch.tensor(float(value))
            self.sums[name] = self.sums[name] + value if name in self.sums else value

    def read(self, device: torch.device | None = None) -> dict[str, float]:
        """The sums over all ranks since the last reading, and starts again from 0. Every rank must call it with the same names."""
        if not self.sums:
            return {}
        target = device or next(iter(self.sums.values())).device
        total = torch.stack([value.to(target) for value in self.sums.values()]).double()
        names, self.sums = list(self.sums), {}
        return dict(zip(names, distributed.sum_over_ranks(total).tolist(), strict=True))


class TrainingModule(L.LightningModule):
    """Optimiser, schedule, clipping, the log every `log_every_steps` updates, and the stop at a loss that is not a number.

    A subclass writes `training_step`, in which it calls `self.watch(...)` once per micro-batch, and `summarise`.
    """

    def __init__(self, *, optimisation: Optimisation, log_every_steps: int, shown: Sequence[str] = ()) -> None:
        super().__init__()
        self.optimisation = optimisation
        self.log_every_steps = log_every_steps
        self.shown = shown
        self.meter = Meter()
        self.stopwatch = Stopwatch()
        self._watched: list[tuple[int, Tensor]] = []
        self._clocked = 0.0
        self._audio_seconds = 0.0
        self._grad_norm: Tensor | None = None

    # -- for subclasses -----------------------------------------------------------------------------------------------------------

    def summarise(self, sums: dict[str, float], steps: int, seconds: float) -> dict[str, float]:
        """Sums of the meter over the last `steps` updates, which took `seconds` -> the values to log."""
        raise NotImplementedError

    def describe_batch(self, index: int) -> str:
        """What to tell a person about the micro-batch `index` whose loss was not a number: step and utterance ids."""
        return f"micro-batch {index}"

    @property
    def is_logging_step(self) -> bool:
        """Whether the update that is being computed is one that will be logged."""
        return (self.trainer.global_step + 1) % self.log_every_steps == 0 or self.trainer.global_step + 1 == self.trainer.max_steps

    def watch(self, index: int, loss: Tensor, *, audio_seconds: float = 0.0) -> None:
        """Remembers the loss of a micro-batch on the device, to find out later whether and where it stopped being a number.

        `audio_seconds` of the micro-batch count towards `audio_seconds_per_second`.
        """
        self._watched.append((index, loss.detach()))
        self._audio_seconds += audio_seconds * self.trainer.world_size

    @property
    def audio_seconds_per_second(self) -> float | None:
        """Audio trained on per second of training, over the whole run and all ranks; None before the first step."""
        return self._audio_seconds / self.stopwatch.seconds if self.stopwatch.seconds > 0 and self._audio_seconds > 0 else None

    def check_finite(self) -> None:
        """Raises HubertPretrainError naming the first micro-batch of this rank whose loss was NaN or infinite."""
        if not self._watched:
            return
        finite = torch.isfinite(torch.stack([loss for _, loss in self._watched])).tolist()
        indices = [index for index, _ in self._watched]
        self._watched.clear()
        if not all(finite):
            raise HubertPretrainError(
                f"the loss or its gradient is not a number in {self.describe_batch(indices[finite.index(False)])}; no later weights were "
                "saved. Listen to those utterances; lower the learning rate or use trainer.precision=32-true if they are fine"
            )

    # -- Lightning's hooks --------------------------------------------------------------------------------------------------------

    def configure_optimizers(self) -> Any:
        """AdamW with the schedule, stepped after every update."""
        values = self.optimisation
        fused = self.trainer.precision != "16-mixed"
        optimizer = adamw(
            self.parameters(),
            learning_rate=values.learning_rate,
            betas=values.betas,
            eps=values.eps,
            weight_decay=values.weight_decay,
            fused=fused,
        )
        return with_schedule(optimizer, values.factor)

    def configure_gradient_clipping(self, optimizer: Any, gradient_clip_val: Any = None, gradient_clip_algorithm: Any = None) -> None:
        """Clips by the global norm and keeps the norm, on the device, for the log."""
        limit = self.optimisation.clip_norm
        norm = torch.nn.utils.clip_grad_norm_(self.parameters(), limit if limit > 0 else float("inf"), foreach=True)
        self._grad_norm = norm.detach()
        if self._watched and self.trainer.precision != "16-mixed":
            # Under fp16 an infinite gradient only makes the scaler skip this update; anywhere else it would spoil the weights.
            self.watch(self._watched[-1][0], norm)

    def on_train_start(self) -> None:
        """The clock runs while it trains."""
        self.stopwatch.start()
        self._clocked = self.stopwatch.seconds
        self._first_step = self.trainer.global_step

    def on_validation_start(self) -> None:
        """Validation is not training time. A run whose loss is not a number ends here at the latest."""
        self.check_finite()
        self.stopwatch.stop()

    def on_validation_end(self) -> None:
        """Back to training."""
        if self.trainer.state.fn == "fit":
            self.stopwatch.start()

    def on_train_end(self) -> None:
        """Stops the clock."""
        self.check_finite()
        self.stopwatch.stop()

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Logs after the updates that are multiples of `log_every_steps`, and after the last."""
        step = self.trainer.global_step
        stepped = (batch_idx + 1) % self.trainer.accumulate_grad_batches == 0
        if not stepped or (step % self.log_every_steps and step != self.trainer.max_steps):
            return
        self.check_finite()
        seconds, self._clocked = self.stopwatch.seconds - self._clocked, self.stopwatch.seconds
        steps, self._first_step = step - self._first_step, step
        values = self.summarise(self.meter.read(self.device), steps, seconds)
        values["lr"] = self.trainer.optimizers[0].param_groups[0]["lr"]
        if self._grad_norm is not None:
            values["gradient_norm"] = float(self._grad_norm)
        report(self.trainer, step, values, shown=self.shown)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Never keeps weights that a NaN has reached."""
        self.check_finite()
        checkpoint["training_seconds"] = self.stopwatch.seconds
        checkpoint["audio_seconds"] = self._audio_seconds

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Training time counts over interruptions."""
        self.stopwatch = Stopwatch(float(checkpoint["training_seconds"]))
        self._audio_seconds = float(checkpoint["audio_seconds"])
