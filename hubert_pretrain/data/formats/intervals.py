"""From labelled times to an alignment: what is silence, what overlaps, what is no time."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

from hubert_pretrain.data.alignment import Phones
from hubert_pretrain.errors import DataError
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
        intervals: with labels; those without a length are dropped.
        silence: what silence becomes: "gap", nothing is said there; "keep", its label (one without a label is a gap); else this label.
        place: where they stand, for messages.

    Raises:
        DataError: two of them overlap by more than 10 ms.
    """
    ordered = sorted((each for each in intervals if each[2] > each[1]), key=lambda each: each[1:])
    for (one, _, end), (other, start, _) in pairwise(ordered):
        if end - start > _SLACK:
            begins, ends = start / SAMPLE_RATE, end / SAMPLE_RATE
            raise DataError(f"{place}: {other!r} begins at {begins:.3f} s, before {one!r} ends at {ends:.3f} s; mend the alignment")
    phones, before = [], 0
    for label, start, end in ordered:
        name, start, before = _name(label.strip(), silence), max(start, before), max(end, before)
        if name and end > start:
            phones.append((name, start, end))
    return phones


def _name(label: str, silence: str) -> str:
    if silence == "keep" or label.lower() not in SILENCES:
        return label
    return "" if silence == "gap" else silence
