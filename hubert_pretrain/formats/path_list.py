"""Plain lists: the path of an audio file in each line, and nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from hubert_pretrain.data.audio_files import EVERY_SUFFIX
from hubert_pretrain.data.source import SourceUtterance
from hubert_pretrain.errors import DataError
from hubert_pretrain.formats.record import ReadOptions, Record
from hubert_pretrain.formats.text import nonblank_lines


def is_audio_path(line: str) -> bool:
    """True for the path of an audio file alone, of any suffix that some installation reads."""
    return "\t" not in line and line.strip().lower().endswith(EVERY_SUFFIX)


def read(path: Path, options: ReadOptions) -> Iterator[Record]:
    """Every line. Raises DataError for a line with tabs, and for an empty file."""
    empty = True
    for number, line in nonblank_lines(path):
        empty = False
        place = f"{path}: line {number}"
        if "\t" in line:
            raise DataError(f"{place} has several fields, expected a path alone; fix the line")
        name = line.strip()
        yield (
            place,
            SourceUtterance(
                id=options.id_of(name),
                path=options.locate(name, path.parent),
                split=options.split,
            ),
        )
    if empty:
        raise DataError(f"{path}: is empty; expected the path of an audio file in each line")
