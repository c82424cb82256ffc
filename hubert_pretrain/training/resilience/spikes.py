"""Spikes of the gradient norm: updates far larger than those before, after which a loss may need
thousands of steps to recover.

As with non-finite numbers (nonfinite.py), the decision is made and stays on the device.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

WINDOW = 128
"""Updates whose median a gradient norm is compared with."""


class SpikeGuard:
    """Compares each gradient norm with the median of the last `WINDOW` ones; before there are so
    many, none is a spike.

    Norms of skipped updates count towards the median: where gradients have become larger for good,
    updates are made again after half a window.
    """

    def __init__(self, limit: float) -> None:
        """
        Args:
            limit: a norm above this many medians is a spike.
        """
        self.limit = limit
        self.total = 0
        """Updates that were skipped."""
        self._recent = torch.full((WINDOW,), torch.nan)  # oldest first

    def is_spike(self, norm: Tensor) -> Tensor:
        """True if the norm of this update is a spike: a scalar on the device of `norm`."""
        recent = self._recent.to(norm.device)
        is_full = ~recent[0].isnan()
        median = recent.sort().values[len(recent) // 2]
        finite = torch.isfinite(norm)
        spike = is_full & finite & (norm > self.limit * median)
        moved = torch.cat([recent[1:], norm.float().reshape(1)])
        self._recent = torch.where(finite, moved, recent)
        return spike

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"total": self.total, "recent": self._recent}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.total = int(state["total"])
        self._recent = state["recent"].clone()
