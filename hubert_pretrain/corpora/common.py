"""What the corpora share: finding folders, reading tables and lists of others, and saying what was
expected when they are not there.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from hubert_pretrain.data.audio import is_audio
from hubert_pretrain.errors import ConfigError, DataError, did_you_mean
from hubert_pretrain.formats.table import rows
from hubert_pretrain.formats.text import filled_lines

SPLITS = ("train", "valid", "test")


def check_choice(key: str, value: str, choices: Sequence[str]) -> None:
    """Raises ConfigError with the nearest name unless `value` is one of `choices`; `key` is below
    `data.corpus`.
    """
    if value not in choices:
        *most, last = choices
        expected = f"{', '.join(most)} or {last}" if most else last
        raise ConfigError(
            f"data.corpus.{key}={value!r}: expected {expected}{did_you_mean(str(value), list(choices))}"
        )


def existing_root(root: Path, layout: str, obtain: str, inside: Sequence[str] = ()) -> Path:
    """The folder of a corpus: `root`, or the first of the folders `inside` it that is there (as
    archives unpack).

    Raises DataError when there is no `root`; the message shows the layout and says where the corpus
    is to be had.
    """
    if not root.is_dir():
        raise DataError(
            f"{root}: no such folder; expected {layout}, set data.root to the folder of the corpus. To have it: {obtain}"
        )
    return next((root / name for name in inside if (root / name).is_dir()), root)


def existing(path: Path, layout: str) -> Path:
    """A file or folder that must be there. Raises DataError with the nearest name beside it and the
    layout.
    """
    if not path.exists():
        found = sorted(os.listdir(path.parent)) if path.parent.is_dir() else []
        raise DataError(
            f"{path}: not there{did_you_mean(path.name, found)}, found {', '.join(found[:12]) or 'nothing'}; "
            f"expected {layout}: unpack the corpus again, or set data.root to its folder"
        )
    return path


def existing_audio(path: Path, named_by: str) -> Path:
    """An audio file that a list names. Raises DataError with the list and its line when it is not
    there.
    """
    if not path.is_file():
        raise DataError(
            f"{path}: no such file, but {named_by} names it; unpack the corpus again, or set data.root to its folder"
        )
    return path


def folders_in(folder: Path) -> list[Path]:
    """The folders directly in a folder, ordered, without hidden ones. Links to folders count."""
    with os.scandir(folder) as entries:
        return sorted(
            Path(entry.path)
            for entry in entries
            if entry.is_dir() and not entry.name.startswith(".")
        )


def audio_in(folder: Path) -> list[Path]:
    """The audio files directly in a folder, ordered, without hidden ones."""
    with os.scandir(folder) as entries:
        return sorted(
            Path(entry.path) for entry in entries if is_audio(entry.name) and entry.is_file()
        )


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """(number, line) of every line of a text file that is not blank, without spaces around it.
    Raises DataError unless it is UTF-8.
    """
    return ((number, line.strip()) for number, line in filled_lines(path))


def read_table(path: Path, needed: Iterable[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """(its place, {column: value}) of every row of a csv or tsv with a header line, gzipped or not;
    only the needed columns.

    Raises:
        DataError: not a table in UTF-8, it has no rows or lacks a needed column, or a row has other
        fields than the header.
    """
    columns = {name: name for name in needed}
    yield from rows(path, columns, tuple(columns), fix="is it a table of this corpus?")
