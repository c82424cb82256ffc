"""Tables with named columns: csv, tsv and jsonl (a JSON object in each line).

Columns: path (the only one needed), id, start and num_samples (at 16 kHz, or at `Reading.rate`) or
start_seconds and duration_seconds (a part of a longer recording; without a start the length of the
whole file, which `prepare` compares), offset and num_bytes (where in a shard the audio file lies),
speaker, text, label, split, corpus.
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
from hubert_pretrain.formats.record import Reading, Record, split_named
from hubert_pretrain.formats.text import (
    filled_lines,
    lines,
    number_of,
    rounding_of,
    seconds_to_samples,
    whole_number_of,
    writing,
)

TEXTS = ("id", "path", "speaker", "text", "label", "split", "corpus")
COLUMNS = (
    "id",
    "path",
    "start",
    "num_samples",
    "start_seconds",
    "duration_seconds",
    "offset",
    "num_bytes",
    *TEXTS[2:],
)
_WRITTEN = tuple(name for name in COLUMNS if not name.endswith("_seconds"))

_HALF = re.compile("[\ud800-\udfff]")
"""Half of a pair of UTF-16, which JSON can spell and no file can hold."""

Row = dict[str, Any]
"""Our name -> value of the columns that are there; strings in a csv, JSON scalars in a jsonl."""


class Tsv(csv.excel_tab):
    """Tab-separated, and a quotation mark is part of the text (as in Common Voice)."""

    quoting = csv.QUOTE_NONE
    quotechar = None
    lineterminator = "\n"


class Csv(csv.excel):
    """Comma-separated."""

    lineterminator = "\n"
    strict = True


def rows(
    path: Path, columns: Mapping[str, str], names: tuple[str, ...] = COLUMNS, fix: str = ""
) -> Iterator[tuple[str, Row]]:
    """(place, row) of a table, one after the other: only the present line is in memory.

    Args:
        path: the file; a first line that begins with { makes it a jsonl, else its header tells
        commas from tabs. columns: our name -> the table's. names: the columns to take. fix: what to
        do about a column that is not there; by default to name another.

    Raises:
        DataError: no header, no column `path`, a column of `columns` that is not there, a line with
        too many or too few fields, broken
            JSON, no lines below the header.
    """
    first = next(filled_lines(path), None)
    if first is None:
        raise DataError(
            f"{path}: no column {columns.get('path', 'path')!r}, it has no header; the file is empty"
        )
    found = (
        _json_rows(path, columns, names, fix)
        if first[1].startswith("{")
        else _csv_rows(path, first, columns, names, fix)
    )
    empty = True
    for empty, each in ((False, each) for each in found):  # noqa: B007
        yield each
    if empty:
        raise DataError(f"{path}: has no lines below its header; add one for each utterance")


def dialect_of(path: Path, header: str) -> type[csv.Dialect]:
    """Tabs or commas: what the header has; a header of one column leaves it to the file's name."""
    return Tsv if "\t" in header or (".tsv" in path.suffixes and "," not in header) else Csv


def _csv_rows(
    path: Path, first: tuple[int, str], columns: Mapping[str, str], names: tuple[str, ...], fix: str
) -> Iterator[tuple[str, Row]]:
    dialect = dialect_of(path, first[1])
    reader = csv.reader((f"{line}\n" for _, line in lines(path)), dialect)
    header: list[str] | None = None
    wanted: list[tuple[str, int]] = []
    start = 1
    try:
        for fields in reader:
            place = f"{path}: line {start}"
            start = reader.line_num + 1
            if not any(field.strip() for field in fields):
                continue
            if header is None:
                header = [field.strip() for field in fields]
                wanted = [
                    (ours, header.index(theirs))
                    for ours, theirs in _present(path, columns, names, header, fix).items()
                ]
                continue
            if len(fields) != len(header):
                raise DataError(
                    f"{place} has {len(fields)} fields, its header {len(header)}; "
                    f"{'a text may hold no tab here, write a csv or jsonl' if dialect is Tsv else 'quote a text that holds commas'}"
                )
            yield place, {ours: fields[i].strip() for ours, i in wanted}
    except csv.Error as error:
        raise DataError(
            f"{path}: line {reader.line_num} is not of a csv ({error}); save it as one, in UTF-8"
        ) from error


def _json_rows(
    path: Path, columns: Mapping[str, str], names: tuple[str, ...], fix: str
) -> Iterator[tuple[str, Row]]:
    present: dict[str, str] = {}
    for number, line in filled_lines(path):
        place = f"{path}: line {number}"
        row = json_object(line, place)
        if not present:
            _present(path, columns, names, list(row), fix)
            present = _requested_columns(columns, names)
        yield place, {ours: row[theirs] for ours, theirs in present.items() if theirs in row}


def json_object(line: str, place: str) -> dict[str, Any]:
    """The JSON object in a line. Raises DataError naming the place."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{place} is no JSON ({error}); expected an object such as {{...}} in each line"
        ) from error
    if not isinstance(row, dict):
        raise DataError(
            f"{place} holds {type(row).__name__}, expected a JSON object such as {{...}} in each line"
        )
    return row


def _requested_columns(columns: Mapping[str, str], names: tuple[str, ...]) -> dict[str, str]:
    """Our name -> the table's. A column of theirs that stands for one of ours is no other, whatever
    its name.
    """
    return {
        ours: columns.get(ours, ours)
        for ours in names
        if ours in columns or ours not in columns.values()
    }


def _present(
    path: Path, columns: Mapping[str, str], names: tuple[str, ...], header: list[str], fix: str
) -> dict[str, str]:
    """Our name -> the header's name of every column that is there."""
    wanted = _requested_columns(columns, names)
    if twice := [name for name in wanted.values() if header.count(name) > 1]:
        raise DataError(f"{path}: has two columns {twice[0]!r}; rename one")
    for ours, theirs in wanted.items():
        if theirs not in header and (ours == "path" or ours in columns):
            raise DataError(
                f"{path}: no column {theirs!r}{did_you_mean(theirs, header)}, it has {', '.join(header) or 'no header'}; "
                + (fix or f"add it, or name another with data.corpus.columns.{ours}")
            )
    return {ours: theirs for ours, theirs in wanted.items() if theirs in header}


def read(path: Path, reading: Reading) -> Iterator[Record]:
    """Every row of a table. Raises DataError as `rows` does, and for values that cannot be."""
    for place, row in rows(path, reading.columns):
        yield place, utterance_of(row, place, reading, path.parent)


def utterance_of(row: Row, place: str, reading: Reading, home: Path) -> SourceUtterance:
    """What a row says. Raises DataError naming the place and the column."""
    texts = {name: text_of(row.get(name), place, name) for name in TEXTS}
    if not texts["path"]:
        raise DataError(
            f"{place} has no {reading.columns.get('path', 'path')!r}; name the audio file, or remove the line"
        )
    start = _samples(row, place, reading, "start", "start_seconds")
    num_samples = _samples(row, place, reading, "num_samples", "duration_seconds")
    if num_samples == 0:
        raise DataError(f"{place}: has no samples; remove the line")
    rounding = 1 if _filled(row, "num_samples") else rounding_of(row.get("duration_seconds", ""))
    whole = (
        {"expected_samples": num_samples, "expected_within": rounding}
        if num_samples is not None
        else {}
    )
    return SourceUtterance(
        id=texts["id"] or reading.id_of(texts["path"]),
        path=reading.locate(texts["path"], home),
        **(whole if start is None else {"start": start, "num_samples": num_samples}),  # type: ignore[arg-type]
        offset=_bytes(row, place, "offset"),
        num_bytes=_bytes(row, place, "num_bytes"),
        speaker=texts["speaker"],
        text=texts["text"],
        label=texts["label"],
        split=split_named(texts["split"]) if texts["split"] else reading.split,
        corpus=texts["corpus"],
    )


def text_of(value: Any, place: str, name: str) -> str:
    """A text without blanks around it; "" for none, a number as it is written."""
    if value is None or value == "":
        return ""
    if isinstance(value, (list, dict, bool)):
        raise DataError(f"{place}: {name} is {str(value)[:40]}, expected a text; mend the line")
    text = str(value).strip()
    if "\0" in text or not (text.isascii() or _HALF.search(text) is None):
        raise DataError(
            f"{place}: {name} is {text[:40]!r}, which holds a NUL or half a character; mend the line"
        )
    return text


def _filled(row: Row, name: str) -> bool:
    return row.get(name) not in (None, "")


def _samples(row: Row, place: str, reading: Reading, samples: str, seconds: str) -> int | None:
    """A column that counts samples, or its twin that counts seconds, at 16 kHz."""
    if _filled(row, samples) and _filled(row, seconds):
        raise DataError(f"{place}: has both {samples} and {seconds}; leave one column out")
    if _filled(row, samples):
        return resampled_length(whole_number_of(row[samples], place, samples), reading.rate)
    return (
        seconds_to_samples(number_of(row[seconds], place, seconds))
        if _filled(row, seconds)
        else None
    )


def _bytes(row: Row, place: str, name: str) -> int:
    return (
        whole_number_of(row[name], place, name)
        if _filled(row, name) and str(row[name]) != "-1"
        else -1
    )


def write(target: Path, utterances: Callable[[], Iterator[SourceUtterance]]) -> None:
    """Writes a csv, tsv or jsonl, as the name says. Paths below the table's folder are written
    relative to it.

    Raises DataError for a text that a tsv cannot hold.
    """
    with writing(target) as file:
        put = (
            _json_writer(file)
            if ".jsonl" in target.suffixes
            else _csv_writer(file, Tsv if ".tsv" in target.suffixes else Csv)
        )
        for utterance in utterances():
            put(row_of(utterance, target.absolute().parent))


def row_of(utterance: SourceUtterance, home: Path) -> Row:
    """A utterance as a row of a table in the folder `home`."""
    path = str(utterance.path)
    inside = f"{home}{os.sep}"
    values = {name: getattr(utterance, name) for name in _WRITTEN}
    if utterance.num_samples is None:  # a whole file, or one from `start` to its end
        values |= {
            "start": utterance.start or None,
            "num_samples": utterance.expected_samples if utterance.expected_within <= 1 else None,
        }
    unset = {"offset": -1, "num_bytes": -1}
    values |= {"path": path.removeprefix(inside)} | {
        name: None for name, none in unset.items() if values[name] == none
    }
    return values


def _json_writer(file: IO[str]) -> Callable[[Row], None]:
    def put(row: Row) -> None:
        kept = {name: value for name, value in row.items() if value not in (None, "")}
        file.write(json.dumps(kept, ensure_ascii=False) + "\n")

    return put


def _csv_writer(file: IO[str], dialect: type[csv.Dialect]) -> Callable[[Row], None]:
    writer = csv.DictWriter(file, _WRITTEN, dialect=dialect)
    writer.writeheader()

    def put(row: Row) -> None:
        if any("\r" in value for value in row.values() if isinstance(value, str)):
            raise DataError(
                f"utterance {row['id']!r}: a text holds a carriage return, which a csv or tsv would lose; write a jsonl"
            )
        try:
            writer.writerow(row)
        except csv.Error as error:
            raise DataError(
                f"utterance {row['id']!r}: a text holds a tab or a line break, which a tsv cannot; write a csv or jsonl"
            ) from error

    return put
