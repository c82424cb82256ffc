"""Labelled time intervals: conversion to phone alignments, and TIMIT's `.phn` and `.wrd` files."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

from hubert_pretrain.data.alignment import Phones
from hubert_pretrain.errors import DataError
from hubert_pretrain.formats.text import nonblank_lines, parse_whole_number
from hubert_pretrain.frames import samples, seconds

Interval = tuple[str, int, int]
"""(label, start, end) in samples at 16 kHz."""

SILENCES = {
    # Montreal Forced Aligner and Kaldi
    "",
    "sil",
    "sp",
    "spn",
    "<eps>",
    "<sil>",
    "sil_s",
    # TIMIT
    "pau",
    "h#",
    "epi",
    # MAUS
    "<p:>",
}
"""Labels of silence, in lower case."""

_OVERLAP_TOLERANCE = samples(0.01)
"""Intervals may overlap by this many samples: starts and durations rounded to 10 ms each."""


def phones_of(intervals: Iterable[Interval], silence: str, place: str) -> Phones:
    """A phone alignment from intervals in any order. Intervals without length are dropped.

    Args:
        intervals: (label, start, end).
        silence: label of silence in the result: "gap" leaves it out, "keep" keeps the label (an
            empty label stays a gap), any other value replaces it.
        place: file and utterance, for messages.

    Raises:
        DataError: two intervals overlap by more than 10 ms.
    """
    ordered = sorted(
        (interval for interval in intervals if interval[2] > interval[1]),
        key=lambda interval: interval[1:],
    )
    for (first, _, end), (second, start, _) in pairwise(ordered):
        if end - start > _OVERLAP_TOLERANCE:
            raise DataError(
                f"{place}: {second!r} begins at {seconds(start):.3f} s, before {first!r} ends at "
                f"{seconds(end):.3f} s; fix the alignment"
            )
    phones = []
    previous_end = 0
    for label, start, end in ordered:
        name = _phone_name(label.strip(), silence)
        start = max(start, previous_end)
        previous_end = max(end, previous_end)
        if name and end > start:
            phones.append((name, start, end))
    return phones


def _phone_name(label: str, silence: str) -> str:
    if silence == "keep" or label.lower() not in SILENCES:
        return label
    return "" if silence == "gap" else silence


def read_phn(path: Path) -> list[Interval]:
    """The intervals of a `.phn` or `.wrd` file: `start end label` per line, in samples.

    Raises DataError with the line that has another form.
    """
    intervals = []
    for number, line in nonblank_lines(path):
        place = f"{path}: line {number}"
        fields = line.split()
        if len(fields) != 3:
            raise DataError(
                f"{place} is {line[:40]!r}, expected 'start end label' in samples; fix the line"
            )
        start = parse_whole_number(fields[0], place, "start")
        end = parse_whole_number(fields[1], place, "end")
        if end < start:
            raise DataError(
                f"{place}: {fields[2]!r} ends at {end}, before its start {start}; fix the line"
            )
        intervals.append((fields[2], start, end))
    return intervals
