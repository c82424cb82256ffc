"""A process that ends with an error takes its loaders' workers with it, at once."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

HOLDS_ON = """
import sys
from torch.utils.data import Dataset
from hubert_pretrain.training.dataloading import loader

class Numbers(Dataset):
    def __getitem__(self, index):
        return index

batches = iter(loader(Numbers(), range(10**6), workers=2))
print(next(batches), *[worker.pid for worker in batches._workers], flush=True)
if sys.argv[1] == "error":
    raise RuntimeError("an error whose traceback holds the loader")
sys.exit(3)
"""


@pytest.mark.parametrize(("how", "code"), [("error", 1), ("exit", 3)])
def test_workers_that_nobody_ended_do_not_keep_their_process(
    how: str, code: int, tmp_path: Path
) -> None:
    """They ignore the signal that multiprocessing ends them with, and it would wait for them."""
    (tmp_path / "script.py").write_text(HOLDS_ON)
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    command = [sys.executable, str(tmp_path / "script.py"), how]
    done = subprocess.run(
        command, env=env, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == code, done.stderr
    first, *workers = map(int, done.stdout.split())
    assert first == 0
    assert len(workers) == 2
    end = time.monotonic() + 60
    while alive := [pid for pid in workers if Path(f"/proc/{pid}").exists()]:
        assert time.monotonic() < end, alive
        time.sleep(0.1)
