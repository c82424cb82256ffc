"""One family of errors: what was found, what was expected, and the fix, on one line that the
command line prints as it is.
"""

from __future__ import annotations

EXIT_PREEMPTED = 75
"""Saved and left because of a signal or a time limit (EX_TEMPFAIL of sysexits.h): run the same
command again.
"""
EXIT_HANG = 76
"""Ended by the watchdog: no step for `trainer.hang_minutes`."""


class HubertPretrainError(Exception):
    """Something a user can mend. `run.py` prints the message as one line and exits with
    `exit_code`; a traceback would not help.
    """

    exit_code = 1


class ConfigError(HubertPretrainError):
    """The recipe or the command line asks for something that does not exist or cannot be."""

    exit_code = 2


class DataError(HubertPretrainError):
    """Audio, a transcript or a manifest is missing, unreadable or does not fit."""


class ArtefactError(HubertPretrainError):
    """A stage's output is missing, damaged or was made from something else."""


class Preempted(HubertPretrainError):
    """Training left at a step boundary, everything saved, because it was asked to. No failure: the
    same command goes on.
    """

    exit_code = EXIT_PREEMPTED


def did_you_mean(word: str, choices: list[str]) -> str:
    """``" (did you mean 'x'?)"`` for the closest of ``choices``, or an empty string."""
    import difflib

    close = difflib.get_close_matches(word, choices, n=1, cutoff=0.5)
    return f" (did you mean {close[0]!r}?)" if close else ""
