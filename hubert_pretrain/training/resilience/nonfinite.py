"""Skip optimiser steps with a non-finite loss or gradient, and those of spikes (spikes.py).

The decision is made on the device, where the fused AdamW reads it, so nobody waits for the device.
The host learns of it at the next log, when it reads the log's sums anyway; then the step is counted
and its utterances are named.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from hubert_pretrain import distributed
from hubert_pretrain.errors import HubertPretrainError
from hubert_pretrain.training.resilience.spikes import SpikeGuard

logger = logging.getLogger(__name__)

FILE = "skipped.jsonl"
IN_ALL = 10
"""A run may skip this many times more steps in all than in a row."""


class _Step(NamedTuple):
    """The decision about one step. Device tensors."""

    number: int
    bad: Tensor
    """(2,) or (3,): 1 where the loss, where the gradient norm of any rank is not finite; where the
    norm is a spike."""
    skipped: Tensor
    """Scalar: 1 where the step counts as skipped."""


@dataclass
class NonFiniteGuard:
    """Decisions since the last report, and the number of steps skipped before.

    Under fp16 an infinite gradient is routine for the loss scaler, which skips the step itself;
    those steps are counted apart.
    """

    limit: int  # steps in a row that may be skipped
    describe: Callable[[int], str] = "micro-batch {}".format  # number -> its step and utterances
    scaled: bool = False  # whether there is a loss scaler
    folder: Path | None = None  # gets `skipped.jsonl`
    spikes: SpikeGuard | None = None
    total: int = 0
    in_a_row: int = 0
    by_scaler: int = 0
    _losses: list[tuple[int, Tensor]] = field(default_factory=list)  # (number of micro-batch, loss)
    _steps: list[_Step] = field(default_factory=list)
    _decided: int = 0  # how many of the losses belong to steps that were decided

    def record(self, index: int, loss: Tensor) -> None:
        """Remember the loss of a micro-batch, on its device."""
        self._losses.append((index, loss.detach()))

    def decide(self, optimizer: torch.optim.Optimizer, step: int, gradient_norm: Tensor) -> None:
        """After the backward passes of a step: make `optimizer` leave the weights and its own state
        alone if any rank met a non-finite number or a spike.
        """
        losses = [loss for _, loss in self._losses[self._decided :]]
        self._decided = len(self._losses)
        if losses:
            bad_loss = ~torch.isfinite(torch.stack(losses)).all()
        else:
            bad_loss = torch.zeros((), dtype=torch.bool, device=gradient_norm.device)
        reasons = [bad_loss, ~torch.isfinite(gradient_norm)]
        if self.spikes is not None:
            reasons.append(self.spikes.is_spike(gradient_norm))
        bad = torch.stack(reasons).float()
        if distributed.world_size() > 1:
            # In the device's own queue. Gradients are summed over the ranks, so the norm agrees
            # already; losses do not.
            torch.distributed.all_reduce(bad, op=torch.distributed.ReduceOp.MAX)
        # With a loss scaler, a bad gradient alone is not counted here.
        skipped = bad[0] if self.scaled else bad[:2].max()
        self._steps.append(_Step(step, bad, skipped))
        if optimizer.defaults.get("fused"):
            optimizer.found_inf = bad.max()  # type: ignore[attr-defined]

    def report(self) -> None:
        """Count and log the steps that were skipped since the last report.

        Waits for the device. Every rank must call it at the same step. Raises HubertPretrainError
        when more than `limit` steps in a row, or ten times as many in all, were skipped.
        """
        if not self._steps:
            return
        bad = torch.stack([step.bad for step in self._steps]).bool().tolist()
        skipped = torch.stack([step.skipped for step in self._steps]).bool().tolist()
        numbers = [step.number for step in self._steps]
        losses = self._losses
        self._losses = []
        self._steps = []
        self._decided = 0

        if self.scaled:
            self.by_scaler += sum(gradient and not loss for loss, gradient, *_ in bad)
        self._report_spikes(
            [number for number, row in zip(numbers, bad, strict=True) if any(row[2:])]
        )
        longest = self.in_a_row
        for is_skipped in skipped:
            self.in_a_row = self.in_a_row + 1 if is_skipped else 0
            longest = max(longest, self.in_a_row)
        self.total += sum(skipped)

        skipped_steps = [
            number for number, is_skipped in zip(numbers, skipped, strict=True) if is_skipped
        ]
        if not skipped_steps:
            return
        names = self._bad_micro_batches(losses)
        self._write(skipped_steps, names)
        where = "; ".join(names[:3]) or f"step {skipped_steps[0] + 1}"
        what = f"the loss or its gradient is not a number in {where}"
        if longest > self.limit or self.total > self.limit * IN_ALL:
            raise HubertPretrainError(
                f"{what}: {longest} steps in a row, {self.total} in all, were skipped "
                f"(trainer.max_skipped_steps={self.limit}); no weights were spoilt. Listen to "
                "those utterances. If they are fine, lower the learning rate or use "
                "trainer.precision=32-true"
            )
        if distributed.rank() == 0:
            logger.warning(
                "%s: skipped %d steps, weights unchanged (%d skipped in all)",
                what,
                len(skipped_steps),
                self.total,
            )

    def _report_spikes(self, steps: list[int]) -> None:
        """Count the updates that were skipped because of a spike."""
        if self.spikes is None or not steps:
            return
        self.spikes.total += len(steps)
        if distributed.rank() == 0:
            logger.warning(
                "step %d: the gradient norm was above %g times its median: skipped %d updates (%d "
                "in all)",
                steps[-1] + 1,
                self.spikes.limit,
                len(steps),
                self.spikes.total,
            )

    def state(self) -> dict[str, int]:
        """Counters for a checkpoint."""
        return {"total": self.total, "in_a_row": self.in_a_row, "by_scaler": self.by_scaler}

    def load_state(self, state: dict[str, int]) -> None:
        """Restore the counters of a checkpoint; those that it lacks stay."""
        self.total = int(state.get("total", self.total))
        self.in_a_row = int(state.get("in_a_row", self.in_a_row))
        self.by_scaler = int(state.get("by_scaler", self.by_scaler))

    def _bad_micro_batches(self, losses: list[tuple[int, Tensor]]) -> list[str]:
        """Descriptions of the micro-batches of all ranks whose loss was not finite.

        A collective: called only where all ranks know of a skipped step.
        """
        own: list[str] = []
        if losses:
            finite = torch.isfinite(torch.stack([loss for _, loss in losses])).tolist()
            own = [
                self.describe(index)
                for (index, _), is_finite in zip(losses, finite, strict=True)
                if not is_finite
            ]
        return [name for names in distributed.from_all(own) for name in names]

    def _write(self, skipped: list[int], names: list[str]) -> None:
        if self.folder is None or distributed.rank() > 0:
            return
        row = {"steps": [step + 1 for step in skipped], "micro_batches": names}
        try:
            with open(self.folder / FILE, "a", encoding="utf-8") as file:
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
        except OSError as error:
            logger.warning("%s: %s; skipped: %s", self.folder / FILE, error, row)
