"""One process per stage: a file lock of the kernel plus a heartbeat.

The kernel releases its lock however the holder dies. Some network file systems lock only within one
machine (Lustre's `localflock`), others not at all. So the holder also writes its name into the file
and touches it every few seconds; a lock whose heartbeat is older than STALE_SECONDS is taken over.
Clocks of machines are never compared.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import platform
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from hubert_pretrain.errors import ArtefactError

PATIENCE_SECONDS = 5.0
"""Longest wait for the kernel's lock: the children of a killed process may still hold it."""
HEARTBEAT_SECONDS = 15.0
"""Time between two touches of the file by its holder."""
STALE_SECONDS = 4 * HEARTBEAT_SECONDS
"""Age of the last heartbeat at which a holder on another machine counts as dead."""
SETTLE_SECONDS = 1.0
"""Time that two processes which start at the same moment need to see each other's name, where the
kernel locks nothing."""
FREE = "free"
HELD = "held"
UNKNOWN = "unknown"
"""States of the kernel's lock: ours now, another's, or no locks on this file system."""
_NO_LOCKS = (
    errno.ENOSYS,
    errno.ENOTSUP,
    errno.EOPNOTSUPP,
    errno.ENOLCK,
    errno.EBADF,  # NFS, for a file opened for reading
)


@contextlib.contextmanager
def acquire(path: Path, what: str) -> Iterator[None]:
    """Hold the lock file `path` for this process.

    Args:
        path: the file.
        what: is locked, for messages, e.g. "stage 'it1/label'".

    Raises ArtefactError naming the process, machine and SLURM job that holds it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+", encoding="utf-8") as file:
        kernel = _wait_for_kernel(file, path, what)
        _wait_for_others(file, path, what)
        _write_owner(file, path, what, kernel)
        stop = threading.Event()
        beating = threading.Thread(target=_heartbeat, args=(path, stop), name="lock", daemon=True)
        beating.start()
        try:
            yield
        finally:
            stop.set()
            beating.join()
            file.truncate(0)


def holder(path: Path) -> str | None:
    """The holder of a lock file, e.g. "process 123 on node7, SLURM job 5"; None when it is free."""
    if not path.is_file():
        return None
    with open(path, encoding="utf-8") as file:
        busy = _try(file) == HELD
        who = _read(file)
    if busy:
        return describe(who)
    fresh = time.time() - path.stat().st_mtime < STALE_SECONDS
    return describe(who) if who and not _is_dead(who) and fresh else None


def describe(who: dict[str, Any]) -> str:
    """`process 123 on node7, SLURM job 5`."""
    if not who:
        return "another process"
    job = f", SLURM job {who['job']}" if who.get("job") else ""
    return f"process {who['process']} on {who['host']}{job}"


def _self() -> dict[str, Any]:
    return {
        "process": os.getpid(),
        "host": platform.node(),
        "job": os.environ.get("SLURM_JOB_ID", ""),
    }


def _wait_for_kernel(file: IO[str], path: Path, what: str) -> bool:
    """Wait until the kernel's lock is ours. Returns False where the kernel locks no files."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while (state := _try(file)) == HELD:
        if time.monotonic() > deadline:
            raise _busy(path, what, _read(file))
        time.sleep(0.1)
    return state == FREE


def _wait_for_others(file: IO[str], path: Path, what: str) -> None:
    """Wait until a holder that the file names, but the kernel does not know of, counts as dead."""
    who = _read(file)
    if not who or _is_dead(who):
        return
    before = path.stat().st_mtime_ns
    deadline = time.monotonic() + STALE_SECONDS
    print(
        f"{path}: left by {describe(who)}; waiting up to {STALE_SECONDS:.0f} s for a sign of life",
        flush=True,
    )
    while time.monotonic() < deadline:
        if not _read(file):
            return  # it was given back
        if path.stat().st_mtime_ns != before:
            raise _busy(path, what, who)
        time.sleep(min(1.0, STALE_SECONDS / 20))


def _write_owner(file: IO[str], path: Path, what: str, kernel: bool) -> None:
    """Write this process's name. Where the kernel does not lock, the process that wrote last
    holds it."""
    own = _self() | {"kernel": kernel}
    file.truncate(0)
    file.write(json.dumps(own))
    file.flush()
    if not kernel:
        time.sleep(SETTLE_SECONDS)
        if (who := _read(file)) != own:
            raise _busy(path, what, who)


def _is_dead(who: dict[str, Any]) -> bool:
    """True when a holder is certainly dead. The kernel has not reported it alive."""
    own = _self()
    if own["job"] and own["job"] == who.get("job"):
        return True  # this SLURM job, before it was requeued
    if who["host"] != own["host"]:
        return False
    if who.get("kernel", True):
        return True  # the kernel of this machine would know
    try:
        os.kill(int(who["process"]), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass
    return False


def _heartbeat(path: Path, stop: threading.Event) -> None:
    while not stop.wait(HEARTBEAT_SECONDS):
        with contextlib.suppress(OSError):
            os.utime(path)


def _read(file: IO[str]) -> dict[str, Any]:
    file.seek(0)
    try:
        who = json.loads(file.read())
    except ValueError:
        return {}
    return dict(who) if isinstance(who, dict) and {"process", "host"} <= set(who) else {}


def _try(file: IO[str]) -> str:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return HELD
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        return UNKNOWN
    return FREE


def _busy(path: Path, what: str, who: dict[str, Any]) -> ArtefactError:
    return ArtefactError(
        f"{path}: {what} is being run by another process ({describe(who)}); wait for it or end it"
    )
