"""How much a training keeps, on disk and in memory: here, so that a plan can be made of it without
loading what trains.
"""

from __future__ import annotations

KEPT = 2
"""Checkpoints of a run that stay: the newest, and the one before it should the newest be
damaged.
"""

CACHE_BYTES = 512 * 1024**2
"""A split whose decoded audio fits into this much memory (2.3 hours) is decoded once per process
instead of once per epoch.
"""

SIGNALS = ("SIGTERM", "SIGUSR2")
"""What makes a training save and leave: what a scheduler sends before it kills, and the
warning of `launch=slurm`.
"""

MAX_SKIPPED_STEPS = 10
"""Steps in a row whose loss or gradient may be no number before a training ends."""
