"""Commands of a wav.scp, understood as the path they decode. Nothing is ever executed."""

from __future__ import annotations

import os
import re
import shlex

from hubert_pretrain.errors import DataError

_FLAC_LETTERS = re.compile("-[cds]+")
_ALONE = {
    "flac": {"--stdout", "--decode", "--silent"},
    "cat": set[str](),
    "sph2pipe": {"-p"},
    "sox": {"-", "-R", "-V0", "-V1", "-q"},
    "ffmpeg": {"-", "pipe:1", "-nostdin", "-y", "-vn", "-hide_banner"},
}
"""Program -> words that change nothing that we do not do ourselves: mono, 16 kHz."""
_WITH_VALUE = {
    "sph2pipe": {"-f": "wav|rif"},
    "sox": {"-t": "wav|flac|sph|mp3|ogg|opus", "-r": r"\d+k?", "-b": r"\d+", "-e": "[a-z-]+", "-c": "1", "rate": r"\d+k?"},
    "ffmpeg": {"-v": r"\w+", "-loglevel": r"\w+", "-f": "wav", "-ar": r"\d+", "-ac": "1", "-acodec": r"pcm_\w+", "-c:a": r"pcm_\w+"},
}
"""Program -> word that takes a value -> what the value may be."""
_QUOTED = re.compile(r"""'[^']*'|"[^"$`\\]*\"""")
_SHELL = re.compile(r"[;&|<>`$(){}\[\]*?~#!\\\n\"']")


def path_of_command(command: str, place: str) -> str:
    """The audio file that `command` (without its last "|") decodes to its output.

    >>> path_of_command("flac -c -d -s '/speech/a b.flac'", "wav.scp: line 1")
    '/speech/a b.flac'

    Raises DataError for every command but flac, sox, sph2pipe, ffmpeg and cat that do nothing else.
    """
    paths = None if _SHELL.search(_QUOTED.sub("", command)) else _paths(shlex.split(command))
    if paths is None or len(paths) != 1 or not paths[0]:
        raise DataError(
            f"{place}: is the command {command.strip()[:80]!r}, which would be code to execute; expected a path, or one of "
            "flac, sox, sph2pipe, ffmpeg and cat that only decodes a file: write the audio to files (wav-copy) and name those"
        )
    return paths[0]


def _paths(words: list[str]) -> list[str] | None:
    """The words that are no flag; None when there is one that we do not know."""
    program = os.path.basename(words[0]) if words else ""
    if program not in _ALONE:
        return None
    paths, rest = [], iter(words[1:])
    for word in rest:
        values = _WITH_VALUE.get(program, {})
        if program == "ffmpeg" and word == "-i":
            paths.append(next(rest, ""))
        elif word in values:
            if not re.fullmatch(values[word], next(rest, "")):
                return None
        elif word in _ALONE[program] or (program == "flac" and _FLAC_LETTERS.fullmatch(word)):
            continue
        elif word.startswith("-") or program == "ffmpeg":
            return None
        else:
            paths.append(word)
    return paths


def command_for(path: str) -> str:
    """What stands in a wav.scp for a file: its path where Kaldi reads it itself, else the usual command that decodes it."""
    if path.lower().endswith(".wav"):
        return path
    decoder = "flac -c -d -s {} |" if path.lower().endswith(".flac") else "ffmpeg -v error -i {} -f wav -ac 1 - |"
    return decoder.format(shlex.quote(path))
