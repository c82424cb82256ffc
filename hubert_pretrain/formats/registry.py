"""Manifest formats by name, detection of a format by content, and conversion between formats."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from hubert_pretrain.data.audio_files import entries_of
from hubert_pretrain.data.source import SourceUtterance
from hubert_pretrain.errors import ConfigError, DataError, did_you_mean
from hubert_pretrain.formats import fairseq, huggingface, kaldi, lhotse, path_list, prepared, table
from hubert_pretrain.formats.record import ReadOptions, Record, split_in, without_duplicates
from hubert_pretrain.formats.text import nonblank_lines

Reader = Callable[[Path, ReadOptions], Iterator[Record]]
Writer = Callable[[Path, Callable[[], Iterator[SourceUtterance]]], None]


@dataclass(frozen=True)
class Format:
    """Reader and, unless None, writer of a format."""

    read: Reader
    write: Writer | None
    suffixes: tuple[str, ...] = ()
    """Suffixes of a written file; none: a folder is written."""


FORMATS = {
    "fairseq": Format(fairseq.read, fairseq.write),
    "csv": Format(table.read, table.write, (".csv", ".csv.gz")),
    "tsv": Format(table.read, table.write, (".tsv", ".tsv.gz")),
    "jsonl": Format(table.read, table.write, (".jsonl", ".jsonl.gz")),
    "list": Format(path_list.read, None),
    "kaldi": Format(kaldi.read, kaldi.write),
    "lhotse": Format(lhotse.read, lhotse.write, (".jsonl", ".jsonl.gz")),
    "huggingface": Format(huggingface.read, huggingface.write),
    "prepared": Format(prepared.read, None),
}
WRITTEN = [name for name, format in FORMATS.items() if format.write is not None]
"""Names of the formats that can be written."""

_LIST_SUFFIXES = (".tsv", ".csv", ".jsonl", ".jsonl.gz", ".csv.gz", ".tsv.gz")
_EXPECTED = (
    "*.tsv of fairseq, a list of paths, *.csv or *.jsonl with a column 'path', wav.scp (Kaldi), "
    "cuts*.jsonl.gz (lhotse), or a folder of datasets"
)


def check_format(name: str, key: str = "data.corpus.format") -> None:
    """Raises ConfigError, with the nearest name, unless there is such a format."""
    if name != "auto" and name not in FORMATS:
        raise ConfigError(
            f"{key}={name}: expected auto or one of {', '.join(FORMATS)}"
            f"{did_you_mean(name, list(FORMATS))}"
        )


def read(
    path: Path, format: str, options: ReadOptions, split: str | None = None
) -> Iterator[Record]:
    """Every row of the manifests at a path.

    Args:
        path: a file, or a folder with one or several manifests.
        format: a name in `FORMATS`, or auto.
        options: facts that the manifests do not state.
        split: split of rows that name none; None: the one in the name of their file or folder, else
            `options.split`.
    """
    for file, name in find_manifests(path, format, options.columns):
        # Of a folder's name only the part before the first dot may tell a split.
        named = file.name if file != path else path.name.partition(".")[0]
        default = split or split_in(named) or options.split
        yield from FORMATS[name].read(file, replace(options, split=default))


# -- detection


def find_manifests(path: Path, format: str, columns: Mapping[str, str]) -> list[tuple[Path, str]]:
    """(manifest, format) of every manifest at a path. Raises DataError when there is none.

    Args:
        path: a file or folder.
        format: a name in `FORMATS`, or auto.
        columns: our name -> the manifest's name of a column, for detection.
    """
    if not path.exists():
        raise DataError(
            f"{path}: no such file or folder; name a manifest, or a folder of them, "
            "with data.root or data.corpus.path"
        )
    if path.is_file():
        is_kaldi = path.name == kaldi.WAVES and format in ("auto", "kaldi")
        manifest = path.parent if is_kaldi else path
        return [(manifest, detect_format(path, columns) if format == "auto" else format)]
    found = _manifests_in_folder(path, format, columns)
    if not found:
        inside = [each.name for each in entries_of(path)][:8]
        raise DataError(
            f"{path}: no manifest in it, it has {', '.join(inside) or 'nothing'}; "
            f"expected {_EXPECTED}. A folder that has audio only is read by data=folder"
        )
    return found


def _manifests_in_folder(
    path: Path, format: str, columns: Mapping[str, str]
) -> list[tuple[Path, str]]:
    """A prepared corpus, a dataset, Kaldi data directories, or lists of one format."""
    if format in ("auto", "prepared") and prepared.folder_of(path):
        return [(path, "prepared")]
    if format in ("auto", "huggingface") and huggingface.is_dataset(path):
        return [(path, "huggingface")]
    if format in ("auto", "lhotse") and lhotse.is_shar(path):
        return [(path, "lhotse")]
    if format in ("auto", "kaldi"):
        if (path / kaldi.WAVES).is_file():
            return [(path, "kaldi")]
        directories = [
            folder for folder in map(Path, entries_of(path)) if (folder / kaldi.WAVES).is_file()
        ]
        if directories:
            return [(folder, "kaldi") for folder in directories]
    found = [
        (each, detect_format(each, columns) if format == "auto" else format)
        for each in map(Path, entries_of(path))
        if each.is_file() and each.name.endswith(_LIST_SUFFIXES) and not each.name.startswith(".")
    ]
    items = [each for each, name in found if name == "lhotse"]
    taken = lhotse.without_parts(items) if items else []
    found = [(each, name) for each, name in found if each in taken or name != "lhotse"]
    if len({name for _, name in found}) > 1:
        kinds = ", ".join(f"{file.name} ({name})" for file, name in found[:6])
        raise DataError(
            f"{path}: has manifests of several formats, {kinds}; "
            "name one file, or choose with data.corpus.format"
        )
    return found


def detect_format(path: Path, columns: Mapping[str, str]) -> str:
    """Format of a file, by its content. Raises DataError for content of no format."""
    if path.name == kaldi.WAVES:
        return "kaldi"
    if huggingface.is_dataset(path):
        return "huggingface"
    number, first = next(nonblank_lines(path), (0, ""))
    if path_list.is_audio_path(first):
        return "list"
    if first.startswith("{"):
        row = table.json_object(first, f"{path}: line {number}")
        return "lhotse" if lhotse.is_item(row) else "jsonl"
    dialect = table.dialect_of(path, first)
    header = [field.strip().strip('"') for field in first.split(dialect.delimiter)]
    has_path = columns.get("path", "path") in header
    if not has_path and fairseq.is_manifest(path):
        return "fairseq"
    if has_path or len(header) > 1:
        return "tsv" if dialect is table.Tsv else "csv"
    raise DataError(
        f"{path}: begins with {first[:40]!r}, which is no manifest; expected {_EXPECTED}"
    )


# -- conversion


def convert(
    source: Path,
    target: Path,
    to: str,
    *,
    format: str = "auto",
    options: ReadOptions,
    splits: list[str],
) -> Counter[str]:
    """Writes a manifest in another format; returns the number of utterances of each split.

    Args:
        source: any manifest that can be read, or a prepared corpus.
        target: the file, or the folder for formats that have one.
        to: a name in `WRITTEN`.
        format: format of the source.
        options: facts that the source does not state.
        splits: only these; empty: all.

    Raises:
        ConfigError: an unknown format, or a target whose name does not fit it.
        DataError: the source is not readable, repeats an id, has none of the splits, or holds
            content that the format cannot.
    """
    check_format(format, "--format")
    write = _writer(target, to)
    counts: Counter[str] = Counter()

    def selected() -> Iterator[SourceUtterance]:
        counts.clear()  # a writer may read everything twice
        for utterance in without_duplicates(lambda: read(source, format, options)):
            if not splits or utterance.split in splits:
                counts[utterance.split] += 1
                yield utterance

    if splits:
        found = sorted({utterance.split for _, utterance in read(source, format, options)})
        for split in splits:
            if split not in found:
                raise DataError(
                    f"{source}: no utterances in split {split!r}, it has {', '.join(found)}"
                    f"{did_you_mean(split, found)}"
                )
    write(target, selected)
    return counts


def _writer(target: Path, to: str) -> Writer:
    format = FORMATS.get(to)
    if format is None or format.write is None:
        raise ConfigError(
            f"--to {to}: expected one of {', '.join(WRITTEN)}{did_you_mean(to, WRITTEN)}"
        )
    if format.suffixes and not target.name.endswith(format.suffixes):
        raise ConfigError(
            f"{target}: --to {to} writes a file, "
            f"its name should end in {' or '.join(format.suffixes)}"
        )
    is_file_name = os.path.splitext(target.name)[1] in _LIST_SUFFIXES
    if not format.suffixes and (target.is_file() or is_file_name):
        raise ConfigError(f"{target}: --to {to} writes a folder; give the name of one")
    return format.write
