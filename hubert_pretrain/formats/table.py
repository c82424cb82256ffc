"""Tables with named columns: csv, tsv and jsonl (a JSON object per line).

Columns; only `path` is required:

* path: the audio file; offset, num_bytes: its place in a shard.
* id, speaker, text, label, split, corpus.
* start, num_samples: segment of a longer recording, at 16 kHz or `ReadOptions.rate`; or
  start_seconds, duration_seconds. Without a start, the length is that of the whole file, which
  `prepare` compares.
* channel: of a file with several, 0 is the first; empty: as data.channel says.
"""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from hubert_pretrain.data.audio import resampled_length
from hubert_pretrain.data.source import SourceUtterance
from hubert_pretrain.errors import DataError, did_you_mean
from hubert_pretrain.formats.record import ReadOptions, Record, split_named
from hubert_pretrain.formats.text import (
    length_tolerance,
    lines,
    nonblank_lines,
    parse_number,
    parse_whole_number,
    writing,
)
from hubert_pretrain.frames import samples

COLUMNS = (
    "id",
    "path",
    "start",
    "num_samples",
    "start_seconds",
    "duration_seconds",
    "offset",
    "num_bytes",
    "channel",
    "speaker",
    "text",
    "label",
    "split",
    "corpus",
)
_TEXT_COLUMNS = ("id", "path", "speaker", "text", "label", "split", "corpus")
_WRITTEN_COLUMNS = tuple(name for name in COLUMNS if not name.endswith("_seconds"))

_SURROGATE = re.compile("[\ud800-\udfff]")
"""Half of a UTF-16 surrogate pair: JSON can spell it, UTF-8 cannot store it."""

Row = dict[str, Any]
"""Our name -> value of the columns that are present; strings in a csv, JSON scalars in a jsonl."""


class Tsv(csv.excel_tab):
    """Tab-separated. A quotation mark is part of the text, as in Common Voice."""

    quoting = csv.QUOTE_NONE
    quotechar = None
    lineterminator = "\n"


class Csv(csv.excel):
    """Comma-separated."""

    lineterminator = "\n"
    strict = True


class Semicolons(Csv):
    """Separated by semicolons, as spreadsheets write it where a comma is the decimal point."""

    delimiter = ";"


class Bars(Csv):
    """Separated by vertical bars."""

    delimiter = "|"


NEMO = {"path": "audio_filepath", "start_seconds": "offset", "duration_seconds": "duration"}
"""Our name -> that of NeMo's manifests, whose `offset` is a time."""


# -- reading rows


def rows(
    path: Path, columns: Mapping[str, str], names: tuple[str, ...] = COLUMNS, fix: str = ""
) -> Iterator[tuple[str, Row]]:
    """(place, row) of a table, one row in memory at a time.

    Args:
        path: the file. A first line that begins with { makes it a jsonl; otherwise the header tells
            the delimiter.
        columns: our name -> the table's name.
        names: the columns to take.
        fix: advice for a missing column; by default, to name another.

    Raises:
        DataError: no header, no column `path`, a missing column of `columns`, a line with too many
            or too few fields, broken JSON, or no lines below the header.
    """
    first = next(nonblank_lines(path), None)
    if first is None:
        raise DataError(
            f"{path}: no column {columns.get('path', 'path')!r}, it has no header; "
            "the file is empty"
        )
    is_json = first[1].startswith("{")
    found = (
        _json_rows(path, columns, names, fix)
        if is_json
        else _csv_rows(path, first[1], columns, names, fix)
    )
    empty = True
    for place, row in found:
        empty = False
        yield place, row
    if empty:
        raise DataError(f"{path}: has no lines below its header; add one for each utterance")


def dialect_of(path: Path, header: str) -> type[csv.Dialect]:
    """The dialect by the header; for a header of one column, by the file's name."""
    for dialect in (Tsv, Csv, Semicolons, Bars):
        if dialect.delimiter in header:
            return dialect
    return Tsv if ".tsv" in path.suffixes else Csv


def _csv_rows(
    path: Path, first: str, columns: Mapping[str, str], names: tuple[str, ...], fix: str
) -> Iterator[tuple[str, Row]]:
    dialect = dialect_of(path, first)
    reader = csv.reader((f"{line}\n" for _, line in lines(path)), dialect)
    header: list[str] | None = None
    positions: list[tuple[str, int]] = []
    start = 1
    try:
        for fields in reader:
            place = f"{path}: line {start}"
            start = reader.line_num + 1
            if not any(field.strip() for field in fields):
                continue
            if header is None:
                header = [field.strip() for field in fields]
                columns = with_nemo(columns, header)
                present = _present(path, columns, names, header, fix)
                positions = [(ours, header.index(theirs)) for ours, theirs in present.items()]
                continue
            if len(fields) != len(header):
                advice = (
                    "a text may hold no tab here, write a csv or jsonl"
                    if dialect is Tsv
                    else f"quote a text that holds {dialect.delimiter!r}"
                )
                raise DataError(
                    f"{place} has {len(fields)} fields, its header {len(header)}; {advice}"
                )
            yield place, {ours: fields[i].strip() for ours, i in positions}
    except csv.Error as error:
        raise DataError(
            f"{path}: line {reader.line_num} is not of a csv ({error}); save it as one, in UTF-8"
        ) from error


