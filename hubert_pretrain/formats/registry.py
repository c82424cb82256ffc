"""Every format of manifests by name, which one a file or folder is (by what it holds), and one into
another.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from hubert_pretrain.data.source import SourceUtterance
from hubert_pretrain.errors import ConfigError, DataError, did_you_mean
from hubert_pretrain.formats import fairseq, huggingface, kaldi, lhotse, prepared, table
from hubert_pretrain.formats.record import Reading, Record, split_in, without_duplicates
from hubert_pretrain.formats.text import filled_lines

_LISTS = (".tsv", ".csv", ".jsonl", ".jsonl.gz", ".csv.gz", ".tsv.gz")


@dataclass(frozen=True)
class Format:
    """A way in and, unless None, a way out."""

    read: Callable[[Path, Reading], Iterator[Record]]
    write: Callable[[Path, Callable[[], Iterator[SourceUtterance]]], None] | None
    suffixes: tuple[str, ...] = ()
    """What the name of a written file ends in; none: a folder is written."""


FORMATS = {
    "fairseq": Format(fairseq.read, fairseq.write),
    "csv": Format(table.read, table.write, (".csv", ".csv.gz")),
    "tsv": Format(table.read, table.write, (".tsv", ".tsv.gz")),
    "jsonl": Format(table.read, table.write, (".jsonl", ".jsonl.gz")),
    "kaldi": Format(kaldi.read, kaldi.write),
    "lhotse": Format(lhotse.read, lhotse.write, (".jsonl", ".jsonl.gz")),
    "huggingface": Format(huggingface.read, huggingface.write),
    "prepared": Format(prepared.read, None),
}
WRITTEN = [name for name, form in FORMATS.items() if form.write is not None]


def check_format(name: str, where: str = "data.corpus.format") -> None:
    """Raises ConfigError naming the nearest when there is no such format."""
    if name != "auto" and name not in FORMATS:
        raise ConfigError(
            f"{where}={name}: expected auto or one of {', '.join(FORMATS)}{did_you_mean(name, list(FORMATS))}"
        )


def read(path: Path, format: str, reading: Reading, split: str | None = None) -> Iterator[Record]:
    """Every row of a manifest: a file, or a folder of one or several.

    Args:
        path: the file or folder. format: a name in `FORMATS`, or auto. reading: what it does not
        say itself. split: of rows that name none; None: what the name of their file or folder
        tells, else `reading.split`.
    """
    for file, name in parts(path, format, reading.columns):
        here = split or split_in(file.name if file != path else _stem(path)) or reading.split
        yield from FORMATS[name].read(file, replace(reading, split=here))


def _stem(path: Path) -> str:
    """The name of a manifest, or of a Kaldi folder, in which a split may stand."""
    return path.name.partition(".")[0]


def parts(path: Path, format: str, columns: Mapping[str, str]) -> list[tuple[Path, str]]:
    """The manifests that a path means, each with its format. Raises DataError when there is
    none.
    """
    if not path.exists():
        raise DataError(
            f"{path}: no such file or folder; name a manifest, or a folder of them, with data.root or data.corpus.path"
        )
    if path.is_file():
        whole = path.parent if path.name == kaldi.WAVES and format in ("auto", "kaldi") else path
        return [(whole, recognise(path, columns) if format == "auto" else format)]
    found = _folder_parts(path, format, columns)
    if not found:
        inside = sorted(each.name for each in path.iterdir())[:8]
        raise DataError(
            f"{path}: no manifest in it, it has {', '.join(inside) or 'nothing'}; expected {_KNOWN}. "
            "A folder that has audio only is read by data=folder"
        )
    return found


_KNOWN = "*.tsv of fairseq, *.csv or *.jsonl with a column 'path', wav.scp (Kaldi), cuts*.jsonl.gz (lhotse), or a folder of datasets"


def _folder_parts(path: Path, format: str, columns: Mapping[str, str]) -> list[tuple[Path, str]]:
    """In a folder: a prepared corpus, a dataset, data directories of Kaldi, or lists of one
    format.
    """
    if format in ("auto", "prepared") and prepared.folder_of(path):
        return [(path, "prepared")]
    if format in ("auto", "huggingface") and huggingface.is_dataset(path):
        return [(path, "huggingface")]
    directories = [
        folder for folder in (path, *sorted(path.iterdir())) if (folder / kaldi.WAVES).is_file()
    ]
    if format in ("auto", "kaldi") and directories:
        return [
            (folder, "kaldi")
            for folder in (directories[:1] if directories[0] == path else directories)
        ]
    lists = sorted(
        each
        for each in path.iterdir()
        if each.is_file() and each.name.endswith(_LISTS) and not each.name.startswith(".")
    )
    found = [(each, recognise(each, columns) if format == "auto" else format) for each in lists]
    if len({name for _, name in found}) > 1:
        kinds = ", ".join(f"{file.name} ({name})" for file, name in found[:6])
        raise DataError(
            f"{path}: has manifests of several formats, {kinds}; name one file, or choose with data.corpus.format"
        )
    return found


def recognise(path: Path, columns: Mapping[str, str]) -> str:
    """The format of a file, by what it holds. Raises DataError with what was expected."""
    if path.name == kaldi.WAVES:
        return "kaldi"
    if huggingface.is_dataset(path):
        return "huggingface"
    number, first = next(filled_lines(path), (0, ""))
    if first.startswith("{"):
        return (
            "lhotse"
            if lhotse.is_cut(table.json_object(first, f"{path}: line {number}"))
            else "jsonl"
        )
    dialect = table.dialect_of(path, first)
    header = [
        field.strip().strip('"') for field in first.split("\t" if dialect is table.Tsv else ",")
    ]
    if columns.get("path", "path") not in header and fairseq.is_manifest(path):
        return "fairseq"
    if columns.get("path", "path") in header or len(header) > 1:
        return "tsv" if dialect is table.Tsv else "csv"
    raise DataError(f"{path}: begins with {first[:40]!r}, which is no manifest; expected {_KNOWN}")


def convert(
    source: Path,
    target: Path,
    to: str,
    *,
    format: str = "auto",
    reading: Reading,
    splits: list[str],
) -> Counter[str]:
    """Writes a manifest in another format, and counts the utterances of each split.

    Args:
        source: any manifest that can be read, or a prepared corpus.
        target: the file, or the folder for formats that have one.
        to: a name in `WRITTEN`.
        format: of the source.
        reading: what the source does not say itself.
        splits: only these; empty: all.

    Raises:
        ConfigError: an unknown format, or a target whose name is not of it. DataError: the source
        is not readable, has two rows with one id or none of the splits, or holds what the format
        cannot.
    """
    check_format(format, "--format")
    form = _writer(target, to)
    counts: Counter[str] = Counter()

    def utterances() -> Iterator[SourceUtterance]:
        counts.clear()
        for utterance in without_duplicates(lambda: read(source, format, reading)):
            if not splits or utterance.split in splits:
                counts[utterance.split] += 1
                yield utterance

    if splits:
        found = {utterance.split for _, utterance in read(source, format, reading)}
        if missing := [split for split in splits if split not in found]:
            raise DataError(
                f"{source}: no utterances in split {missing[0]!r}, it has {', '.join(sorted(found))}{did_you_mean(missing[0], sorted(found))}"
            )
    form(target, utterances)
    return counts


def _writer(
    target: Path, to: str
) -> Callable[[Path, Callable[[], Iterator[SourceUtterance]]], None]:
    form = FORMATS.get(to)
    if form is None or form.write is None:
        raise ConfigError(
            f"--to {to}: expected one of {', '.join(WRITTEN)}{did_you_mean(to, WRITTEN)}"
        )
    if form.suffixes and not target.name.endswith(form.suffixes):
        raise ConfigError(
            f"{target}: --to {to} writes a file, its name should end in {' or '.join(form.suffixes)}"
        )
    if not form.suffixes and (target.is_file() or os.path.splitext(target.name)[1] in _LISTS):
        raise ConfigError(f"{target}: --to {to} writes a folder; give the name of one")
    return form.write
