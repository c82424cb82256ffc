"""Checkpoints, preemption, hangs, non-finite steps, and failures explained in one line."""
