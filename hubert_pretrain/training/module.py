"""TrainingModule: the part of a LightningModule that pretraining and fine-tuning share (optimiser,
clipping, layer drop, logging without slowing the device down).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning as L
import torch
from torch import Tensor, nn

from hubert_pretrain import distributed
from hubert_pretrain.errors import ConfigError
from hubert_pretrain.model.checkpoint import describe
from hubert_pretrain.model.half_precision import DTYPES, HalfCopies
from hubert_pretrain.model.heads import Head
from hubert_pretrain.model.hubert import ActiveLayers, Hubert
from hubert_pretrain.seeds import generator
from hubert_pretrain.training.loggers import report
from hubert_pretrain.training.optim import (
    AdamWSettings,
    Schedule,
    adamw,
    follow,
    undecayed_parameters,
    update_norm,
    with_schedule,
)
from hubert_pretrain.training.progress import Stopwatch
from hubert_pretrain.training.resilience.nonfinite import NonFiniteGuard
from hubert_pretrain.training.resilience.spikes import SpikeGuard
from hubert_pretrain.training.stragglers import Stragglers
from hubert_pretrain.training.strategies import DDP, FSDP, full_tensor, shard, sharded_parts
from hubert_pretrain.training.utilisation import memory_gb, peak_flops

if TYPE_CHECKING:
    from hubert_pretrain.config.schema import TrainerConfig, TrainingConfig


@dataclass(frozen=True, kw_only=True)
class Monitor:
    """Logging interval, and limits before a training warns or ends."""

    log_every_steps: int
    max_skipped_steps: int  # in a row, with a non-finite loss or gradient
    warmup_steps: int = 0  # no "nothing learnt" alarm before this step

    @staticmethod
    def of(config: TrainingConfig, trainer: TrainerConfig) -> Monitor:
        """The settings of a training stage."""
        return Monitor(
            log_every_steps=config.log_every_steps,
            warmup_steps=round(config.steps * config.warmup_fraction),
            max_skipped_steps=trainer.max_skipped_steps,
        )


class Meter:
    """Sums that stay where they are until they are read: scalars of the device in one vector there,
    Python numbers in Python. So a step neither copies a number to the device nor waits for it.
    """

    def __init__(self) -> None:
        # Names of the scalars that were added together -> the vector of their sums.
        self._on_device: dict[tuple[str, ...], Tensor] = {}
        self._on_host: dict[str, float] = {}

    def add(self, where: Tensor | None = None, /, **values: Tensor | float) -> None:
        """Add detached scalars to their sums; only if `where` is true, which stays on its
        device.
        """
        scalars: dict[str, Tensor] = {}
        for name, value in values.items():
            if isinstance(value, Tensor):
                scalars[name] = value.detach().float()
            elif where is not None:
                scalars[name] = where * float(value)
            else:
                self._on_host[name] = self._on_host.get(name, 0.0) + value
        if not scalars:
            return
        names = tuple(scalars)
        vector = torch.stack(list(scalars.values()))
        if where is not None:
            # Not a product: a loss that is infinite or NaN would stay so.
            vector = torch.where(where, vector, 0.0)
        before = self._on_device.get(names)
        self._on_device[names] = vector if before is None else before + vector

    def read(self, device: torch.device) -> dict[str, float]:
        """Return the sums over all ranks since the last reading, and reset them to 0.

        Every rank must call it with the same names, in any order.

        device: of the sum over the ranks.
        """
        sums: dict[str, Tensor | float] = dict(self._on_host)
        for names, vector in self._on_device.items():
            for name, value in zip(names, vector.double().unbind(), strict=True):
                sums[name] = value + sums.get(name, 0.0)
        self._on_device = {}
        self._on_host = {}
        if not sums:
            return {}
        ordered = sorted(sums)
        total = torch.stack(
            [torch.as_tensor(sums[name], dtype=torch.float64, device=device) for name in ordered]
        )
        return dict(zip(ordered, distributed.sum_over_ranks(total).tolist(), strict=True))


def direction(name: str, directions: Mapping[str, bool], kind: str) -> bool:
    """`directions[kind]`, for the value `name` of the valid split: True when higher is better.

    Raises ConfigError when it is not stated.
    """
    if not name.startswith("valid/") or kind not in directions:
        known = ", ".join(f"valid/{each}" for each in directions)
        raise ConfigError(
            f"keep_best={name}: nothing states whether a high or a low value is better; expected "
            f"one of {known}"
        )
    return directions[kind]


class TrainingModule(L.LightningModule):
    """Optimiser, schedule, clipping, layer drop, a log every `log_every_steps` updates, and no
    update by a non-finite loss or gradient.

    A subclass writes `training_step`, in which it calls `self.watch(...)` once per micro-batch, and
    `summarise`.
    """

    def __init__(
        self,
        model: Hubert,
        head: Head,
        *,
        seed: int,
        optimiser: AdamWSettings,
        schedule: Schedule,
        monitor: Monitor,
        describe_micro_batch: Callable[[int], str] = "micro-batch {}".format,
        shown: Sequence[str] = (),
    ) -> None:
        """
        Args:
            seed: of layer drop and dropout.
            describe_micro_batch: number of a micro-batch -> its step and the ids of its utterances,
                for messages.
            shown: names of the logged values that the progress display shows too; none: all.
        """
        super().__init__()
        self.model = model
        self.head = head
        self.seed = seed
        self.optimiser = optimiser
        self.schedule = schedule
        self.monitor = monitor
        self.shown = shown
        self.meter = Meter()
        self.stopwatch = Stopwatch()
        self.waiting = Stopwatch()
        """Runs while this process waits in its loader (dataloading.py)."""
        self.nonfinite = NonFiniteGuard(monitor.max_skipped_steps, describe_micro_batch)
        if optimiser.max_gradient_spike > 0:
            self.nonfinite.spikes = SpikeGuard(optimiser.max_gradient_spike)
        self.validated: dict[str, float] = {}
        """Values of the last validation, as they were logged."""
        self._stragglers: Stragglers | None = None  # of several ranks
        self._audio_seconds = 0.0  # over the whole run and all ranks
        self._half_copies: HalfCopies | None = None
        self._gradient_norm: Tensor | None = None
        self._rate = 0.0  # of the last update
        # At the last log: the step, the time, this rank's seconds in its loader. Since then: its
        # operations.
        self._logged_step = 0
        self._logged_seconds = 0.0
        self._waited_seconds = 0.0
        self._flops = 0.0

    # -- for subclasses
    # ----------------------------------------------------------------------------------------------

    def summarise(self, sums: dict[str, float], steps: int, seconds: float) -> dict[str, float]:
        """Sums of the meter over the last `steps` updates, which took `seconds` -> the values to
        log.
        """
        raise NotImplementedError

    def health(self, step: int, values: dict[str, float]) -> dict[str, float]:
        """Further values to log, once `values` are known. Runs on every rank."""
        return {}

    def higher_is_better(self, name: str) -> bool:
        """The direction of a value of `validated`, for `keep_best`.

        Raises ConfigError for a name whose direction nobody stated.
        """
        directions = {"loss": False, "accuracy": True}
        return direction(name, directions, name.removeprefix("valid/").split("/")[0])

    def frozen_parts(self, step: int) -> list[nn.Module]:
        """Parts that have no gradients at a step; the same on every rank."""
        return []

    def rates(self) -> Mapping[nn.Parameter, float]:
        """Peak rates of parameters that do not learn with that of the optimiser: here none."""
        return {}

    def active_layers(self, units: range, rows: int) -> ActiveLayers | None:
        """Layers that run in a forward pass of some micro-batches, `rows` rows in all; None: all.

        Each micro-batch draws for itself, whoever computes it and together with which others. A
        layer that is dropped is computed all the same, so that every parameter has a gradient in
        every pass, and ranks need not agree on those without one.
        """
        config = self.model.config
        if config.layerdrop == 0:
            return None
        draws = [generator(self.seed, "layerdrop", unit) for unit in units]
        keeps = zip(
            *(draw.random(config.num_hidden_layers) >= config.layerdrop for draw in draws),
            strict=True,
        )
        return [all(keep) or self._running_rows(keep, rows) for keep in keeps]

    def _running_rows(self, keep: Sequence[bool], rows: int) -> Tensor:
        """(rows,) bool, from one bool per micro-batch. Nothing is copied to the device."""
        running = torch.zeros(len(keep), rows // len(keep), dtype=torch.bool, device=self.device)
        for unit, runs in enumerate(keep):
            if runs:
                running[unit].fill_(True)
        return running.flatten()

    @property
    def is_logging_step(self) -> bool:
        """True if the update that is being computed will be logged."""
        return self._is_logged(self.trainer.global_step + 1)

    def watch(
        self, index: int, loss: Tensor, *, audio_seconds: float = 0.0, flops: float = 0.0
    ) -> None:
        """Count a micro-batch.

        Args:
            index: its number.
            loss: stays on the device, to find out later whether and where it was not finite.
            audio_seconds: count towards `audio_seconds_per_second`.
            flops: operations; count towards `health/mfu`.
        """
        self.nonfinite.record(index, loss)
        self._flops += flops
        self._audio_seconds += audio_seconds * self.trainer.world_size

    @property
    def audio_seconds_per_second(self) -> float | None:
        """Audio trained on per second of training, over the whole run and all ranks; None before
        the first step.
        """
        if self.stopwatch.seconds == 0 or self._audio_seconds == 0:
            return None
        return self._audio_seconds / self.stopwatch.seconds

    # -- Lightning's hooks
    # ----------------------------------------------------------------------------------------------

    def configure_model(self) -> None:
        """Shard the weights over the ranks, under FSDP."""
        shard(self)

    def configure_optimizers(self) -> Any:
        """AdamW with the schedule, stepped after every update."""
        optimizer = adamw(
            self.parameters(),
            self.optimiser,
            undecayed=undecayed_parameters(self, self.optimiser),
            rates=self.rates(),
            fused=self.trainer.precision != "16-mixed",
        )
        if self.nonfinite.spikes is not None and not optimizer.defaults.get("fused"):
            raise ConfigError(
                f"max_gradient_spike={self.optimiser.max_gradient_spike:g} needs the fused AdamW, "
                "which there is on CPUs and NVIDIA GPUs in 32-true and bf16-mixed; set it to 0"
            )
        return with_schedule(optimizer, self.schedule)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Let the network use its weights themselves, which are about to change."""
        if self._half_copies is not None:
            self._half_copies.drop()

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: Any = None, gradient_clip_algorithm: Any = None
    ) -> None:
        """Clip by the global norm, which stays on the device for the log, and decide whether the
        update is skipped.
        """
        limit = self.optimiser.clip_norm if self.optimiser.clip_norm > 0 else float("inf")
        norm = torch.nn.utils.clip_grad_norm_(self.parameters(), limit, foreach=True)
        self._gradient_norm = full_tensor(norm.detach())
        self._rate = float(optimizer.param_groups[0]["lr"])
        self.nonfinite.decide(
            self.trainer.optimizers[0], self.trainer.global_step, self._gradient_norm
        )

    def on_train_start(self) -> None:
        """Start the clock, and set the rate of the schedule: that of a checkpoint may be another's,
        with fewer steps.
        """
        for each in self.trainer.lr_scheduler_configs:
            follow(each.scheduler)  # type: ignore[arg-type]
        self.nonfinite.scaled = self.trainer.precision == "16-mixed"
        self.nonfinite.folder = Path(self.trainer.default_root_dir)
        # FSDP gathers the weights in half precision.
        precision = str(self.trainer.precision)
        if precision in DTYPES and not isinstance(self.trainer.strategy, FSDP):
            self._half_copies = HalfCopies(self, DTYPES[precision], used_once=self.model)
        self.stopwatch.start()
        self._logged_seconds = self.stopwatch.seconds
        self._waited_seconds = self.waiting.seconds
        self._logged_step = self.trainer.global_step
        if distributed.world_size() > 1:
            self._stragglers = Stragglers(gathered=sharded_parts(self))

    def on_validation_start(self) -> None:
        """Pause the clock: validation is not training time."""
        self.nonfinite.report()
        self.stopwatch.stop()

    def on_validation_end(self) -> None:
        """Go on with the clock."""
        if self.trainer.state.fn == "fit":
            self.stopwatch.start()

    def on_train_end(self) -> None:
        """Stop the clock."""
        self.nonfinite.report()
        self.stopwatch.stop()
        if self._stragglers is not None:
            self._stragglers.forward.remove()

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Tell DDP which parts are frozen. Before the first micro-batch of a step, copy the weights
        in half precision. Begin to time the forward pass.
        """
        if isinstance(self.trainer.strategy, DDP):
            self.trainer.strategy.leave_out(self.frozen_parts(self.trainer.global_step))
        if self._half_copies is not None and batch_idx % self.trainer.accumulate_grad_batches == 0:
            self._half_copies.take()
        if self._stragglers is not None:
            self._stragglers.forward.start(self.device)

    def on_before_backward(self, loss: Tensor) -> None:
        """End the timing of the forward pass."""
        if self._stragglers is not None:
            self._stragglers.forward.stop()

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Log after the updates that are multiples of `log_every_steps`, and after the last."""
        is_update = (batch_idx + 1) % self.trainer.accumulate_grad_batches == 0
        if is_update and self._is_logged(self.trainer.global_step):
            self._log(self.trainer.global_step)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store the counters that a resumed run continues, and the description of the network with
        which others can read its weights.
        """
        checkpoint["network"] = describe(self.model, self.head)
        self.nonfinite.report()
        checkpoint["skipped"] = self.nonfinite.state()
        if self.nonfinite.spikes is not None:
            checkpoint["spikes"] = self.nonfinite.spikes.state()
        checkpoint["training_seconds"] = self.stopwatch.seconds
        checkpoint["audio_seconds"] = self._audio_seconds

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the counters of training time, audio and skipped steps."""
        self.nonfinite.load_state(checkpoint.get("skipped", {}))
        if self.nonfinite.spikes is not None:
            self.nonfinite.spikes.load_state(checkpoint["spikes"])
        self.stopwatch = Stopwatch(float(checkpoint["training_seconds"]))
        self._audio_seconds = float(checkpoint["audio_seconds"])

    def _is_logged(self, step: int) -> bool:
        return step % self.monitor.log_every_steps == 0 or step == self.trainer.max_steps

    def _log(self, step: int) -> None:
        self.nonfinite.report()
        seconds = self.stopwatch.seconds - self._logged_seconds
        steps = step - self._logged_step
        self._logged_seconds = self.stopwatch.seconds
        self._logged_step = step

        optimizer = self.trainer.optimizers[0]
        ranks: dict[str, float] = {}
        if self._stragglers is not None:
            waited = self.waiting.seconds - self._waited_seconds
            self.meter.add(**self._stragglers.shares(steps=max(1, steps), waited=waited))
        sums = self.meter.read(self.device)
        if self._stragglers is not None:
            ranks = self._stragglers.compare(step, sums)
        values = self.summarise(sums, steps, seconds) | ranks
        values["lr"] = optimizer.param_groups[0]["lr"]
        if self._gradient_norm is not None:
            values["gradient_norm"] = float(self._gradient_norm)
        if self.nonfinite.total:
            values["skipped_steps"] = self.nonfinite.total
        if self.nonfinite.spikes is not None:
            values["spike_skipped_steps"] = self.nonfinite.spikes.total
        if self.nonfinite.scaled:
            values["scaler_skipped_steps"] = self.nonfinite.by_scaler
            scaler: Any = self.trainer.scaler
            values["loss_scale"] = float(scaler.get_scale())
        values["health/update_norm"] = update_norm(optimizer, self._rate)
        values |= self._utilisation(seconds)
        values |= self.health(step, values)
        report(self.trainer, step, values, shown=self.shown)

    def _utilisation(self, seconds: float) -> dict[str, float]:
        """Use of this rank's hardware since the last log; resets the counters."""
        elapsed = max(seconds, 1e-9)
        values = {
            "health/data_wait": (self.waiting.seconds - self._waited_seconds) / elapsed,
            "health/memory_gb": memory_gb(self.device),
        }
        if self._flops:
            peak = peak_flops(self.device, str(self.trainer.precision))
            values["health/mfu"] = self._flops / elapsed / peak
        self._waited_seconds = self.waiting.seconds
        self._flops = 0.0
        return values
