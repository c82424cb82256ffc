"""Rank, world size, a rank's share of a range, sums over ranks. Every function is a no-op on one
process.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from hubert_pretrain.errors import ConfigError

if TYPE_CHECKING:
    import torch

PATIENCE = timedelta(days=1)
"""How long a rank of `group` waits for another: one may read audio for hours."""

_ALONE = ContextVar("alone", default=False)

_SRUN = "SLURM_STEP_NUM_TASKS"
"""Set by srun for its tasks. SLURM_NTASKS is also there in a batch script or a shell of salloc,
which are one process.
"""


def rank() -> int:
    """This process's number among all, from torch.distributed or, before it is set up, from the
    launcher's environment.
    """
    if _ALONE.get():
        return 0
    if (dist := _initialised()) is not None:
        return int(dist.get_rank())
    # Lightning's own launcher sets only LOCAL_RANK (and NODE_RANK) for the children it starts on
    # one node.
    return int(
        os.environ.get("RANK")
        or os.environ.get("SLURM_PROCID")
        or os.environ.get("LOCAL_RANK")
        or 0
    )


def world_size() -> int:
    """Number of processes in the group; 1 before torch.distributed is set up."""
    return int(dist.get_world_size()) if (dist := _initialised()) is not None else 1


def launched() -> int:
    """How many processes the launcher says it starts (torchrun, srun, or WORLD_SIZE and RANK set by
    hand), whether they form a group or not; 1 without a launcher."""
    return max(
        world_size(), rank() + 1, int(os.environ.get("WORLD_SIZE") or os.environ.get(_SRUN) or 1)
    )


def launcher() -> tuple[int, int] | None:
    """Processes per node and nodes, when torchrun or srun started this process as one of several;
    None otherwise.
    """
    environment = os.environ
    if "TORCHELASTIC_RUN_ID" in environment:
        processes = int(environment["WORLD_SIZE"])
        per_node = int(environment["LOCAL_WORLD_SIZE"])
        return per_node, processes // per_node
    if int(environment.get(_SRUN, 1)) > 1:
        nodes = int(environment["SLURM_STEP_NUM_NODES"])
        return int(environment[_SRUN]) // nodes, nodes
    return None


def share(count: int, rank: int, world_size: int) -> range:
    """A rank's contiguous share of ``range(count)``: shares differ by at most one and cover the
    range once.
    """
    return range(count * rank // world_size, count * (rank + 1) // world_size)


def sum_over_ranks(tensor: torch.Tensor) -> torch.Tensor:
    """The sum of ``tensor`` over all ranks, in place."""
    if (dist := _initialised()) is not None:
        dist.all_reduce(tensor)
    return tensor


def from_first(value: Any) -> Any:
    """What the first rank gives; the others' values are ignored."""
    box = [value]
    if (dist := _initialised()) is not None:
        dist.broadcast_object_list(box, src=0)
    return box[0]


@contextmanager
def group() -> Iterator[None]:
    """The processes that a launcher started (torchrun, or what else sets RANK, WORLD_SIZE,
    MASTER_ADDR and MASTER_PORT) form a group for as long as this is open. Nothing happens in one
    process, or when they are a group already.

    Raises ConfigError when the launcher did not say where to meet.
    """
    if launched() == 1 or _initialised() is not None:
        yield
        return
    if missing := [
        name for name in ("WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ
    ]:
        raise ConfigError(
            f"{launched()} processes were started, but {', '.join(missing)} is not set; "
            "start them with torchrun, or with srun by recipes/job.sh"
        )
    import torch.distributed as dist

    dist.init_process_group("gloo", rank=rank(), world_size=launched(), timeout=PATIENCE)
    try:
        yield
    finally:
        dist.destroy_process_group()


@contextmanager
def alone() -> Iterator[None]:
    """Inside, this process is the only one for this module, whatever group it belongs to: what
    others may do or not do meanwhile.
    """
    token = _ALONE.set(True)
    try:
        yield
    finally:
        _ALONE.reset(token)


def barrier() -> None:
    """Waits until every rank is here."""
    if (dist := _initialised()) is not None:
        dist.barrier()


def _initialised():  # type: ignore[no-untyped-def]
    """torch.distributed when it is in use, else None. Does not import torch when nothing else
    did.
    """
    import sys

    if "torch" not in sys.modules or _ALONE.get():
        return None
    import torch.distributed as dist

    return dist if dist.is_available() and dist.is_initialized() else None


def usable_cores() -> int:
    """Cores that this process may use (on a cluster fewer than the machine has)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
