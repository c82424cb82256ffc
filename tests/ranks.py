"""Processes of one machine that form a group, as torchrun starts them, without its agent."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TIMEOUT_SECONDS = 300


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
            "OMP_NUM_THREADS": 1,
            "PYTHONPATH": ROOT,
        }
        self.logs = [folder / f"{rank}.log" for rank in range(world_size)]
        self.processes = []
        for rank, log in enumerate(self.logs):
            node, local_rank = divmod(rank, per_node)
            own = {"RANK": rank, "LOCAL_RANK": local_rank, "GROUP_RANK": node}
            environment = {name: str(value) for name, value in (everyone | own).items()}
            with open(log, "w") as file:
                self.processes.append(
                    subprocess.Popen(
                        [sys.executable, str(path), *arguments],
                        env=os.environ | environment,
                        stdout=file,
                        stderr=subprocess.STDOUT,
                    )
                )

    def outputs(self, seconds: float = TIMEOUT_SECONDS) -> list[str]:
        """Output of each rank. Fails when any rank did, or hangs."""
        end = time.monotonic() + seconds
        try:
            for process, log in zip(self.processes, self.logs, strict=True):
                assert process.wait(max(1.0, end - time.monotonic())) == 0, log.read_text()[-3000:]
        finally:
            for process in self.processes:
                if process.poll() is None:
                    process.kill()
        return [log.read_text() for log in self.logs]


def outputs_of_two_ranks(program: str, folder: Path) -> list[str]:
    """`outputs_of_ranks` of two."""
    return outputs_of_ranks(program, folder, ranks=2)


def outputs_of_ranks(program: str, folder: Path, *, ranks: int) -> list[str]:
    """Output of each rank that runs a program, whose first argument is `folder`.

    Fails with the output of a rank that does not end with 0.
    """
    return Ranks(program, folder, str(folder), world_size=ranks).outputs()
