"""Ranks that are slower than the others, and make all of them wait.

Ranks wait for each other in every step, so that the time of a step is the same on all. What tells
them apart is the time that a rank needs for itself: its forward passes, and its waiting for data.
(In a backward pass a rank also waits for the gradients of others. Where weights are sharded, it
waits in the forward pass too, while they are gathered; that time is taken out.)
"""

from __future__ import annotations

import logging
import socket
import statistics
import time
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

import torch
from torch import nn

from hubert_pretrain import distributed

logger = logging.getLogger(__name__)

SLOWER = 1.2
"""Factor above the median of the other ranks from which on a rank counts as slower."""
PATIENCE = 3
"""Logs in a row in which the same rank must be slower."""

Mark: TypeAlias = Any
"""A point in time: seconds, or an event in the queue of a GPU."""


class ForwardTimer:
    """Seconds of a rank's forward passes, without the time in which sharded weights are gathered.

    On a GPU the marks are events in its queue, which are read when they lie in the past: nobody
    waits for the device.
    """

    def __init__(self, gathered: Iterable[nn.Module] = ()) -> None:
        """`gathered`: modules whose weights are gathered in a hook before they run."""
        self._seconds = 0.0
        self._device = torch.device("cpu")
        self._since: Mark | None = None
        self._spans: deque[tuple[Mark, Mark]] = deque()
        self._paused = False
        self._hooks = []
        for module in gathered:
            # Around the hook that gathers.
            first = module.register_forward_pre_hook(lambda *_: self._pause(), prepend=True)
            last = module.register_forward_pre_hook(lambda *_: self._resume())
            self._hooks += [first, last]

    def start(self, device: torch.device) -> None:
        """Begin a forward pass on a device."""
        self._device = device
        self._since = self._mark()

    def stop(self) -> None:
        """End it."""
        if self._since is not None:
            self._spans.append((self._since, self._mark()))
            self._since = None
        self._add_up()

    def read(self) -> float:
        """The seconds since the last reading. Every mark must lie in the past, for which the caller
        has waited.
        """
        self._add_up()
        seconds = self._seconds
        self._seconds = 0.0
        return seconds

    def remove(self) -> None:
        """Remove the hooks from the modules."""
        for hook in self._hooks:
            hook.remove()

    def _pause(self) -> None:
        self._paused = self._since is not None
        if self._paused:
            self._spans.append((self._since, self._mark()))
            self._since = None

    def _resume(self) -> None:
        if self._paused:
            self._since = self._mark()
            self._paused = False

    def _mark(self) -> Mark:
        if self._device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return event

    def _add_up(self) -> None:
        """Take the spans that have ended off the queue."""
        while self._spans:
            first, last = self._spans[0]
            if isinstance(first, float):
                self._seconds += last - first
            elif last.query():
                self._seconds += first.elapsed_time(last) / 1000
            else:
                return
            self._spans.popleft()


class Stragglers:
    """Compares the ranks at each log. Every rank must make one, and call its methods."""

    def __init__(self, gathered: Iterable[nn.Module] = ()) -> None:
        """`gathered`: see `ForwardTimer`."""
        self.forward = ForwardTimer(gathered)
        self.comparison = Comparison(distributed.from_all(socket.gethostname()))

    def shares(self, *, steps: int, waited: float) -> dict[str, float]:
        """This rank's seconds per step since the last call, for a `Meter`: among those of the
        others, so that the sums over all ranks are the values of each.

        Args:
            steps: since the last call.
            waited: seconds in the loader since then.
        """
        own = {"forward": self.forward.read() / steps, "waiting": waited / steps}
        return {
            _name(kind, rank): seconds if rank == distributed.rank() else 0.0
            for kind, seconds in own.items()
            for rank in range(distributed.world_size())
        }

    def compare(self, step: int, sums: dict[str, float]) -> dict[str, float]:
        """The values to log; warns of a rank that is slower in several logs in a row.

        Args:
            step: that is logged.
            sums: of a `Meter`; `shares` are taken out.
        """
        forward, waiting = (
            [sums.pop(_name(kind, rank)) for rank in range(distributed.world_size())]
            for kind in ("forward", "waiting")
        )
        advice = self.comparison.advice(forward, waiting)
        if advice is not None and distributed.rank() == 0:
            logger.warning("step %d: %s", step, advice)
        return self.comparison.values(forward, waiting)


class Comparison:
    """Values and warnings from the seconds that each rank needs for itself per step."""

    def __init__(self, hosts: Sequence[str]) -> None:
        """`hosts`: of each rank."""
        self.hosts = list(hosts)
        self._in_a_row: Counter[int] = Counter()
        self._reported: set[int] = set()

    def values(self, forward: Sequence[float], waiting: Sequence[float]) -> dict[str, float]:
        """The values to log.

        Args:
            forward: seconds of forward passes, of each rank.
            waiting: seconds in its loader, of each rank.
        """
        own = _sums(forward, waiting)
        return {
            "health/rank_seconds/min": min(own),
            "health/rank_seconds/median": statistics.median(own),
            "health/rank_seconds/max": max(own),
            "health/slowest_rank": float(own.index(max(own))),
        }

    def advice(self, forward: Sequence[float], waiting: Sequence[float]) -> str | None:
        """A line about a rank that was slower than the others in this and the last calls, once per
        rank; None without one. Arguments as of `values`.
        """
        own = _sums(forward, waiting)
        slowest = own.index(max(own))
        others = statistics.median(own[:slowest] + own[slowest + 1 :])
        is_slower = own[slowest] > SLOWER * others
        in_a_row = self._in_a_row[slowest] + 1 if is_slower else 0
        self._in_a_row = Counter({slowest: in_a_row})
        if in_a_row < PATIENCE or slowest in self._reported:
            return None
        self._reported.add(slowest)
        return (
            f"rank {slowest} on {self.hosts[slowest]} needs {own[slowest]:.3g} s a step for itself "
            f"(forward passes {forward[slowest]:.3g} s, waiting for data {waiting[slowest]:.3g} "
            f"s), the others {others:.3g} s (median), in {PATIENCE} logs in a row; all ranks wait "
            "for it. Look for other processes, the clock and temperature of its GPU (nvidia-smi -q "
            "-d CLOCK,TEMPERATURE) and a slow disk there, or leave the machine out"
        )


def _name(kind: str, rank: int) -> str:
    return f"{kind}_seconds/{rank}"


def _sums(forward: Sequence[float], waiting: Sequence[float]) -> list[float]:
    return [first + second for first, second in zip(forward, waiting, strict=True)]
