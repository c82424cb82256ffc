"""A process that hangs ends by itself, with stacks; one that works does not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from hubert_pretrain.errors import EXIT_HANG

SCRIPT = """
import sys, time
from pathlib import Path
from types import SimpleNamespace
from hubert_pretrain.training.resilience.watchdog import Watchdog

watchdog = Watchdog(Path(sys.argv[1]), minutes=1 / 30)
watchdog.on_fit_start(None, None)

def a_step_that_never_ends():
    {hang}

for _ in range(10):  # two and a half seconds, which are more than one limit
    time.sleep(0.25)
    watchdog.on_train_batch_end(None, None, None, None, 0)
print("worked", flush=True)
a_step_that_never_ends()
"""
# Holds Python's lock: a regular expression that backtracks for ever.
HANGS = {"sleeps": "time.sleep(600)", "holds the lock": "import re; re.match('(a+)+b', 'a' * 60)"}


@pytest.mark.parametrize("how", HANGS)
def test_a_hang_ends_with_stacks(tmp_path: Path, how: str) -> None:
    command = [sys.executable, "-c", SCRIPT.replace("{hang}", HANGS[how]), str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.stdout == "worked\n"
    assert "a_step_that_never_ends" in result.stderr
    if how == "sleeps":
        assert result.returncode == EXIT_HANG
        assert "rank 0: no step for" in result.stderr
        assert "a_step_that_never_ends" in (tmp_path / "hang-rank0.txt").read_text()
    else:
        assert result.returncode != 0
