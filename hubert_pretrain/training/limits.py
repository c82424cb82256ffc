"""Memory and disk that a training uses, in a module that does not import torch: preflight reads
them too.
"""

from __future__ import annotations

from pathlib import Path

CACHE_BYTES = 512 * 1024**2
"""A split whose decoded audio fits into this much memory (2.3 hours) is decoded once per process
instead of once per epoch.
"""

READ_AHEAD = 4
"""Micro-batches that each worker of a loader reads ahead."""

SHM = Path("/dev/shm")
"""Folder in memory through which workers hand over their micro-batches."""
