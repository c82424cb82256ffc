"""From labelled times to an alignment: what is silence, what overlaps, what is no time."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

from hubert_pretrain.data.alignment import Phones
from hubert_pretrain.errors import DataError
from hubert_pretrain.formats.text import filled_lines, whole_number_of
from hubert_pretrain.frames import SAMPLE_RATE

Interval = tuple[str, int, int]
"""(label, start, end) in samples at 16 kHz."""

SILENCES = {"", "sil", "sp", "spn", "<eps>", "<sil>", "sil_s", "pau", "h#", "epi", "<p:>"}
"""Labels of silence, in lower case: of MFA and Kaldi, TIMIT, MAUS."""

_SLACK = SAMPLE_RATE // 100
"""Starts and lengths that were each rounded to 10 ms may overlap by so much."""


def phones_of(intervals: Iterable[Interval], silence: str, place: str) -> Phones:
    """Intervals in any order as an alignment.

    Args:
        intervals: with labels; those without a length are dropped. silence: what silence becomes:
        "gap", nothing is said there; "keep", its label (one without a label is a gap); else this
        label. place: where they stand, for messages.

    Raises:
        DataError: two of them overlap by more than 10 ms.
    """
    ordered = sorted((each for each in intervals if each[2] > each[1]), key=lambda each: each[1:])
    for (one, _, end), (other, start, _) in pairwise(ordered):
        if end - start > _SLACK:
            begins = start / SAMPLE_RATE
            ends = end / SAMPLE_RATE
            raise DataError(
                f"{place}: {other!r} begins at {begins:.3f} s, before {one!r} ends at {ends:.3f} s; mend the alignment"
            )
    phones = []
    before = 0
    for label, start, end in ordered:
        name = _name(label.strip(), silence)
        start = max(start, before)
        before = max(end, before)
        if name and end > start:
            phones.append((name, start, end))
    return phones


def _name(label: str, silence: str) -> str:
    if silence == "keep" or label.lower() not in SILENCES:
        return label
    return "" if silence == "gap" else silence


def read_phn(path: Path) -> list[Interval]:
    """The intervals of one file. Raises DataError naming the line that is none."""
    intervals = []
    for number, line in filled_lines(path):
        place = f"{path}: line {number}"
        fields = line.split()
        if len(fields) != 3:
            raise DataError(
                f"{place} is {line[:40]!r}, expected 'start end label' in samples; mend the line"
            )
        start = whole_number_of(fields[0], place, "start")
        end = whole_number_of(fields[1], place, "end")
        if end < start:
            raise DataError(
                f"{place}: {fields[2]!r} ends at {end}, before its start {start}; mend the line"
            )
        intervals.append((fields[2], start, end))
    return intervals
