"""Lists of alignments: CTM (words or phones of many utterances, a line each), and LibriSpeech's
`.alignment.txt` (an utterance each).

Such a list may be as long as its corpus, so it is not kept: `spans` finds where each utterance
stands, and only that is read again.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from hubert_pretrain.errors import DataError
from hubert_pretrain.formats.intervals import Interval
from hubert_pretrain.formats.text import filled_lines, number_of, seconds_to_samples

_POSITION = re.compile(r"_[BIES]$")
"""Kaldi marks where in its word a phone stands: AH_B, AH_I, AH_E, AH_S."""
_QUOTED = re.compile(r'(\S+)\s+"([^"]*)"\s+"([^"]*)"')


def spans(path: Path) -> Iterator[tuple[str, int, int]]:
    """(utterance, first byte, number of bytes) of each utterance of a list, in the order of the
    file.

    Raises DataError when the lines of an utterance do not stand together, or the file is not UTF-8.
    """
    seen: set[int] = set()
    current = ""
    start = 0
    end = 0
    with open(path, "rb") as file:
        for number, raw in enumerate(file, start=1):
            id = _first_word(raw, f"{path}: line {number}")
            if id and id != current:
                if hash(id) in seen:
                    raise DataError(
                        f"{path}: line {number} comes back to utterance {id!r}; sort the file, so that its lines stand together"
                    )
                if current:
                    yield current, start, end - start
                seen.add(hash(id))
                current = id
                start = end
            end += len(raw)
    if current:
        yield current, start, end - start


def _first_word(raw: bytes, place: str) -> str:
    words = raw.removeprefix(b"\xef\xbb\xbf").split(maxsplit=1)
    if not words or words[0].startswith(b";;"):
        return ""
    try:
        return words[0].decode()
    except UnicodeDecodeError as error:
        raise DataError(f"{place} is no UTF-8 text; save the file as UTF-8") from error


def read_span(path: Path, start: int, length: int) -> list[str]:
    """The lines of one utterance."""
    with open(path, "rb") as file:
        file.seek(start)
        raw = file.read(length)
    try:
        return [
            line.strip()
            for line in raw.decode("utf-8-sig").split("\n")
            if line.strip() and not line.startswith(";;")
        ]
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: byte {start + error.start} is no UTF-8 text; save the file as UTF-8"
        ) from error


def ctm_intervals(lines: list[str], place: str, name: Callable[[str], str] = str) -> list[Interval]:
    """`utterance channel start duration label [confidence]` lines, times in seconds.

    Raises DataError for another number of fields or what is no number.
    """
    intervals = []
    for line in lines:
        fields = line.split()
        if len(fields) not in (5, 6):
            raise DataError(
                f"{place}: {line[:60]!r} has {len(fields)} fields, expected '<utterance> <channel> <start> <duration> <label>'"
            )
        begin = number_of(fields[2], place, "start")
        end = begin + number_of(fields[3], place, "duration")
        intervals.append((name(fields[4]), seconds_to_samples(begin), seconds_to_samples(end)))
    return intervals


def quoted_intervals(lines: list[str], place: str) -> list[Interval]:
    """`84-121123-0000 ",GO,,DO" "0.49,0.89,1.27,1.38"`: labels and where each ends, in seconds;
    silence has no label.

    Raises DataError when a line is not so, or has not as many ends as labels.
    """
    match = _QUOTED.fullmatch(lines[0]) if len(lines) == 1 else None
    if match is None:
        raise DataError(
            f'{place}: {lines[0][:60]!r} is not \'<utterance> "<labels>" "<ends>"\', once for each utterance; mend the line'
        )
    labels = match[2].split(",")
    ends = match[3].split(",")
    if len(labels) != len(ends):
        raise DataError(f"{place}: has {len(labels)} labels and {len(ends)} ends; mend the line")
    times = [0, *(seconds_to_samples(number_of(end, place, "end")) for end in ends)]
    return [
        (label, start, end) for label, start, end in zip(labels, times[:-1], times[1:], strict=True)
    ]


@functools.lru_cache(maxsize=4)
def read_symbols(path: Path) -> dict[str, str]:
    """Kaldi's phones.txt (`SIL 1` in each line): number -> name, without marks of the place in a
    word. Raises DataError for other lines.
    """
    names = {}
    for number, line in filled_lines(path):
        fields = line.split()
        if len(fields) != 2 or not fields[1].isdigit():
            raise DataError(
                f"{path}: line {number} is {line[:40]!r}, expected a name and a number such as 'SIL 1'; name a phones.txt"
            )
        names[fields[1]] = _POSITION.sub("", fields[0])
    return names
