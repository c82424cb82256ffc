"""Trial lists of speaker verification: `1 a.wav b.wav` (VoxCeleb) or `a b target` (Kaldi)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from hubert_pretrain.data.audio_files import EVERY_SUFFIX
from hubert_pretrain.errors import DataError
from hubert_pretrain.formats.text import nonblank_lines

_KINDS = {"1": True, "0": False, "target": True, "nontarget": False}
_MOST_SHOWN = 3


class Trial(NamedTuple):
    """Two utterances, and whether one person speaks in both."""

    first: str
    second: str
    is_target: bool


def read_trials(path: str | Path) -> list[Trial]:
    """The trials of a list. Raises DataError, with the line, for one that is none, and where one
    kind of trials is missing.
    """
    found = []
    for number, line in nonblank_lines(path):
        words = line.split()
        if len(words) == 3 and words[0] in ("0", "1"):
            found.append(Trial(words[1], words[2], _KINDS[words[0]]))
        elif len(words) == 3 and words[2] in _KINDS:
            found.append(Trial(words[0], words[1], _KINDS[words[2]]))
        else:
            raise DataError(
                f"{path}: line {number} is {line.strip()[:80]!r}, expected '1 first second' "
                "(0: two speakers), or 'first second target' (or nontarget); fix the line"
            )
    targets = sum(trial.is_target for trial in found)
    if not targets or targets == len(found):
        raise DataError(
            f"{path}: {targets} of {len(found)} trials are targets; expected trials of both kinds"
        )
    return found


def match_names(names: Iterable[str], ids: Sequence[str], path: str | Path) -> dict[str, int]:
    """Name in a trial list -> number of the utterance. They match, without an audio file's suffix,
    when they are equal, or when one is the end of the other in whole path parts.

    Raises DataError for names that match none, with their count, or several.
    """
    different = set(names)
    by_last = defaultdict(list)
    stems = [_stem(id_) for id_ in ids]
    for number, stem in enumerate(stems):
        by_last[stem.rpartition("/")[2]].append(number)
    found = {}
    unknown = []
    for name in sorted(different):
        stem = _stem(name)
        numbers = [
            number
            for number in by_last.get(stem.rpartition("/")[2], ())
            if f"/{stems[number]}".endswith(f"/{stem}") or f"/{stem}".endswith(f"/{stems[number]}")
        ]
        exact = [number for number in numbers if stems[number] == stem]
        numbers = exact if len(exact) == 1 else numbers
        if len(numbers) > 1:
            raise DataError(
                f"{path}: {name!r} may be {ids[numbers[0]]!r} or {ids[numbers[1]]!r}; name the "
                "utterances in full"
            )
        if numbers:
            found[name] = numbers[0]
        else:
            unknown.append(name)
    if unknown:
        shown = ", ".join(map(repr, unknown[:_MOST_SHOWN]))
        shown += ", ..." if len(unknown) > _MOST_SHOWN else ""
        raise DataError(
            f"{path}: {len(unknown)} of {len(different)} names are no utterances of the split "
            f"({shown}); its utterances are called such as {ids[0]!r}: give the split all of them, "
            "or take their trials out of the list"
        )
    return found


def _stem(name: str) -> str:
    suffix = next((each for each in EVERY_SUFFIX if name.lower().endswith(each)), "")
    return name.removesuffix(name[len(name) - len(suffix) :]) if suffix else name
