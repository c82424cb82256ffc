"""Hugging Face `datasets` folders, read with pyarrow alone: output of save_to_disk, parquet files,
and audio folders with metadata. Writing makes an audio folder.

Columns are found by their usual names or by `ReadOptions.columns`. Class labels are read as names.
Audio embedded in a table is written once to files below `ReadOptions.folder`.
"""

from __future__ import annotations

import io
import json
import os
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import IO, Any

import pyarrow as pa

from hubert_pretrain.data import audio
from hubert_pretrain.data.audio_files import EVERY_SUFFIX, entries_of, unreadable
from hubert_pretrain.data.source import SourceUtterance
from hubert_pretrain.errors import DataError, did_you_mean
from hubert_pretrain.files import read_json, write_bytes
from hubert_pretrain.formats import table
from hubert_pretrain.formats.record import (
    ReadOptions,
    Record,
    header_of,
    split_in,
    split_named,
    stored_bytes,
)
from hubert_pretrain.formats.text import nonblank_lines, safe_name, writing
from hubert_pretrain.frames import SAMPLE_RATE

USUAL_COLUMNS = {
    "id": ("id", "utterance_id", "utt_id", "segment_id"),
    "path": ("audio", "file_name", "audio_file_name", "path", "file"),
    "text": ("text", "transcription", "transcript", "sentence", "normalized_text"),
    "speaker": ("speaker", "speaker_id", "client_id"),
    "label": ("label", "labels", "intent"),
    "split": ("split",),
    "corpus": ("corpus",),
    "start": ("start",),
    "num_samples": ("num_samples",),
    "start_seconds": ("start_seconds",),
    "duration_seconds": ("duration_seconds",),
}
"""Our name -> usual names of the column; the first that is present counts."""
_METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
_BATCH_ROWS = 16
"""Rows of a parquet file in memory at a time, with their audio."""


# -- finding the files


@dataclass(frozen=True)
class Source:
    """One file of a dataset and the split of its rows."""

    path: Path
    split: str


def is_dataset(path: Path) -> bool:
    """True for a file or folder that is a dataset."""
    if path.is_file():
        return path.suffix in (".parquet", ".arrow") and _has_magic(path)
    is_saved = any((path / name).is_file() for name in ("dataset_dict.json", "state.json"))
    return is_saved or any(_files(path))


def _has_magic(path: Path) -> bool:
    with open(path, "rb") as file:
        # "PAR1" begins a parquet file; a message of an Arrow stream begins with ff ff ff ff.
        return file.read(4) in (b"PAR1", b"\xff\xff\xff\xff")


def _files(folder: Path) -> Iterator[Path]:
    """Tables up to two folders below, metadata of audio folders before others. Raises DataError for
    a folder that cannot be read.
    """
    levels = [[folder]]
    tables: list[list[Path]] = []
    for _ in range(2):
        inside = [entry for above in levels[-1] for entry in entries_of(above)]
        levels.append([Path(entry.path) for entry in inside if entry.is_dir()])
        tables.append([Path(entry.path) for entry in inside if entry.is_file()])
    try:
        for folders in levels:
            named = [above / name for above in folders for name in _METADATA]
            yield from (path for path in named if path.is_file())
    except PermissionError as error:
        raise unreadable(error) from error
    for files in tables:
        for suffix in (".parquet", ".arrow"):
            yield from (
                path for path in files if path.suffix == suffix and path.name not in _METADATA
            )


def sources(path: Path, split: str) -> list[Source]:
    """The files of a dataset. Raises DataError for an incomplete folder of save_to_disk."""
    if path.is_file():
        return [Source(path, split_in(path.stem) or split)]
    if (path / "dataset_dict.json").is_file():
        splits = (read_json(path / "dataset_dict.json") or {}).get("splits", [])
        return [
            source
            for name in splits
            for source in _saved(path / Path(str(name)).name, split_named(str(name)))
        ]
    if (path / "state.json").is_file():
        return _saved(path, split)
    found = list(_files(path))
    metadata = [file for file in found if file.name in _METADATA]
    return [Source(file, _split_below(path, file) or split) for file in metadata or found]


def _saved(folder: Path, split: str) -> list[Source]:
    """The tables of one split of save_to_disk."""
    state = read_json(folder / "state.json")
    if not isinstance(state, dict) or not isinstance(state.get("_data_files"), list):
        raise DataError(
            f"{folder / 'state.json'}: missing or damaged; save the dataset again with save_to_disk"
        )
    # Only the last part of a name counts, so that it cannot lead out of the folder.
    files = [folder / Path(str(each.get("filename", ""))).name for each in state["_data_files"]]
    for file in files:
        if not file.is_file():
            raise DataError(
                f"{file}: no such file, {folder / 'state.json'} names it; "
                "copy the whole folder again"
            )
    return [Source(file, split) for file in files]