def _json_rows(
    path: Path, columns: Mapping[str, str], names: tuple[str, ...], fix: str
) -> Iterator[tuple[str, Row]]:
    requested: dict[str, str] = {}
    for number, line in nonblank_lines(path):
        place = f"{path}: line {number}"
        row = json_object(line, place)
        if not requested:
            columns = with_nemo(columns, list(row))
            requested = _requested_columns(columns, names)
            _present(path, columns, names, list(row), fix)
        yield place, {ours: row[theirs] for ours, theirs in requested.items() if theirs in row}


def json_object(line: str, place: str) -> dict[str, Any]:
    """The JSON object in a line. Raises DataError with the place."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{place} is no JSON ({error}); expected an object such as {{...}} in each line"
        ) from error
    if not isinstance(row, dict):
        raise DataError(
            f"{place} holds {type(row).__name__}, "
            "expected a JSON object such as {...} in each line"
        )
    return row


def with_nemo(columns: Mapping[str, str], header: list[str]) -> Mapping[str, str]:
    """`columns`, with NeMo's names where the table has NeMo's column of audio."""
    is_nemo = NEMO["path"] in header and columns.get("path", NEMO["path"]) == NEMO["path"]
    if not is_nemo or ("path" in header and "path" not in columns):
        return columns
    return {ours: theirs for ours, theirs in NEMO.items() if theirs in header} | dict(columns)


def _requested_columns(columns: Mapping[str, str], names: tuple[str, ...]) -> dict[str, str]:
    """Our name -> the table's. A column of theirs that was given one of our names has only that
    meaning, whatever its own name is.
    """
    return {
        ours: columns.get(ours, ours)
        for ours in names
        if ours in columns or ours not in columns.values()
    }


def _present(
    path: Path, columns: Mapping[str, str], names: tuple[str, ...], header: list[str], fix: str
) -> dict[str, str]:
    """Our name -> the header's name of every column that is present."""
    requested = _requested_columns(columns, names)
    for theirs in requested.values():
        if header.count(theirs) > 1:
            raise DataError(f"{path}: has two columns {theirs!r}; rename one")
    for ours, theirs in requested.items():
        if theirs not in header and (ours == "path" or ours in columns):
            found = ", ".join(header) or "no header"
            advice = fix or f"add it, or name another with data.corpus.columns.{ours}"
            raise DataError(
                f"{path}: no column {theirs!r}{did_you_mean(theirs, header)}, it has {found}; "
                f"{advice}"
            )
    return {ours: theirs for ours, theirs in requested.items() if theirs in header}


# -- rows to utterances


def read(path: Path, options: ReadOptions) -> Iterator[Record]:
    """Every row of a table. Raises DataError as `rows` does, and for invalid values."""
    for place, row in rows(path, options.columns):
        yield place, utterance_of(row, place, options, path.parent)


def utterance_of(row: Row, place: str, options: ReadOptions, home: Path) -> SourceUtterance:
    """The utterance of a row in a table of the folder `home`. Raises DataError with place and
    column.
    """
    texts = {name: parse_text(row.get(name), place, name) for name in _TEXT_COLUMNS}
    if not texts["path"]:
        raise DataError(
            f"{place} has no {options.columns.get('path', 'path')!r}; "
            "name the audio file, or remove the line"
        )
    start = _samples(row, place, options, "start", "start_seconds")
    length = _samples(row, place, options, "num_samples", "duration_seconds")
    if length == 0:
        raise DataError(f"{place}: has no samples; remove the line")
    # Without a start, the length is that of the whole file: `prepare` compares it.
    is_file_length = start is None and length is not None
    tolerance = 1
    if is_file_length and not _is_filled(row, "num_samples"):
        tolerance = length_tolerance(row.get("duration_seconds", ""))
    offset = _bytes(row, place, "offset")
    num_bytes = _bytes(row, place, "num_bytes")
    if (offset < 0) != (num_bytes < 0):
        raise DataError(
            f"{place}: has one of offset and num_bytes, which are the place of an audio file in a "
            "shard, in bytes; add the other, or name an offset in seconds with "
            "data.corpus.columns.start_seconds=offset"
        )
    id = texts["id"] or options.id_of(texts["path"])
    if not texts["id"] and not is_file_length and length is not None:
        id = f"{id}-{start or 0:09}-{(start or 0) + length:09}"
    return SourceUtterance(
        id=id,
        path=options.locate(texts["path"], home),
        start=start or 0,
        num_samples=None if is_file_length else length,
        expected_samples=length if is_file_length else None,
        expected_within=tolerance,
        offset=offset,
        num_bytes=num_bytes,
        channel=parse_whole_number(row["channel"], place, "channel")
        if _is_filled(row, "channel")
        else None,
        speaker=texts["speaker"],
        text=texts["text"],
        label=texts["label"],
        split=split_named(texts["split"]) if texts["split"] else options.split_of(texts["path"]),
        corpus=texts["corpus"],
    )


