"""Alignment lists: CTM (one word or phone per line) and LibriSpeech's `.alignment.txt` (one
utterance per line).

A list may be as large as its corpus, so it is not held in memory: `spans` finds the bytes of each
utterance, `read_span` reads them again.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from hubert_pretrain.errors import DataError
from hubert_pretrain.formats.intervals import Interval
from hubert_pretrain.formats.text import nonblank_lines, parse_number
from hubert_pretrain.frames import samples

_WORD_POSITION = re.compile(r"_[BIES]$")
"""Kaldi's marks of a phone's position in its word: AH_B, AH_I, AH_E, AH_S."""
_QUOTED = re.compile(r'(\S+)\s+"([^"]*)"\s+"([^"]*)"')
_COMMENT = ";;"


def spans(path: Path) -> Iterator[tuple[str, int, int]]:
    """(utterance, first byte, number of bytes) of each utterance, in the order of the file.

    Raises DataError when the lines of an utterance are not adjacent, or the file is not UTF-8.
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
                        f"{path}: line {number} comes back to utterance {id!r}; "
                        "sort the file, so that the lines of an utterance are adjacent"
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
    if not words or words[0].startswith(_COMMENT.encode()):
        return ""
    try:
        return words[0].decode()
    except UnicodeDecodeError as error:
        raise DataError(f"{place} is no UTF-8 text; save the file as UTF-8") from error


def read_span(path: Path, start: int, length: int) -> list[str]:
    """The lines of one utterance, without blank lines and comments."""
    with open(path, "rb") as file:
        file.seek(start)
        raw = file.read(length)
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: byte {start + error.start} is no UTF-8 text; save the file as UTF-8"
        ) from error
    return [
        line.strip() for line in text.split("\n") if line.strip() and not line.startswith(_COMMENT)
    ]


def ctm_intervals(lines: list[str], place: str, name: Callable[[str], str] = str) -> list[Interval]:
    """Intervals of CTM lines: `utterance channel start duration label [confidence]`, in seconds.

    Args:
        lines: of one utterance.
        place: file and utterance, for messages.
        name: maps the labels of the file to names.

    Raises:
        DataError: another number of fields, or a time that is not a number.
    """
    intervals = []
    for line in lines:
        fields = line.split()
        if len(fields) not in (5, 6):
            raise DataError(
                f"{place}: {line[:60]!r} has {len(fields)} fields, "
                "expected '<utterance> <channel> <start> <duration> <label>'; fix the line"
            )
        start = parse_number(fields[2], place, "start")
        end = start + parse_number(fields[3], place, "duration")
        intervals.append((name(fields[4]), samples(start), samples(end)))
    return intervals


def quoted_intervals(lines: list[str], place: str) -> list[Interval]:
    """Intervals of `84-121123-0000 ",GO,,DO" "0.49,0.89,1.27,1.38"`: labels (empty for silence) and
    the end of each, in seconds.

    Raises DataError for a line of another form or with another number of ends than labels.
    """
    match = _QUOTED.fullmatch(lines[0]) if len(lines) == 1 else None
    if match is None:
        raise DataError(
            f'{place}: {lines[0][:60]!r} is not \'<utterance> "<labels>" "<ends>"\', '
            "once for each utterance; fix the line"
        )
    labels = match[2].split(",")
    ends = match[3].split(",")
    if len(labels) != len(ends):
        raise DataError(f"{place}: has {len(labels)} labels and {len(ends)} ends; fix the line")
    times = [0, *(samples(parse_number(end, place, "end")) for end in ends)]
    return [
        (label, start, end) for label, start, end in zip(labels, times[:-1], times[1:], strict=True)
    ]


@functools.lru_cache(maxsize=4)
def read_symbols(path: Path) -> dict[str, str]:
    """Kaldi's phones.txt (`SIL 1` per line): number -> name, without marks of word positions.

    Raises DataError for lines of another form.
    """
    names = {}
    for number, line in nonblank_lines(path):
        fields = line.split()
        if len(fields) != 2 or not fields[1].isdigit():
            raise DataError(
                f"{path}: line {number} is {line[:40]!r}, expected a name and a number "
                "such as 'SIL 1'; name a phones.txt"
            )
        names[fields[1]] = _WORD_POSITION.sub("", fields[0])
    return names


def ctm_lines(utterance: str, words: Iterable[tuple[str, float, float, float]]) -> list[str]:
    """Lines `utterance channel start duration label confidence` of (label, start, end, confidence),
    in seconds. An utterance without any has none.
    """
    return [
        f"{utterance} 1 {start:.4f} {end - start:.4f} {label} {confidence:.3f}\n"
        for label, start, end, confidence in words
    ]
