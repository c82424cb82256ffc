"""What every training shares: a quiet Lightning trainer, checkpoints that survive a kill,
schedules, loggers and progress.
"""