def parse_text(value: Any, place: str, name: str) -> str:
    """A text without surrounding blanks; "" for none, a number as it is written. Raises DataError
    for lists, objects, booleans, NUL and half characters.
    """
    if value is None or value == "":
        return ""
    if isinstance(value, (list, dict, bool)):
        raise DataError(f"{place}: {name} is {str(value)[:40]}, expected a text; fix the line")
    text = str(value).strip()
    if "\0" in text or not (text.isascii() or _SURROGATE.search(text) is None):
        raise DataError(
            f"{place}: {name} is {text[:40]!r}, which holds a NUL or half a character; fix the line"
        )
    return text


def _is_filled(row: Row, name: str) -> bool:
    return row.get(name) not in (None, "")


def _samples(
    row: Row, place: str, options: ReadOptions, in_samples: str, in_seconds: str
) -> int | None:
    """Value at 16 kHz of a column in samples, or of its twin in seconds; None without either."""
    if _is_filled(row, in_samples) and _is_filled(row, in_seconds):
        raise DataError(f"{place}: has both {in_samples} and {in_seconds}; leave one column out")
    if _is_filled(row, in_samples):
        count = parse_whole_number(row[in_samples], place, in_samples)
        return resampled_length(count, options.rate)
    if _is_filled(row, in_seconds):
        return samples(parse_number(row[in_seconds], place, in_seconds))
    return None


def _bytes(row: Row, place: str, name: str) -> int:
    """Value of a byte column; -1 without one."""
    if not _is_filled(row, name) or str(row[name]) == "-1":
        return -1
    return parse_whole_number(row[name], place, name)


# -- writing


def write(target: Path, utterances: Callable[[], Iterator[SourceUtterance]]) -> None:
    """Writes a csv, tsv or jsonl, by the name. Paths below the table's folder become relative.

    Raises DataError for a text that a tsv cannot hold.
    """
    home = target.absolute().parent
    with writing(target) as file:
        if ".jsonl" in target.suffixes:
            put = _json_writer(file)
        else:
            put = _csv_writer(file, Tsv if ".tsv" in target.suffixes else Csv)
        for utterance in utterances():
            put(row_of(utterance, home))


def row_of(utterance: SourceUtterance, home: Path) -> Row:
    """An utterance as a row of a table in the folder `home`."""
    start: int | None = utterance.start
    num_samples = utterance.num_samples
    if num_samples is None:  # a whole file, or a segment to its end
        is_exact = utterance.expected_within <= 1
        start = utterance.start or None
        num_samples = utterance.expected_samples if is_exact else None
    return {
        "id": utterance.id,
        "path": str(utterance.path).removeprefix(f"{home}{os.sep}"),
        "start": start,
        "num_samples": num_samples,
        "offset": _known(utterance.offset),
        "num_bytes": _known(utterance.num_bytes),
        "channel": _known(utterance.channel),
        "speaker": utterance.speaker,
        "text": utterance.text,
        "label": utterance.label,
        "split": utterance.split,
        "corpus": utterance.corpus,
    }


def _known(number: int | None) -> int | None:
    return None if number == -1 else number


def _json_writer(file: IO[str]) -> Callable[[Row], None]:
    def put(row: Row) -> None:
        filled = {name: value for name, value in row.items() if value not in (None, "")}
        file.write(json.dumps(filled, ensure_ascii=False) + "\n")

    return put


def _csv_writer(file: IO[str], dialect: type[csv.Dialect]) -> Callable[[Row], None]:
    writer = csv.DictWriter(file, _WRITTEN_COLUMNS, dialect=dialect)
    writer.writeheader()

    def put(row: Row) -> None:
        if any("\r" in value for value in row.values() if isinstance(value, str)):
            raise DataError(
                f"utterance {row['id']!r}: a text holds a carriage return, "
                "which a csv or tsv would lose; write a jsonl"
            )
        try:
            writer.writerow(row)
        except csv.Error as error:
            raise DataError(
                f"utterance {row['id']!r}: a text holds a tab or a line break, "
                "which a tsv cannot; write a csv or jsonl"
            ) from error

    return put
