"""A step whose loss or gradient is not a number changes nothing: decided on the device, counted,
and named at the next log.

Nobody waits for the device: the fused AdamW reads the verdict there, and the host learns of it when
it reads the log's sums anyway.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hubert_pretrain import distributed
from hubert_pretrain.errors import HubertPretrainError

logger = logging.getLogger(__name__)

FILE = "skipped.jsonl"
IN_ALL = 10
"""A run may skip this many times more steps in all than in a row."""


@dataclass
class NonFiniteGuard:
    """The verdicts since the last reading, and how many steps were skipped before.

    Under fp16 an infinite gradient is the loss scaler's everyday business: it skips the step
    itself, and those are counted apart.
    """

    limit: int  # steps in a row that may be skipped
    describe: Callable[[int], str] = (
        "micro-batch {}".format
    )  # number of a micro-batch -> its step and the ids of its utterances
    scaled: bool = False  # whether there is a loss scaler
    folder: Path | None = None  # gets `skipped.jsonl`
    total: int = 0
    in_a_row: int = 0
    by_scaler: int = 0
    _losses: list[tuple[int, Tensor]] = field(
        default_factory=list
    )  # of micro-batches: (number, loss)
    _steps: list[tuple[int, Tensor, Tensor]] = field(
        default_factory=list
    )  # (step, (2,) bad loss and bad gradient, verdict)
    _begun: int = 0  # how many of the losses belong to earlier steps

    def note(self, index: int, loss: Tensor) -> None:
        """The loss of a micro-batch."""
        self._losses.append((index, loss.detach()))

    def judge(self, optimizer: torch.optim.Optimizer, step: int, gradient_norm: Tensor) -> None:
        """After the backward passes of a step: `optimizer` will leave the weights and its own state
        alone if any rank met a bad number.
        """
        losses = [loss for _, loss in self._losses[self._begun :]]
        self._begun = len(self._losses)
        bad_loss = (
            ~torch.isfinite(torch.stack(losses)).all()
            if losses
            else torch.zeros((), dtype=torch.bool, device=gradient_norm.device)
        )
        bad = torch.stack([bad_loss, ~torch.isfinite(gradient_norm)]).float()
        if distributed.world_size() > 1:
            # In the device's own queue. Gradients are summed over the ranks, so the norm agrees
            # already; losses do not.
            torch.distributed.all_reduce(bad, op=torch.distributed.ReduceOp.MAX)
        verdict = bad[0] if self.scaled else bad.max()
        self._steps.append((step, bad, verdict))
        if optimizer.defaults.get("fused"):
            optimizer.found_inf = bad.max()  # type: ignore[attr-defined]

    def read(self) -> None:
        """What happened since the last reading. Every rank must call it at the same step; it waits
        for the device.

        Raises HubertPretrainError when more than `limit` steps in a row, or ten times as many in
        all, were skipped.
        """
        if not self._steps:
            return
        bad = torch.stack([each for _, each, _ in self._steps]).bool().tolist()
        verdicts = torch.stack([verdict for _, _, verdict in self._steps]).bool().tolist()
        skipped = [
            step for (step, _, _), verdict in zip(self._steps, verdicts, strict=True) if verdict
        ]
        if self.scaled:
            self.by_scaler += sum(gradient and not loss for loss, gradient in bad)
        longest = self.in_a_row
        for verdict in verdicts:
            self.in_a_row = self.in_a_row + 1 if verdict else 0
            longest = max(longest, self.in_a_row)
        self.total += len(skipped)
        losses = self._losses
        self._losses = []
        self._steps = []
        self._begun = 0
        if not skipped:
            return
        names = self._names(losses)
        self._write(skipped, names)
        what = f"the loss or its gradient is not a number in {'; '.join(names[:3]) or f'step {skipped[0] + 1}'}"
        if longest > self.limit or self.total > self.limit * IN_ALL:
            raise HubertPretrainError(
                f"{what}: {longest} steps in a row, {self.total} in all, were skipped (trainer.max_skipped_steps={self.limit}); no weights "
                "were spoilt. Listen to those utterances; lower the learning rate or use trainer.precision=32-true if they are fine"
            )
        if distributed.rank() == 0:
            logger.warning(
                "%s: skipped %d steps, weights unchanged (%d skipped in all)",
                what,
                len(skipped),
                self.total,
            )

    def state(self) -> dict[str, int]:
        """For a checkpoint."""
        return {"total": self.total, "in_a_row": self.in_a_row, "by_scaler": self.by_scaler}

    def _names(self, losses: list[tuple[int, Tensor]]) -> list[str]:
        """The micro-batches of all ranks whose loss was bad; only called where all ranks know of a
        skipped step.
        """
        finite = (
            torch.isfinite(torch.stack([loss for _, loss in losses])).tolist() if losses else []
        )
        mine: list[str] = [
            self.describe(index)
            for (index, _), fine in zip(losses, finite, strict=True)
            if not fine
        ]
        if distributed.world_size() == 1:
            return mine
        box: list[Any] = [None] * distributed.world_size()
        torch.distributed.all_gather_object(box, mine)
        return [name for names in box for name in names]

    def _write(self, skipped: list[int], names: list[str]) -> None:
        if self.folder is None or distributed.rank() > 0:
            return
        row = {"steps": [step + 1 for step in skipped], "micro_batches": names}
        try:
            with open(self.folder / FILE, "a", encoding="utf-8") as file:
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
        except OSError as error:
            logger.warning("%s: %s; skipped: %s", self.folder / FILE, error, row)
