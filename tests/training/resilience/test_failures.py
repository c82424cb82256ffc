"""Failures that a user can fix, in one line with the fix."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from hubert_pretrain.errors import HubertPretrainError
from hubert_pretrain.training.resilience.failures import BatchShape, explain_failures

ROOT = Path(__file__).resolve().parents[3]


def trainer(batch: Any = None) -> Any:
    last = BatchShape()
    last.record(batch)
    return SimpleNamespace(callbacks=[last], global_step=41)


def test_out_of_memory_names_the_shape_and_half_of_it() -> None:
    batch = {"waveform": torch.empty(8, 160_000, device="meta")}
    message = (
        r"out of memory at step 42 in a forward pass of 8 x 160000 samples \(80\.0 s of audio\): "
        r"CUDA out of memory\. Tried to allocate 2\.00 GiB\. GPU 0 has a total capacity of 79\.11 "
        r"GiB of which 1\.25 GiB is free\. Try trainer\.gradient_checkpointing=true: .*resumes.*"
        r"=40 .*another run"
    )
    with pytest.raises(HubertPretrainError, match=message), explain_failures(trainer(batch)):
        raise torch.OutOfMemoryError(
            "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.11 "
            "GiB of which 1.25 GiB is free. Including non-PyTorch memory, this process has more"
        )


def test_out_of_memory_in_several_micro_batches_names_half_as_many() -> None:
    batch = {"waveform": torch.empty(24, 160_000, device="meta"), "micro_batches": 3}
    message = r"240\.0 s of audio.*Try trainer\.fuse=1, or trainer\.gradient_check.*resumes$"
    with pytest.raises(HubertPretrainError, match=message), explain_failures(trainer(batch)):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


def test_out_of_memory_elsewhere() -> None:
    with (
        pytest.raises(
            HubertPretrainError, match=r"out of memory at step 42 .*halve micro_batch_seconds"
        ),
        explain_failures(trainer()),
    ):
        raise torch.OutOfMemoryError("CUDA out of memory")


def test_a_killed_worker_is_named() -> None:
    with (
        pytest.raises(
            HubertPretrainError,
            match=r"worker \(process 4711\) died: DataLoader worker \(pid 4711\) is killed by "
            r"signal: Killed.*loader_workers",
        ),
        explain_failures(trainer()),
    ):
        raise RuntimeError("DataLoader worker (pid 4711) is killed by signal: Killed. ")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            "Caught RuntimeError in DataLoader worker process 0. RuntimeError: unable to allocate "
            "shared memory(shm) for file </torch_1_2>: No space left on device (28)",
            r"^/dev/shm.* is full.*--shm-size=8g or --ipc=host.*trainer\.loader_workers=0",
        ),
        (
            "DataLoader worker (pid 4711) is killed by signal: Bus error. It is possible that ...",
            r"^/dev/shm.* is full",
        ),
        (
            "The server socket has failed to listen on any local network address. port: 29511, "
            "useIpv6: false, code: -98, name: EADDRINUSE, message: address already in use",
            "^MASTER_PORT=29511 is in use on this machine; unset it, or",
        ),
    ],
)
def test_what_a_start_lacks(error: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASTER_PORT", "29511")
    with pytest.raises(HubertPretrainError, match=message), explain_failures(trainer()):
        raise RuntimeError(error)


def test_lightnings_exit_after_an_interrupt_is_an_interrupt() -> None:

    def interrupted() -> None:
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt:
            sys.exit(1)

    with pytest.raises(KeyboardInterrupt), explain_failures(trainer()):
        interrupted()
    with pytest.raises(SystemExit), explain_failures(trainer()):
        sys.exit(1)


WATCHED = """
import subprocess, sys, threading
from types import SimpleNamespace
from hubert_pretrain.training.resilience.failures import watch_ranks
end = sys.argv[1]
children = [
    subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    for command in (["sleep", "60"], ["bash", "-c", f"read; {end}"])
]
launcher = SimpleNamespace(procs=list(children))
watch_ranks(launcher)
print(launcher.procs, flush=True)
children[1].stdin.close()  # now it ends
try:
    threading.Event().wait(60)
finally:
    print("nobody ended it")
"""


@pytest.mark.parametrize(
    ("end", "how"),
    [("exit 3", "exit code 3, its message is above"), ("kill -9 $$", "killed by SIGKILL")],
)
def test_a_rank_that_ends_before_the_others_wait_for_it(end: str, how: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", WATCHED, end],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 1
    assert done.stdout == "[]\n", "Lightning's observer, which kills without a word, sees nobody"
    assert done.stderr == (
        f"error: rank 2 ended before the first step ({how}); the same command begins again\n"
    )


def test_other_errors_pass() -> None:
    with pytest.raises(RuntimeError, match="the size of tensor a"), explain_failures(trainer()):
        raise RuntimeError("the size of tensor a must match")
