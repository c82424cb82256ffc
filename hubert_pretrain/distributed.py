"""Rank, world size, a rank's share of a range, sums over ranks. Every function is a no-op on one process."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def rank() -> int:
    """This process's number among all, from torch.distributed or, before it is set up, from the launcher's environment."""
    if (dist := _initialised()) is not None:
        return int(dist.get_rank())
    # Lightning's own launcher sets only LOCAL_RANK (and NODE_RANK) for the children it starts on one node.
    return int(os.environ.get("RANK") or os.environ.get("SLURM_PROCID") or os.environ.get("LOCAL_RANK") or 0)


def world_size() -> int:
    """Number of processes in the group; 1 before torch.distributed is set up."""
    return int(dist.get_world_size()) if (dist := _initialised()) is not None else 1


def share(count: int, rank: int, world_size: int) -> range:
    """A rank's contiguous share of ``range(count)``: shares differ by at most one and cover the range once."""
    return range(count * rank // world_size, count * (rank + 1) // world_size)


def sum_over_ranks(tensor: torch.Tensor) -> torch.Tensor:
    """The sum of ``tensor`` over all ranks, in place."""
    if (dist := _initialised()) is not None:
        dist.all_reduce(tensor)
    return tensor


def barrier() -> None:
    """Waits until every rank is here."""
    if (dist := _initialised()) is not None:
        dist.barrier()


def _initialised():  # type: ignore[no-untyped-def]
    """torch.distributed when it is in use, else None. Does not import torch when nothing else did."""
    import sys

    if "torch" not in sys.modules:
        return None
    import torch.distributed as dist

    return dist if dist.is_available() and dist.is_initialized() else None
