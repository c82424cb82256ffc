"""Folders of Hugging Face `datasets`, read with pyarrow alone: what save_to_disk writes, parquet
files, and audio folders with metadata.

Audio inside a table is written once to files below `Reading.folder`. Columns are found by the names
they usually have, or by `Reading.columns`. Class labels come out by name.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

import pyarrow as pa

from hubert_pretrain.data import audio
from hubert_pretrain.data.source import SourceUtterance
from hubert_pretrain.errors import DataError, did_you_mean
from hubert_pretrain.files import read_json, write_bytes
from hubert_pretrain.formats import table
from hubert_pretrain.formats.record import (
    Reading,
    Record,
    header_of,
    split_in,
    split_named,
    stored_bytes,
)
from hubert_pretrain.formats.text import filled_lines, safe_name, writing
from hubert_pretrain.frames import SAMPLE_RATE

_MAGIC = (
    (b"RIFF", ".wav"),
    (b"fLaC", ".flac"),
    (b"OggS", ".ogg"),
    (b"ID3", ".mp3"),
    (b"\xff\xfb", ".mp3"),
    (b"\xff\xf3", ".mp3"),
)


def suffix_of(content: bytes, name: str = "") -> str:
    """The suffix of an audio file by its first bytes, else by the name it had; ".audio" when
    neither tells.
    """
    found = next((suffix for magic, suffix in _MAGIC if content.startswith(magic)), None)
    suffix = os.path.splitext(name)[1].lower()
    return suffix if suffix in audio.SUFFIXES and found in (None, ".ogg") else found or ".audio"


def store(folder: Path, id: str, content: bytes, name: str = "") -> Path:
    """Writes an audio file under a safe name made of the id, once: one that is there with this
    content stays.
    """
    path = folder / f"{safe_name(id)}{suffix_of(content, name)}"
    if not (
        path.is_file() and path.stat().st_size == len(content) and path.read_bytes() == content
    ):
        write_bytes(path, content, sync=False)
    return path


def store_utterance(folder: Path, utterance: SourceUtterance) -> Path:
    """Writes the audio of an utterance: byte for byte when it is a whole file or member of a shard;
    a part of one as FLAC, 16 kHz, 16 bits.

    Raises DataError for a URL, and for a part that its file does not hold.
    """
    import soundfile

    if "://" in str(utterance.path):
        raise DataError(
            f"{utterance.path}: is a URL; copy the audio to a disk, so that it can be written to {folder}"
        )
    header = header_of(utterance)
    if header.is_whole(utterance):
        return store(
            folder,
            utterance.id,
            stored_bytes(utterance),
            str(utterance.path) if utterance.offset < 0 else "",
        )
    if utterance.offset >= 0:
        raise DataError(
            f"utterance {utterance.id!r}: is a part of a member of the shard {utterance.path}; write the whole members to files first"
        )
    wanted = header.length_of(utterance)
    waveform = audio.read(utterance.path, utterance.start, wanted)
    if len(waveform) != wanted:
        raise DataError(
            f"{utterance.path}: has {len(waveform)} samples at {utterance.start}, utterance {utterance.id!r} needs {wanted}; mend the manifest"
        )
    packed = io.BytesIO()
    soundfile.write(packed, waveform, SAMPLE_RATE, format="FLAC", subtype="PCM_16")
    return store(folder, utterance.id, packed.getvalue())


USUAL = {
    "id": ("id", "utterance_id", "utt_id", "segment_id"),
    "path": ("audio", "file_name", "audio_file_name", "path", "file"),
    "text": ("text", "transcription", "transcript", "sentence", "normalized_text"),
    "speaker": ("speaker", "speaker_id", "client_id"),
    "label": ("label", "labels", "intent"),
    "split": ("split",),
    "corpus": ("corpus",),
}
"""Our name -> the names that a column usually has there, the first that is there counts."""
_EXACT = {name: (name,) for name in ("start", "num_samples", "start_seconds", "duration_seconds")}
_METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
_BATCH = 16
"""Rows of a parquet file held at a time, with their audio."""


@dataclass(frozen=True)
class Source:
    """One file of a dataset and the split of its rows."""

    path: Path
    split: str


def is_dataset(path: Path) -> bool:
    """Whether a file or folder is of this kind."""
    if path.is_file():
        return path.suffix in (".parquet", ".arrow") and _magic(path)
    return any((path / name).is_file() for name in ("dataset_dict.json", "state.json")) or any(
        _files(path)
    )


def _magic(path: Path) -> bool:
    with open(path, "rb") as file:
        # "PAR1" begins a parquet file; a message of an Arrow stream begins with ff ff ff ff.
        return file.read(4) in (b"PAR1", b"\xff\xff\xff\xff")


def _files(folder: Path) -> Iterator[Path]:
    """Tables at most two folders below, metadata of audio folders before others."""
    for pattern in ("", "*/", "*/*/"):
        yield from sorted(path for name in _METADATA for path in folder.glob(pattern + name))
    for pattern in ("", "*/"):
        yield from sorted(
            path
            for end in ("parquet", "arrow")
            for path in folder.glob(f"{pattern}*.{end}")
            if path.name not in _METADATA
        )


def sources(path: Path, split: str) -> list[Source]:
    """The files of a dataset. Raises DataError for a folder of save_to_disk that lacks some."""
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
    metadata = [each for each in found if each.name in _METADATA]
    return [Source(each, _split_below(path, each) or split) for each in metadata or found]


def _saved(folder: Path, split: str) -> list[Source]:
    """The tables of one split of save_to_disk."""
    state = read_json(folder / "state.json")
    if not isinstance(state, dict) or not isinstance(state.get("_data_files"), list):
        raise DataError(
            f"{folder / 'state.json'}: missing or damaged; save the dataset again with save_to_disk"
        )
    # A name may not lead out of the folder.
    files = [folder / Path(str(each.get("filename", ""))).name for each in state["_data_files"]]
    if missing := [path for path in files if not path.is_file()]:
        raise DataError(
            f"{missing[0]}: no such file, {folder / 'state.json'} names it; copy the whole folder again"
        )
    return [Source(path, split) for path in files]


def _split_below(folder: Path, path: Path) -> str | None:
    """The split in the name of a file, or of a folder above it."""
    parts = path.relative_to(folder).parts
    return next(
        (split for part in reversed(parts) if (split := split_in(part.partition(".")[0]))), None
    )


def read(path: Path, reading: Reading) -> Iterator[Record]:
    """Every row. Raises DataError for a folder without tables, tables without audio, and rows that
    cannot be.
    """
    for source in sources(path, reading.split):
        here = replace(reading, split=source.split)
        if source.path.suffix in (".csv", ".jsonl"):
            columns = _columns(source.path, _header(source.path), here)
            yield from table.read(source.path, replace(here, columns=columns))
        else:
            yield from _rows(source.path, here)


def _header(path: Path) -> list[str]:
    number, line = next(filled_lines(path), (0, ""))
    if not number:
        raise DataError(f"{path}: is empty; expected a column file_name")
    if path.suffix == ".jsonl":
        return list(table.json_object(line, f"{path}: line {number}"))
    return [name.strip().strip('"') for name in line.split(",")]


def _columns(path: Path, header: list[str], reading: Reading) -> dict[str, str]:
    """Our name -> the table's, for what is there. Raises DataError for a chosen column that is not,
    and when none holds audio.
    """
    for name, theirs in reading.columns.items():
        if theirs not in header:
            raise DataError(
                f"{path}: no column {theirs!r}{did_you_mean(theirs, header)}, it has {', '.join(header)}; mend data.corpus.columns.{name}"
            )
    usual = {
        ours: next((name for name in names if name in header), None)
        for ours, names in (USUAL | _EXACT).items()
    }
    found = {ours: name for ours, name in (usual | dict(reading.columns)).items() if name}
    if "path" not in found:
        raise DataError(
            f"{path}: no column with audio, it has {', '.join(header)}; name it with data.corpus.columns.path"
        )
    return found


def _rows(path: Path, reading: Reading) -> Iterator[Record]:
    """Rows of an Arrow or parquet table, batch by batch."""
    try:
        schema, batches = _open(path)
        columns = _columns(path, schema.names, reading)
        names = _class_names(schema)
        row = 0
        for batch in batches:
            chosen = batch.select(list(dict.fromkeys(columns.values())))
            for i in range(chosen.num_rows):
                values = {
                    ours: chosen.column(theirs)[i].as_py() for ours, theirs in columns.items()
                }
                values |= {
                    ours: _named(values[ours], names[theirs])
                    for ours, theirs in columns.items()
                    if theirs in names
                }
                place = f"{path}: row {row}"
                yield place, _utterance(values, place, f"{reading.split}-{row:09}", path, reading)
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
    return file.schema_arrow, file.iter_batches(_BATCH)


def _class_names(schema: pa.Schema) -> dict[str, list[str]]:
    """Names of the classes of each column of class labels, as `datasets` notes them in the table's
    metadata.
    """
    try:
        info = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        features = info.get("info", {}).get("features", {})
        return {
            name: each["names"]
            for name, each in features.items()
            if isinstance(each, dict) and each.get("_type") == "ClassLabel"
        }
    except (ValueError, AttributeError, KeyError):
        return {}


def _named(value: Any, names: list[str]) -> Any:
    return (
        names[value] if isinstance(value, int) and 0 <= value < len(names) else ""
    )  # -1: no label


def _utterance(
    values: dict[str, Any], place: str, numbered: str, path: Path, reading: Reading
) -> SourceUtterance:
    sound = values["path"]
    path_there, content = (
        (sound.get("path"), sound.get("bytes")) if isinstance(sound, dict) else (sound, None)
    )
    name = path_there if isinstance(path_there, str) else ""
    if content is None and not name:
        raise DataError(
            f"{place}: has neither audio nor the path of any; remove the row, or name the column with data.corpus.columns.path"
        )
    if content is not None:
        name = os.path.basename(name)  # where it lay on the machine that made the dataset
    id = table.text_of(values.get("id"), place, "id") or (reading.id_of(name) if name else numbered)
    if content is not None:
        if reading.folder is None:
            raise DataError(
                f"{place}: holds its audio inside, and there is no folder to write it to; prepare it with data=manifest"
            )
        name = str(store(reading.folder / "audio" / reading.split, id, content, name))
    return table.utterance_of(values | {"id": id, "path": name}, place, reading, path.parent)


def write(target: Path, utterances: Callable[[], Iterator[SourceUtterance]]) -> None:
    """Writes an audio folder: `<split>/metadata.jsonl` and the audio beside it, whole files byte
    for byte, parts of longer ones as FLAC.

    It loads with `datasets.load_dataset("audiofolder", data_dir=...)`.
    """
    with ExitStack() as stack:
        files: dict[str, IO[str]] = {}
        for utterance in utterances():
            if utterance.split not in files:
                files[utterance.split] = stack.enter_context(
                    writing(target / utterance.split / "metadata.jsonl")
                )
            stored = store_utterance(target / utterance.split, utterance)
            row = {
                "file_name": stored.name,
                "id": utterance.id,
                "text": utterance.text,
                "speaker": utterance.speaker,
                "label": utterance.label,
            }
            row |= {"split": utterance.split, "corpus": utterance.corpus}
            files[utterance.split].write(json.dumps(row, ensure_ascii=False) + "\n")
