"""Processes of one machine that form a group, as torchrun starts them, without its agent."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TIMEOUT_SECONDS = 300
LAUNCHER = """
import json, os, runpy, sys, traceback
import lightning, torch
import hubert_pretrain.stages.pretrain
from lightning_utilities.core.rank_zero import rank_zero_only

program, ranks = sys.argv[1], json.loads(sys.argv[2])
children = {}
for number, (environment, log) in enumerate(ranks):
    pid = os.fork()
    if pid:
        children[pid] = number
        continue
    code = 1
    try:
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, 1)
        os.dup2(file, 2)
        os.environ.update(environment)
        rank_zero_only.rank = number
        sys.argv = [program, *sys.argv[3:]]
        runpy.run_path(program, run_name="__main__")
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
while children:
    pid, status = os.wait()
    number = children.pop(pid)
    if code := os.waitstatus_to_exitcode(status):
        sys.exit(f"rank {number}: exit code {code}")
"""
"""Imports once what every rank needs, and forks the ranks: most of their processor time would be
these imports. Ends with the first rank that fails.
"""


class Ranks:
    """Ranks that run one program, on one or several "nodes"."""

    def __init__(
        self, program: str, folder: Path, *arguments: str, world_size: int = 2, nodes: int = 1
    ) -> None:
        """
        Args:
            folder: gets the program and a log of each rank.
            arguments: of the program.
        """
        path = folder / "program.py"
        path.write_text(program)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        per_node = world_size // nodes
        everyone = {
            "TORCHELASTIC_RUN_ID": "test",
            "WORLD_SIZE": world_size,
            "LOCAL_WORLD_SIZE": per_node,
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
        }
        self.logs = [folder / f"{rank}.log" for rank in range(world_size)]
        ranks = []
        for rank, log in enumerate(self.logs):
            node, local_rank = divmod(rank, per_node)
            own = {"RANK": rank, "LOCAL_RANK": local_rank, "GROUP_RANK": node}
            environment = {name: str(value) for name, value in (everyone | own).items()}
            ranks.append((environment, str(log)))
        self.launcher_log = folder / "launcher.log"
        with open(self.launcher_log, "w") as file:
            self.launcher = subprocess.Popen(
                [sys.executable, "-c", LAUNCHER, str(path), json.dumps(ranks), *arguments],
                env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def outputs(self, seconds: float = TIMEOUT_SECONDS) -> list[str]:
        """Output of each rank. Fails when any rank did, or hangs."""
        try:
            code = self.launcher.wait(seconds)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.launcher.pid, signal.SIGKILL)
            self.launcher.wait()
        texts = [log.read_text() if log.exists() else "" for log in self.logs]
        assert code == 0, "\n".join(
            [*(each[-3000:] for each in texts), self.launcher_log.read_text()]
        )
        return texts


def outputs_of_two_ranks(program: str, folder: Path) -> list[str]:
    """`outputs_of_ranks` of two."""
    return outputs_of_ranks(program, folder, ranks=2)


def outputs_of_ranks(program: str, folder: Path, *, ranks: int) -> list[str]:
    """Output of each rank that runs a program, whose first argument is `folder`.

    Fails with the output of a rank that does not end with 0.
    """
    return Ranks(program, folder, str(folder), world_size=ranks).outputs()
