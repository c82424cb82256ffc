"""The numbers of a CPU's other instruction sets: oneDNN chooses kernels by them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

FOLDER = Path(__file__).resolve().parent
FILES = ["test_conv_encoder.py", "test_heads.py", "test_attention.py", "test_precision.py"]


@pytest.mark.parametrize("instructions", ["AVX2", "AVX512_CORE_BF16"])
def test_the_tests_of_the_network_pass(instructions: str) -> None:
    """As the most that oneDNN may use; a CPU without them uses what it has. Graphs of a compiler
    do not depend on it.
    """
    words = ["-q", "-p", "no:cacheprovider", "-m", "not slow", "-k", "not compiler_sees"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *words, *FILES],
        cwd=FOLDER,
        env={**os.environ, "ONEDNN_MAX_CPU_ISA": instructions, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    assert " passed" in done.stdout
