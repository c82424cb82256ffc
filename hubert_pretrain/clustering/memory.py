"""How much memory k-means may use: the budget of `clustering.max_memory_gb`, shared out."""

from __future__ import annotations

import os
import resource
import sys
from pathlib import Path

WORKING_BYTES = 250_000_000
"""For chunks, their scores and products, and the inner products of the start."""


def sample_bytes(budget: int) -> int:
    """For the sample that k-means starts on. A matter of the budget alone, because what comes out depends on it."""
    return budget // 4


def frame_bytes(budget: int) -> int:
    """For frames, beside the sample and what this process holds already. What does not fit lies on the disk; the result is the same."""
    return max(0, budget - resident_bytes() - sample_bytes(budget) - WORKING_BYTES)


def resident_bytes() -> int:
    """Memory that this process holds now (where the system does not say: that it ever held)."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return peak_bytes()


def peak_bytes() -> int:
    """The most memory that this process ever held."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
