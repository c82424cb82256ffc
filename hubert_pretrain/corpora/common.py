"""Shared by the corpora: folders, tables and lists of a corpus, with errors that show what was
expected.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from hubert_pretrain.data.audio_files import entries_of
from hubert_pretrain.errors import ConfigError, DataError, did_you_mean
from hubert_pretrain.formats.table import rows
from hubert_pretrain.formats.text import nonblank_lines

SPLITS = ("train", "valid", "test")


def check_choice(key: str, value: str, choices: Sequence[str]) -> None:
    """Raises ConfigError, with the nearest name, unless `value` is one of `choices`. `key` is below
    `data.corpus`.
    """
    if value not in choices:
        *most, last = choices
        expected = f"{', '.join(most)} or {last}" if most else last
        raise ConfigError(
            f"data.corpus.{key}={value!r}: expected {expected}"
            f"{did_you_mean(str(value), list(choices))}"
        )


def check_columns(columns: Iterable[str], known: Sequence[str]) -> None:
    """Raises ConfigError, with the nearest name, when a key of `data.corpus.columns` is unknown."""
    for name in sorted(columns):
        if name not in known:
            raise ConfigError(
                f"data.corpus.columns: {name!r} is not one of {', '.join(known)}"
                f"{did_you_mean(name, list(known))}"
            )


# -- files that a corpus must have


def find_root(root: Path, layout: str, source: str, inside: Sequence[str] = ()) -> Path:
    """The folder of a corpus: the first of the folders `inside` the root that exists (archives
    unpack into them), else the root.

    Raises DataError without a root; the message shows the layout and `source`, where the corpus is
    available.
    """
    if not root.is_dir():
        raise DataError(
            f"{root}: no such folder; expected {layout}, set data.root to the folder of the "
            f"corpus. Available from: {source}"
        )
    for name in inside:
        if (root / name).is_dir():
            return root / name
    return root


def require(path: Path, layout: str) -> Path:
    """A file or folder that must exist. Raises DataError with the layout and the nearest name
    beside it.
    """
    if not path.exists():
        found = sorted(os.listdir(path.parent)) if path.parent.is_dir() else []
        raise DataError(
            f"{path}: not there{did_you_mean(path.name, found)}, "
            f"found {', '.join(found[:12]) or 'nothing'}; "
            f"expected {layout}: unpack the corpus again, or set data.root to its folder"
        )
    return path


# -- listing folders


def subfolders(folder: Path) -> list[Path]:
    """The folders directly in a folder, in order, without hidden ones. Links to folders count."""
    return [
        Path(entry.path)
        for entry in entries_of(folder)
        if entry.is_dir() and not entry.name.startswith(".")
    ]


# -- reading lists and tables


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """(number, stripped line) of every line of a text file that is not blank. Raises DataError
    unless it is UTF-8.
    """
    return ((number, line.strip()) for number, line in nonblank_lines(path))


def read_table(path: Path, columns: Iterable[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """(place, {column: value}) of every row of a csv or tsv with a header, gzipped or not. Takes
    only `columns`.

    Raises:
        DataError: not a UTF-8 table, no rows, a missing column, or a row with another number of
            fields than the header.
    """
    names = {name: name for name in columns}
    yield from rows(path, names, tuple(names), fix="is it a table of this corpus?")
