"""Processes of one run: rank, world size, shares of a range, reductions over ranks, waiting for
rank 0, and usable cores.

In one process every function of a group is a no-op.
"""

from __future__ import annotations

import gc
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import timedelta
from multiprocessing import parent_process
from typing import TYPE_CHECKING, Any

from hubert_pretrain.errors import ConfigError

if TYPE_CHECKING:
    import torch

PATIENCE = timedelta(days=1)
"""Longest wait of a rank of `group` for another one, which may read audio for hours."""

LEAVING_SECONDS = 10.0
"""Longest wait of a rank for its own unanswered messages when it leaves its group."""

_ALONE = ContextVar("alone", default=False)

_POLL_SECONDS = 0.1

_stores: list[Any] = []  # of every group of this process

_SRUN = "SLURM_STEP_NUM_TASKS"
"""Set by srun for its tasks. SLURM_NTASKS is also set in a batch script and in a shell of salloc,
which are one process.
"""


# -- ranks
# -------------------------------------------------------------------------------------------------


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


def local_rank() -> int:
    """This process's number on its machine, and so that of its GPU."""
    return int(os.environ.get("LOCAL_RANK") or os.environ.get("SLURM_LOCALID") or 0)


def world_size() -> int:
    """Number of processes in the group; 1 before torch.distributed is set up."""
    return int(dist.get_world_size()) if (dist := _initialised()) is not None else 1


def launched() -> int:
    """Number of processes that the launcher starts (torchrun, srun, or WORLD_SIZE and RANK set by
    hand), whether they form a group or not; 1 without a launcher.
    """
    stated = int(os.environ.get("WORLD_SIZE") or os.environ.get(_SRUN) or 1)
    return max(world_size(), rank() + 1, stated)


def launcher() -> tuple[int, int] | None:
    """(processes per node, nodes) when torchrun or srun started this process as one of several;
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


# -- shares
# -------------------------------------------------------------------------------------------------


def share(count: int, rank: int, world_size: int) -> range:
    """A rank's contiguous share of ``range(count)``: shares differ by at most one and cover the
    range once.
    """
    return range(count * rank // world_size, count * (rank + 1) // world_size)


def accumulation(micro_batches: int, devices: int, *, key: str = "") -> int:
    """Micro-batches of a step that each device accumulates.

    Raises ConfigError, beginning with the configuration `key` when it is given, unless the devices
    can share the micro-batches equally.
    """
    if micro_batches % devices:
        fitting = [str(n) for n in range(1, micro_batches + 1) if micro_batches % n == 0]
        raise ConfigError(
            f"{key and f'{key}: '}a step has {micro_batches} micro-batches, which {devices} "
            f"devices cannot share equally; use {', '.join(fitting)} devices, or another "
            "micro_batch_seconds"
        )
    return micro_batches // devices


def check_groups(size: int, per_node: int, nodes: int, *, key: str) -> None:
    """Raises ConfigError, beginning with the configuration `key`, unless the processes can be cut
    into groups of `size` that are parts of one node, or whole nodes.
    """

    def fits(number: int) -> bool:
        is_part = per_node % number == 0
        return is_part or (number % per_node == 0 and per_node * nodes % number == 0)

    if not fits(size):
        fitting = [str(number) for number in range(1, per_node * nodes + 1) if fits(number)]
        raise ConfigError(
            f"{key}={size}: {nodes} nodes of {per_node} processes cannot be cut into groups of "
            f"this size, each in one node or of whole nodes; use {', '.join(fitting)}"
        )


# -- a group of processes
# -------------------------------------------------------------------------------------------------


@contextmanager
def group() -> Iterator[None]:
    """Makes the processes of a launcher a group while it is open (torchrun, or any launcher that
    sets RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT). Does nothing in one process, or when they
    are a group already.

    Raises ConfigError when the launcher did not set where the processes meet.
    """
    if launched() == 1 or _initialised() is not None:
        yield
        return
    needed = ("WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    if missing := [name for name in needed if name not in os.environ]:
        raise ConfigError(
            f"{launched()} processes were started, but {', '.join(missing)} is not set; "
            "start them with torchrun, or with srun by hubert_pretrain/launch/job.sh"
        )
    import torch.distributed as dist

    # Where processes meet stays open until the first one ends, and each group has names of its own
    # there. Otherwise a process that begins the next group before the first one has left the last
    # would meet nobody, or read old addresses, and all would wait for ever.
    store, *_ = next(dist.rendezvous("env://", rank(), launched(), timeout=PATIENCE))
    _stores.append(store)
    dist.init_process_group(
        "gloo",
        store=dist.PrefixStore(f"group {len(_stores)}", store),
        rank=rank(),
        world_size=launched(),
        timeout=PATIENCE,
    )
    try:
        yield
    finally:
        leave_group()


def leave_group() -> None:
    """Destroys this process's group, whoever made it. A program of several processes calls it
    before it exits.

    gloo's threads take Python's lock when they free a tensor. While the interpreter ends, that
    aborts the process, whose exit code is then 134 ("terminate called without an active
    exception"). A rank that failed may have sent gradients that no other rank will answer; it waits
    for them no longer than LEAVING_SECONDS.
    """
    if (dist := _initialised()) is None:
        return
    gc.collect()  # a trainer refers to itself and to the group
    leaving = threading.Thread(target=dist.destroy_process_group, name="leaving", daemon=True)
    leaving.start()
    leaving.join(LEAVING_SECONDS)


@contextmanager
def alone() -> Iterator[None]:
    """Inside, this process counts as the only one for this module, whatever group it belongs to,
    because the other ranks may not take part.
    """
    token = _ALONE.set(True)
    try:
        yield
    finally:
        _ALONE.reset(token)


def sum_over_ranks(tensor: torch.Tensor) -> torch.Tensor:
    """The sum of ``tensor`` over all ranks, in place."""
    if (dist := _initialised()) is not None:
        dist.all_reduce(tensor)
    return tensor


def from_first(value: Any) -> Any:
    """Broadcast: the value of rank 0 on every rank; the others' values are ignored."""
    box = [value]
    if (dist := _initialised()) is not None:
        dist.broadcast_object_list(box, src=0)
    return box[0]


def from_all(value: Any) -> list[Any]:
    """The values of all ranks, in their order, on every rank."""
    values = [value] * world_size()
    if (dist := _initialised()) is not None:
        dist.all_gather_object(values, value)
    return values


def barrier() -> None:
    """Waits until every rank is here."""
    if (dist := _initialised()) is not None:
        dist.barrier()


def wait_for_first(is_ready: Callable[[], bool], patience_seconds: float) -> bool:
    """Waits until rank 0 has left a trace on disk, for processes that form no group.

    Args:
        is_ready: looks for the trace; called again every tenth of a second.
        patience_seconds: longest wait.

    Returns:
        False when the trace was not there in time.
    """
    deadline = time.monotonic() + patience_seconds
    while not is_ready():
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL_SECONDS)
    return True


def _initialised():  # type: ignore[no-untyped-def]
    """torch.distributed when it is in use, else None. Does not import torch when no one else
    did.
    """
    import sys

    if "torch" not in sys.modules or _ALONE.get():
        return None
    import torch.distributed as dist

    return dist if dist.is_available() and dist.is_initialized() else None


# -- this machine
# -------------------------------------------------------------------------------------------------


def end_with_parent() -> None:
    """Ends this process when the one that started it is gone. Else it would wait for work for ever
    after a kill.
    """

    def watch() -> None:
        parent = parent_process()
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def usable_cores() -> int:
    """Cores that this process may use (on a cluster fewer than the machine has)."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
