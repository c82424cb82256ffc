"""The part of a LightningModule that pretraining and fine-tuning share: optimiser, clipping,
measuring without slowing the device down.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor

from hubert_pretrain import distributed
from hubert_pretrain.training.limits import MAX_SKIPPED_STEPS
from hubert_pretrain.training.loggers import report
from hubert_pretrain.training.optim import adamw, update_norm, with_schedule
from hubert_pretrain.training.progress import Stopwatch
from hubert_pretrain.training.resilience.nonfinite import NonFiniteGuard
from hubert_pretrain.training.strategies import full_tensor, shard
from hubert_pretrain.training.utilisation import memory_gb, peak_flops


@dataclass(frozen=True, kw_only=True)
class Optimisation:
    """How weights move."""

    learning_rate: float  # peak
    factor: Callable[[int], float]  # updates done -> share of the peak (training/optim.py)
    betas: Sequence[float] = (0.9, 0.98)
    eps: float = 1e-6
    weight_decay: float = 0.01
    clip_norm: float = 10.0  # global gradient norm; 0: no clipping


@dataclass
class Meter:
    """Sums that stay on the device until someone reads them: one transfer per logging step instead
    of one wait per step.
    """

    sums: dict[str, Tensor] = field(default_factory=dict)

    def add(self, where: Tensor | None = None, /, **values: Tensor | float) -> None:
        """Adds detached scalars to their sums; only if `where` is true, which stays on its
        device.
        """
        for name, value in values.items():
            value = (
                value.detach().float() if isinstance(value, Tensor) else torch.tensor(float(value))
            )
            if where is not None:
                value = torch.where(where, value, 0.0)
            self.sums[name] = self.sums[name] + value if name in self.sums else value

    def read(self, device: torch.device | None = None) -> dict[str, float]:
        """The sums over all ranks since the last reading, and starts again from 0. Every rank must
        call it with the same names.
        """
        if not self.sums:
            return {}
        target = device or next(iter(self.sums.values())).device
        total = torch.stack([value.to(target) for value in self.sums.values()]).double()
        names = list(self.sums)
        self.sums = {}
        return dict(zip(names, distributed.sum_over_ranks(total).tolist(), strict=True))


class TrainingModule(L.LightningModule):
    """Optimiser, schedule, clipping, the log every `log_every_steps` updates, and no update by a
    loss that is not a number.

    A subclass writes `training_step`, in which it calls `self.watch(...)` once per micro-batch, and
    `summarise`.
    """

    def __init__(
        self,
        *,
        optimisation: Optimisation,
        log_every_steps: int,
        shown: Sequence[str] = (),
        max_skipped_steps: int = MAX_SKIPPED_STEPS,
    ) -> None:
        super().__init__()
        self.optimisation = optimisation
        self.log_every_steps = log_every_steps
        self.shown = shown
        self.meter = Meter()
        self.stopwatch = Stopwatch()
        self.skipping = NonFiniteGuard(max_skipped_steps, lambda index: self.describe_batch(index))
        self.validated: dict[str, float] = {}
        """What the last validation found, as it was logged."""
        self._clocked = 0.0
        self._audio_seconds = 0.0
        self._grad_norm: Tensor | None = None
        self._rate = 0.0  # of the last update
        # seconds without a micro-batch since the last log; when the last one was done
        self._waited = 0.0
        self._left = 0.0
        self._flops = 0.0  # of this rank, since the last log

    # -- for subclasses
    # -----------------------------------------------------------------------------------------------------------

    def summarise(self, sums: dict[str, float], steps: int, seconds: float) -> dict[str, float]:
        """Sums of the meter over the last `steps` updates, which took `seconds` -> the values to
        log.
        """
        raise NotImplementedError

    def health(self, step: int, values: dict[str, float]) -> dict[str, float]:
        """What else there is to log, once `values` are known. Runs on every rank."""
        return {}

    def describe_batch(self, index: int) -> str:
        """What to tell a person about the micro-batch `index` whose loss was not a number: step and
        utterance ids.
        """
        return f"micro-batch {index}"

    @property
    def is_logging_step(self) -> bool:
        """Whether the update that is being computed is one that will be logged."""
        return (
            self.trainer.global_step + 1
        ) % self.log_every_steps == 0 or self.trainer.global_step + 1 == self.trainer.max_steps

    def watch(
        self, index: int, loss: Tensor, *, audio_seconds: float = 0.0, flops: float = 0.0
    ) -> None:
        """Remembers the loss of a micro-batch on the device, to find out later whether and where it
        stopped being a number.

        `audio_seconds` of the micro-batch count towards `audio_seconds_per_second`, its operations
        towards the share of the peak.
        """
        self.skipping.note(index, loss)
        self._flops += flops
        self._audio_seconds += audio_seconds * self.trainer.world_size

    @property
    def audio_seconds_per_second(self) -> float | None:
        """Audio trained on per second of training, over the whole run and all ranks; None before
        the first step.
        """
        return (
            self._audio_seconds / self.stopwatch.seconds
            if self.stopwatch.seconds > 0 and self._audio_seconds > 0
            else None
        )

    # -- Lightning's hooks
    # --------------------------------------------------------------------------------------------------------

    def configure_model(self) -> None:
        """Under FSDP each rank keeps a part of the weights."""
        shard(self)

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

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: Any = None, gradient_clip_algorithm: Any = None
    ) -> None:
        """Clips by the global norm and keeps the norm, on the device, for the log."""
        limit = self.optimisation.clip_norm
        norm = torch.nn.utils.clip_grad_norm_(
            self.parameters(), limit if limit > 0 else float("inf"), foreach=True
        )
        self._grad_norm = full_tensor(norm.detach())
        self._rate = float(optimizer.param_groups[0]["lr"])
        self.skipping.judge(self.trainer.optimizers[0], self.trainer.global_step, self._grad_norm)

    def on_train_start(self) -> None:
        """The clock runs while it trains."""
        self.skipping.scaled, self.skipping.folder = (
            self.trainer.precision == "16-mixed",
            Path(self.trainer.default_root_dir),
        )
        self.stopwatch.start()
        self._clocked = self._left = self.stopwatch.seconds
        self._first_step = self.trainer.global_step

    def on_validation_start(self) -> None:
        """Validation is not training time."""
        self.skipping.read()
        self.stopwatch.stop()

    def on_validation_end(self) -> None:
        """Back to training."""
        if self.trainer.state.fn == "fit":
            self.stopwatch.start()

    def on_train_end(self) -> None:
        """Stops the clock."""
        self.skipping.read()
        self.stopwatch.stop()

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """The wait for this micro-batch is over."""
        self._waited += self.stopwatch.seconds - self._left

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Logs after the updates that are multiples of `log_every_steps`, and after the last."""
        step = self.trainer.global_step
        if (batch_idx + 1) % self.trainer.accumulate_grad_batches == 0 and (
            step % self.log_every_steps == 0 or step == self.trainer.max_steps
        ):
            self._log(step)
        self._left = self.stopwatch.seconds

    def _log(self, step: int) -> None:
        self.skipping.read()
        seconds, self._clocked = self.stopwatch.seconds - self._clocked, self.stopwatch.seconds
        steps = step - self._first_step
        self._first_step = step
        values = self.summarise(self.meter.read(self.device), steps, seconds)
        values["lr"] = self.trainer.optimizers[0].param_groups[0]["lr"]
        if self._grad_norm is not None:
            values["gradient_norm"] = float(self._grad_norm)
        if self.skipping.total:
            values["skipped_steps"] = self.skipping.total
        if self.skipping.scaled:
            values["scaler_skipped_steps"] = self.skipping.by_scaler
            values["loss_scale"] = float(self.trainer.scaler.get_scale())  # type: ignore[union-attr]
        values |= {
            "health/update_norm": update_norm(self.trainer.optimizers[0], self._rate),
            **self._usage(seconds),
        }
        values |= self.health(step, values)
        report(self.trainer, step, values, shown=self.shown)

    def _usage(self, seconds: float) -> dict[str, float]:
        """How well this rank's hardware was used since the last log."""
        waited, flops, self._waited, self._flops = self._waited, self._flops, 0.0, 0.0
        values = {
            "health/data_wait": waited / max(seconds, 1e-9),
            "health/memory_gb": memory_gb(self.device),
        }
        if flops:
            values["health/mfu"] = (
                flops / max(seconds, 1e-9) / peak_flops(self.device, str(self.trainer.precision))
            )
        return values

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """What a resumed run goes on counting."""
        self.skipping.read()
        checkpoint["skipped"] = self.skipping.state()
        checkpoint["training_seconds"] = self.stopwatch.seconds
        checkpoint["audio_seconds"] = self._audio_seconds

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Training time and skipped steps count over interruptions."""
        for name, value in checkpoint.get("skipped", {}).items():
            setattr(self.skipping, name, int(value))
        self.stopwatch = Stopwatch(float(checkpoint["training_seconds"]))
        self._audio_seconds = float(checkpoint["audio_seconds"])