def _split_below(folder: Path, path: Path) -> str | None:
    """The split in the name of a file, or of a folder between it and `folder`."""
    for part in reversed(path.relative_to(folder).parts):
        split = split_in(part.partition(".")[0])
        if split:
            return split
    return None


# -- reading


def read(path: Path, options: ReadOptions) -> Iterator[Record]:
    """Every row. Raises DataError for a folder without tables, tables without audio, and invalid
    rows.
    """
    numbers: defaultdict[str, count[int]] = defaultdict(count)  # split -> numbers of its rows
    for source in sources(path, options.split):
        # In an audio folder with one table for all, the folders of the audio name the splits.
        is_metadata = source.path.name in _METADATA
        here = replace(options, split=source.split, split_by_folders=is_metadata)
        if is_metadata and source.path.parent not in (path, path.parent):
            above = source.path.parent.relative_to(path).as_posix()
            here = replace(here, folder_of_ids=f"{above}/")
        if source.path.suffix in (".csv", ".jsonl"):
            columns = _columns(source.path, _header(source.path), here)
            yield from table.read(source.path, replace(here, columns=columns))
        else:
            yield from _rows(source.path, here, numbers[source.split])


def _header(path: Path) -> list[str]:
    """Names of the columns of a csv or jsonl."""
    number, line = next(nonblank_lines(path), (0, ""))
    if not number:
        raise DataError(f"{path}: is empty; expected a column file_name")
    if path.suffix == ".jsonl":
        return list(table.json_object(line, f"{path}: line {number}"))
    delimiter = table.dialect_of(path, line).delimiter
    return [name.strip().strip('"') for name in line.split(delimiter)]


def _columns(path: Path, header: list[str], options: ReadOptions) -> dict[str, str]:
    """Our name -> the table's, for the columns that are present. Raises DataError for a chosen
    column that is missing, and without a column of audio.
    """
    for ours, theirs in options.columns.items():
        if theirs not in header:
            raise DataError(
                f"{path}: no column {theirs!r}{did_you_mean(theirs, header)}, it has "
                f"{', '.join(header)}; fix data.corpus.columns.{ours}"
            )
    columns: dict[str, str] = {}
    for ours, names in USUAL_COLUMNS.items():
        present = [name for name in names if name in header]
        if present:
            columns[ours] = present[0]
    columns |= options.columns
    if "path" not in columns:
        raise DataError(
            f"{path}: no column with audio, it has {', '.join(header)}; "
            "name it with data.corpus.columns.path"
        )
    return columns


def _rows(path: Path, options: ReadOptions, numbers: Iterator[int]) -> Iterator[Record]:
    """Rows of an Arrow or parquet table, batch by batch; those without id and name get an id from
    `numbers`.
    """
    try:
        schema, batches = _open(path)
        columns = _columns(path, schema.names, options)
        class_names = _class_names(schema)
        row = 0
        for batch in batches:
            chosen = batch.select(list(dict.fromkeys(columns.values())))
            for i in range(chosen.num_rows):
                values = {}
                for ours, theirs in columns.items():
                    value = chosen.column(theirs)[i].as_py()
                    if theirs in class_names:
                        value = _class_name(value, class_names[theirs])
                    values[ours] = value
                place = f"{path}: row {row}"
                default_id = f"{options.split}-{next(numbers):09}"
                yield place, _utterance(values, place, default_id, path, options)
                row += 1
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(
            f"{path}: damaged ({str(error).splitlines()[0]}); copy the file again"
        ) from error


def _open(path: Path) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
    if path.suffix == ".arrow":
        reader = pa.ipc.open_stream(pa.memory_map(str(path)))
        return reader.schema, iter(reader)
    import pyarrow.parquet

    file = pyarrow.parquet.ParquetFile(path)
    return file.schema_arrow, file.iter_batches(_BATCH_ROWS)


def _class_names(schema: pa.Schema) -> dict[str, list[str]]:
    """Column of class labels -> names of its classes, which `datasets` stores in the table's
    metadata.
    """
    try:
        info = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        features = info.get("info", {}).get("features", {})
        return {
            name: feature["names"]
            for name, feature in features.items()
            if isinstance(feature, dict) and feature.get("_type") == "ClassLabel"
        }
    except (ValueError, AttributeError, KeyError):
        return {}


def _class_name(value: Any, names: list[str]) -> Any:
    is_known = isinstance(value, int) and 0 <= value < len(names)
    return names[value] if is_known else ""  # -1: no label


