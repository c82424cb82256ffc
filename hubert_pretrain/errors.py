"""Errors of this project. A message is one line that names what was found, what was expected, and
the fix; the command line prints it as it is.
"""

from __future__ import annotations

import re

EXIT_PREEMPTED = 75
"""Exit code after a signal or a time limit, with everything saved (EX_TEMPFAIL of sysexits.h): run
the same command again.
"""
EXIT_INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it."""
EXIT_HANG = 76
"""Exit code of the watchdog: no step for `trainer.hang_minutes`."""


class HubertPretrainError(Exception):
    """An error that the user can fix. `run.py` prints the message without a traceback and exits
    with `exit_code`.
    """

    exit_code = 1


class ConfigError(HubertPretrainError):
    """The recipe or the command line has an unknown key or a value that is not allowed."""

    exit_code = 2


class DataError(HubertPretrainError):
    """Audio, a transcript or a manifest is missing or unreadable, or they do not fit together."""


class ArtefactError(HubertPretrainError):
    """The output of a stage is missing, damaged, or was made from other inputs."""


class Preempted(HubertPretrainError):
    """Training was asked to stop, and stopped at a step boundary with everything saved. No failure:
    the same command continues.
    """

    exit_code = EXIT_PREEMPTED


class Interrupted(HubertPretrainError):
    """As `Preempted`, by Ctrl-C: no scheduler shall begin it again."""

    exit_code = EXIT_INTERRUPTED


def did_you_mean(word: str, choices: list[str]) -> str:
    """``" (did you mean 'x'?)"`` for the closest of ``choices``, or an empty string."""
    import difflib

    close = difflib.get_close_matches(word, choices, n=1, cutoff=0.5)
    return f" (did you mean {close[0]!r}?)" if close else ""


def hub_remark(reference: str) -> str:
    """A remark about a path that does not exist and may be meant as the name of a model on a hub,
    such as facebook/hubert-base-ls960; empty for any other.
    """
    if not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", reference):
        return ""
    if reference.endswith((".pt", ".pth", ".bin", ".ckpt", ".safetensors")):
        return ""
    folder = reference.partition("/")[2]
    return (
        "; nothing is downloaded: if this is the name of a model on a hub, run "
        f"`hf download {reference} --local-dir {folder}` and give that folder"
    )
