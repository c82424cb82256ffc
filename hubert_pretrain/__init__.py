"""Pretrain HuBERT: from unlabelled audio to checkpoints that others use."""

__version__ = "0.1.0"
