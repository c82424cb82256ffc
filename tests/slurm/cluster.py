"""A real SLURM cluster of two nodes on this machine: munged, slurmctld and two slurmd of this user,
all of it in one folder.
"""

from __future__ import annotations

import getpass
import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

NEEDED = ("munged", "slurmctld", "slurmd", "sbatch", "srun")
CONF = """
ClusterName=test
SlurmctldHost=localhost
SlurmUser={user}
SlurmdUser={user}
SlurmctldPort={ports[0]}
AuthType=auth/munge
# A requeued job starts again after the credentials of its last start have expired: by default
# after 2 minutes.
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=1,bf_interval=1,sched_min_interval=0,batch_sched_delay=0
SlurmdParameters=config_overrides
ReturnToService=2
KillWait=10
MinJobAge=7200
NodeName=n1 NodeHostname=localhost NodeAddr=127.0.0.1 Port={ports[1]} CPUs=8 RealMemory=16000
NodeName=n2 NodeHostname=localhost NodeAddr=127.0.0.1 Port={ports[2]} CPUs=8 RealMemory=16000
PartitionName=main Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP
"""


def missing() -> str:
    """The programs that are not installed."""
    return ", ".join(name for name in NEEDED if which(name) is None)


def which(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin")


class Cluster:
    """Two nodes, n1 and n2, for as long as this is entered. Commands of SLURM find it by
    `environment`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf")}
        self._processes: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Cluster:
        folder = self.folder
        sockets = [socket.socket() for _ in range(3)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        ports = [each.getsockname()[1] for each in sockets]
        for each in sockets:
            each.close()
        for name in ("state", "spool-n1", "spool-n2"):
            (folder / name).mkdir()
        (folder / "slurm.conf").write_text(
            CONF.format(folder=folder, user=getpass.getuser(), ports=ports)
        )
        (folder / "munge.key").write_bytes(os.urandom(128))
        (folder / "munge.key").chmod(0o600)
        places = [
            f"--{kind}={folder}/munge.{kind.split('-')[0]}"
            for kind in ("key-file", "socket", "pid-file", "log-file", "seed-file")
        ]
        try:
            self._start("munged", "--foreground", "--force", *places)
            self._wait("munged", lambda: (folder / "munge.socket").exists())
            self._start("slurmctld", "-D")
            self._start("slurmd", "-D", "-N", "n1")
            self._start("slurmd", "-D", "-N", "n2")
            self._wait(
                "two idle nodes",
                lambda: self.ask("sinfo", "--noheader", "--format=%D %t").strip() == "2 idle",
            )
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        subprocess.run(
            ["scancel", "--full", "--user", getpass.getuser()],
            env=self.environment,
            capture_output=True,
            check=False,
        )
        for process in reversed(self._processes):
            process.send_signal(signal.SIGTERM)
        for process in self._processes:
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()

    def ask(self, *command: str) -> str:
        """The output of a command of SLURM; empty when it fails."""
        return subprocess.run(
            command, env=self.environment, capture_output=True, text=True, check=False
        ).stdout

    def state(self, job: str) -> str:
        return self.ask(
            "squeue", "--noheader", "--states=all", f"--jobs={job}", "--format=%T"
        ).strip()

    def wait_for(self, job: str, *states: str, seconds: float = 120) -> str:
        """Waits until a job is in one of these states."""
        self._wait(
            f"job {job} to be {' or '.join(states)}", lambda: self.state(job) in states, seconds
        )
        return self.state(job)

    def _start(self, *command: str) -> None:
        program = which(command[0])
        assert program is not None
        with open(self.folder / "daemons.log", "ab") as log:
            self._processes.append(
                subprocess.Popen(
                    [program, *command[1:]], env=self.environment, stdout=log, stderr=log
                )
            )

    def _wait(self, what: str, condition: object, seconds: float = 30) -> None:
        deadline = time.monotonic() + seconds
        while not condition():  # type: ignore[operator]
            if time.monotonic() > deadline:
                log = (self.folder / "daemons.log").read_text()[-2000:]
                raise TimeoutError(f"{what}: not after {seconds:g} s; {self.ask('squeue')} {log}")
            time.sleep(0.1)
