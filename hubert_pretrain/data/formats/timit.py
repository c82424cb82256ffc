"""TIMIT's .phn and .wrd files: `start end label` in each line, in samples of the audio (16 kHz)."""

from __future__ import annotations

from pathlib import Path

from hubert_pretrain.data.formats.intervals import Interval
from hubert_pretrain.data.formats.text import filled_lines, whole_number_of
from hubert_pretrain.errors import DataError


def read(path: Path) -> list[Interval]:
    """The intervals of one file. Raises DataError naming the line that is none."""
    intervals = []
    for number, line in filled_lines(path):
        place, fields = f"{path}: line {number}", line.split()
        if len(fields) != 3:
            raise DataError(f"{place} is {line[:40]!r}, expected 'start end label' in samples; mend the line")
        start, end = whole_number_of(fields[0], place, "start"), whole_number_of(fields[1], place, "end")
        if end < start:
            raise DataError(f"{place}: {fields[2]!r} ends at {end}, before its start {start}; mend the line")
        intervals.append((fields[2], start, end))
    return intervals