def _utterance(
    values: dict[str, Any], place: str, default_id: str, path: Path, options: ReadOptions
) -> SourceUtterance:
    # An audio column holds a path, or a struct of a path and, when embedded, the file's bytes.
    audio_value = values["path"]
    stored_path = audio_value.get("path") if isinstance(audio_value, dict) else audio_value
    content = audio_value.get("bytes") if isinstance(audio_value, dict) else None
    name = stored_path if isinstance(stored_path, str) else ""
    if content is not None:
        name = os.path.basename(name)  # folders are those of the machine that made the dataset
    id = table.parse_text(values.get("id"), place, "id")
    if not id:
        id = options.id_of(name) if name and options.ids != "row" else default_id
    if content is None and not name:
        fault = "its row has neither audio nor the path of any; remove the row"
        return SourceUtterance(id=id, path=path, split=options.split, fault=fault)
    if content is not None:
        if options.folder is None:
            raise DataError(
                f"{place}: holds its audio inside, and there is no folder to write it to; "
                "prepare it with data=manifest"
            )
        name = str(store(options.folder / "audio" / options.split, id, content, name))
    return table.utterance_of(values | {"id": id, "path": name}, place, options, path.parent)


# -- writing


def write(target: Path, utterances: Callable[[], Iterator[SourceUtterance]]) -> None:
    """Writes an audio folder: `<split>/metadata.jsonl` and the audio beside it, whole files byte
    for byte, segments of longer ones as FLAC.

    It loads with `datasets.load_dataset("audiofolder", data_dir=...)`.
    """
    with ExitStack() as stack:
        files: dict[str, IO[str]] = {}
        for utterance in utterances():
            folder = target / utterance.split
            if utterance.split not in files:
                files[utterance.split] = stack.enter_context(writing(folder / "metadata.jsonl"))
            row = {
                "file_name": store_utterance(folder, utterance).name,
                "id": utterance.id,
                "text": utterance.text,
                "speaker": utterance.speaker,
                "label": utterance.label,
                "split": utterance.split,
                "corpus": utterance.corpus,
            }
            files[utterance.split].write(json.dumps(row, ensure_ascii=False) + "\n")


def store_utterance(folder: Path, utterance: SourceUtterance) -> Path:
    """Writes the audio of an utterance: a whole file or member of a shard byte for byte; a segment
    as FLAC, 16 kHz, 16 bits.

    Raises DataError for a URL, and for a segment that its file does not hold.
    """
    import soundfile

    if "://" in str(utterance.path):
        raise DataError(
            f"{utterance.path}: is a URL; copy the audio to a disk, "
            f"so that it can be written to {folder}"
        )
    header = header_of(utterance, any_channel=True)
    channel = audio.MIX if utterance.channel is None else utterance.channel
    if header.is_whole(utterance) and channel == audio.MIX:
        name = str(utterance.path) if utterance.offset < 0 else ""
        return store(folder, utterance.id, stored_bytes(utterance), name)
    if utterance.offset >= 0:
        raise DataError(
            f"utterance {utterance.id!r}: is a part of a member of the shard {utterance.path}; "
            "write the whole members to files first"
        )
    length = header.length_of(utterance)
    waveform = audio.read(utterance.path, utterance.start, length, channel=channel)
    if len(waveform) != length:
        raise DataError(
            f"{utterance.path}: has {len(waveform)} samples at {utterance.start}, "
            f"utterance {utterance.id!r} needs {length}; fix the manifest"
        )
    flac = io.BytesIO()
    soundfile.write(flac, waveform, SAMPLE_RATE, format="FLAC", subtype="PCM_16")
    return store(folder, utterance.id, flac.getvalue())


# -- audio files from bytes

_MAGIC = (
    (b"RIFF", ".wav"),
    (b"fLaC", ".flac"),
    (b"OggS", ".ogg"),
    (b"ID3", ".mp3"),
    (b"\xff\xfb", ".mp3"),
    (b"\xff\xf3", ".mp3"),
)


def store(folder: Path, id: str, content: bytes, name: str = "") -> Path:
    """Writes an audio file under a safe name made of the id. An existing file with this content
    stays.
    """
    path = folder / f"{safe_name(id)}{suffix_of(content, name)}"
    if not (
        path.is_file() and path.stat().st_size == len(content) and path.read_bytes() == content
    ):
        write_bytes(path, content, sync=False)
    return path


def suffix_of(content: bytes, name: str = "") -> str:
    """Suffix of an audio file by its first bytes, else by its name; ".audio" when neither tells."""
    by_content = next((suffix for magic, suffix in _MAGIC if content.startswith(magic)), None)
    by_name = os.path.splitext(name)[1].lower()
    # Ogg also holds Opus: only the name tells .ogg from .opus.
    if by_name in EVERY_SUFFIX and by_content in (None, ".ogg"):
        return by_name
    return by_content or ".audio"
