"""What the corpora share: finding folders, reading tables and lists of others, and saying what was expected when they are not there."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from hubert_pretrain.data.audio import SUFFIXES
from hubert_pretrain.data.formats.table import Tsv
from hubert_pretrain.data.formats.text import filled_lines
from hubert_pretrain.errors import ConfigError, DataError, nearest

SPLITS = ("train", "valid", "test")


def check_choice(key: str, value: str, choices: Sequence[str]) -> None:
    """Raises ConfigError with the nearest name unless `value` is one of `choices`; `key` is below `data.corpus`."""
    if value not in choices:
        *most, last = choices
        expected = f"{', '.join(most)} or {last}" if most else last
        raise ConfigError(f"data.corpus.{key}={value!r}: expected {expected}{nearest(str(value), list(choices))}")


def existing_root(root: Path, layout: str, obtain: str, inside: Sequence[str] = ()) -> Path:
    """The folder of a corpus: `root`, or the first of the folders `inside` it that is there (as archives unpack).

    Raises DataError when there is no `root`; the message shows the layout and says where the corpus is to be had.
    """
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; expected {layout}, set data.root to the folder of the corpus. To have it: {obtain}")
    return next((root / name for name in inside if (root / name).is_dir()), root)


def existing(path: Path, layout: str) -> Path:
    """A file or folder that must be there. Raises DataError with the nearest name beside it and the layout."""
    if not path.exists():
        found = sorted(os.listdir(path.parent)) if path.parent.is_dir() else []
        raise DataError(
            f"{path}: not there{nearest(path.name, found)}, found {', '.join(found[:12]) or 'nothing'}; "
            f"expected {layout}: unpack the corpus again, or set data.root to its folder"
        )
    return path


def existing_audio(path: Path, named_by: str) -> Path:
    """An audio file that a list names. Raises DataError with the list and its line when it is not there."""
    if not path.is_file():
        raise DataError(f"{path}: no such file, but {named_by} names it; unpack the corpus again, or set data.root to its folder")
    return path


def folders_in(folder: Path) -> list[Path]:
    """The folders directly in a folder, ordered, without hidden ones. Links to folders count."""
    with os.scandir(folder) as entries:
        return sorted(Path(entry.path) for entry in entries if entry.is_dir() and not entry.name.startswith("."))


def audio_in(folder: Path) -> list[Path]:
    """The audio files directly in a folder, ordered, without hidden ones."""
    with os.scandir(folder) as entries:
        return sorted(Path(entry.path) for entry in entries if is_audio(entry.name) and entry.is_file())


def is_audio(name: str) -> bool:
    """Whether a name is that of an audio file, and not of a hidden one (e.g. the `._x.wav` of macOS)."""
    return name.lower().endswith(SUFFIXES) and not name.startswith(".")


def audio_below(root: Path) -> Iterator[Path]:
    """Audio files below a folder, folder by folder in order, without hidden ones. Links to folders are followed, once each.

    Hidden folders are left out too: archives on their way lie in one.
    """
    seen: set[tuple[int, int]] = set()
    for folder, below, names in os.walk(root, followlinks=True):
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in seen:
            below.clear()
            continue
        below[:] = sorted(name for name in below if not name.startswith("."))  # ordered: of two links to a folder, one wins everywhere
        seen.add((status.st_dev, status.st_ino))
        yield from (Path(folder, name) for name in sorted(names) if is_audio(name))


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """(number, line) of every line of a text file that is not blank, without spaces around it. Raises DataError unless it is UTF-8."""
    return ((number, line.strip()) for number, line in filled_lines(path))


def read_table(path: Path, needed: Iterable[str]) -> Iterator[tuple[int, dict[str, str]]]:
    """(line number, {column: value}) of every row of a csv, or of a tab-separated .tsv, with a header line.

    Values have no spaces around them; a value that is not there is "".

    Raises:
        DataError: not a table in UTF-8, or it lacks a needed column.
    """
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, dialect=Tsv if path.suffix == ".tsv" else csv.excel, restval="")
            header = list(reader.fieldnames or [])
            for column in needed:
                if column not in header:
                    raise DataError(
                        f"{path}: no column {column!r}{nearest(column, header)}, it has {', '.join(header) or 'no header'}; "
                        "is it a table of this corpus?"
                    )
            for row in reader:
                yield reader.line_num, {key: (value or "").strip() for key, value in row.items() if key is not None}
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: not a table in UTF-8 ({error}); replace the file") from error
