"""Shared by pretraining and fine-tuning: module, trainer, strategies, loggers, resilience."""
