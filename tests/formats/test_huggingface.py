"""Folders of `datasets`, made here with the files, keys and schema metadata that the library (5.2)
writes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hubert_pretrain.corpora.manifest import ManifestFile
from hubert_pretrain.data.source import SourceUtterance
from hubert_pretrain.errors import DataError
from hubert_pretrain.formats.huggingface import store, suffix_of

from .conftest import write_audio

FEATURES = {
    "audio": {"sampling_rate": 16000, "_type": "Audio"},
    "sentence": {"dtype": "string", "_type": "Value"},
    "label": {"names": ["no", "yes"], "_type": "ClassLabel"},
    "speaker_id": {"dtype": "int64", "_type": "Value"},
}


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    return [write_audio(tmp_path / "elsewhere" / f"{i}.wav", 1000 + i, seed=i) for i in range(4)]


def table(files: list[Path], embed: bool) -> pa.Table:
    """As `Dataset.save_to_disk` has it: bytes and the file's name, or its path alone."""
    audio = [
        {"bytes": path.read_bytes() if embed else None, "path": path.name if embed else str(path)}
        for path in files
    ]
    columns = {
        "audio": pa.array(audio, pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
        "sentence": pa.array([f"TEXT {path.stem}" for path in files]),
        "label": pa.array([i % 3 - 1 for i in range(len(files))], pa.int64()),
        "speaker_id": pa.array(range(84, 84 + len(files)), pa.int64()),
    }
    return pa.table(columns).replace_schema_metadata(
        {"huggingface": json.dumps({"info": {"features": FEATURES}})}
    )


def save_to_disk(folder: Path, content: pa.Table, parts: int = 1) -> Path:
    folder.mkdir(parents=True)
    names = [f"data-{i:05}-of-{parts:05}.arrow" for i in range(parts)]
    for i, name in enumerate(names):
        rows = content.num_rows // parts
        part = content.slice(i * rows, rows if i < parts - 1 else None)
        with (
            pa.OSFile(str(folder / name), "wb") as sink,
            pa.ipc.new_stream(sink, part.schema) as writer,
        ):
            writer.write_table(part)
    (folder / "state.json").write_text(
        json.dumps({"_data_files": [{"filename": name} for name in names], "_split": None})
    )
    (folder / "dataset_info.json").write_text(json.dumps({"features": FEATURES}))
    return folder


def read(path: Path, out: Path, **options: Any) -> list[SourceUtterance]:
    return list(ManifestFile(path=str(path), **options).utterances(out))


@pytest.mark.parametrize("kind", ["dict", "one", "parquet"])
@pytest.mark.parametrize("embed", [True, False])
def test_datasets(tmp_path: Path, files: list[Path], kind: str, embed: bool) -> None:
    home = tmp_path / "dataset"
    out = tmp_path / "out"
    splits = {"train": files[:3], "validation": files[3:]}
    if kind == "dict":
        for split, members in splits.items():
            save_to_disk(home / split, table(members, embed), parts=len(members))
        (home / "dataset_dict.json").write_text('{"splits": ["train", "validation"]}')
    elif kind == "one":
        save_to_disk(home, table(files, embed))
    else:
        (home / "data").mkdir(parents=True)
        for split, members in splits.items():
            pq.write_table(table(members, embed), home / "data" / f"{split}-00000-of-00001.parquet")
    found = read(home, out)
    ids = [str(path.with_suffix("")) if not embed else path.stem for path in files]
    assert [(utterance.id, utterance.text) for utterance in found] == [
        (id, f"TEXT {path.stem}") for id, path in zip(ids, files, strict=True)
    ]
    assert [utterance.split for utterance in found] == ["train"] * 3 + [
        "train" if kind == "one" else "valid"
    ]
    assert [utterance.speaker for utterance in found] == [
        "84",
        "85",
        "86",
        "87" if kind == "one" else "84",
    ]
    assert [utterance.label for utterance in found[:3]] == ["", "no", "yes"]
    assert [Path(utterance.path).read_bytes() for utterance in found] == [
        path.read_bytes() for path in files
    ]
    assert all((out in Path(utterance.path).parents) == embed for utterance in found)


def test_embedded_audio_is_written_once_under_safe_names(tmp_path: Path, files: list[Path]) -> None:
    content = table(files[:2], embed=True).append_column("id", pa.array(["../../evil", "b/c"]))
    home = save_to_disk(tmp_path / "dataset", content)
    out = tmp_path / "deep" / "er" / "out"
    first = [Path(utterance.path) for utterance in read(home, out)]
    assert all(path.parent == out / "audio" / "train" for path in first)
    times = [path.stat().st_mtime_ns for path in first]
    again = [Path(utterance.path) for utterance in read(home, out)]
    assert (again, [path.stat().st_mtime_ns for path in again]) == (first, times)
    first[0].write_bytes(b"RIFF half")  # of a killed run
    assert Path(read(home, out)[0].path).read_bytes() == files[0].read_bytes()
    assert not [path for path in tmp_path.rglob("*evil*") if out not in path.parents]


def test_audio_folders(tmp_path: Path, files: list[Path]) -> None:
    home = tmp_path / "dataset"
    for i, (split, name) in enumerate([("train", "metadata.csv"), ("test", "metadata.jsonl")]):
        (home / split).mkdir(parents=True)
        (home / split / f"{i}.wav").write_bytes(files[i].read_bytes())
        row = {"file_name": f"{i}.wav", "transcription": "HI, YOU", "speaker_id": 7}
        text = (
            json.dumps(row)
            if name.endswith("jsonl")
            else 'file_name,transcription,speaker_id\n0.wav,"HI, YOU",7'
        )
        (home / split / name).write_text(text + "\n")
    found = sorted(read(home, tmp_path / "out"), key=lambda one: one.path)
    assert [
        (utterance.id, utterance.split, utterance.text, utterance.speaker, str(utterance.path))
        for utterance in found
    ] == [
        ("test/1", "test", "HI, YOU", "7", str(home / "test/1.wav")),
        ("train/0", "train", "HI, YOU", "7", str(home / "train/0.wav")),
    ]


@pytest.mark.parametrize("name", ["metadata.csv", "metadata.jsonl", "metadata.parquet"])
def test_folders_of_audio_name_the_splits_of_one_table_for_all(
    tmp_path: Path, files: list[Path], name: str
) -> None:
    """`datasets` takes splits from the folders of the audio, wherever the table lies."""
    rows = [
        {"file_name": f"{folder}/{path.name}", "text": path.stem}
        for folder, path in zip(("train", "test", "data/dev", "more"), files, strict=True)
    ]
    home = tmp_path / "dataset"
    home.mkdir()
    if name.endswith("parquet"):
        pq.write_table(pa.Table.from_pylist(rows), home / name)
    elif name.endswith("csv"):
        lines = ["file_name;text", *(";".join(row.values()) for row in rows)]
        (home / name).write_text("".join(f"{line}\n" for line in lines))
    else:
        (home / name).write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    found = {one.id: one.split for one in read(home, tmp_path / "out")}
    assert found == {"train/0": "train", "test/1": "test", "data/dev/2": "valid", "more/3": "train"}


def test_tables_of_several_files_need_no_ids(tmp_path: Path, files: list[Path]) -> None:
    """Neither do those whose embedded audio has the same names in every file."""
    struct = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    for names, ids in (([None, None], "path"), (["audio.wav", "audio.wav"], "row")):
        for number in range(2):
            audio = [
                {"bytes": path.read_bytes(), "path": name}
                for path, name in zip(files[2 * number : 2 * number + 2], names, strict=True)
            ]
            part = pa.table({"audio": pa.array(audio, struct)})
            pq.write_table(part, tmp_path / f"train-{number:05}-of-00002.parquet")
        found = read(tmp_path, tmp_path / f"out {ids}", ids=ids)
        assert [one.id for one in found] == [f"train-{row:09}" for row in range(4)]
        assert [Path(one.path).read_bytes() for one in found] == [
            path.read_bytes() for path in files
        ]
    with pytest.raises(DataError, match=r"repeats utterance 'audio' .*data\.corpus\.ids"):
        read(tmp_path, tmp_path / "out")


def test_errors_name_the_fault(tmp_path: Path, files: list[Path]) -> None:
    home = save_to_disk(tmp_path / "dataset", table(files, embed=True), parts=2)
    with pytest.raises(
        DataError,
        match=r"no column 'text'( \(did you mean 'sentence'|, it has audio, sentence)",
    ):
        read(home, tmp_path / "out", columns={"text": "text"})
    whole = (home / "data-00001-of-00002.arrow").read_bytes()
    (home / "data-00001-of-00002.arrow").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"data-00001-of-00002\.arrow: damaged"):
        read(home, tmp_path / "out")
    (home / "data-00001-of-00002.arrow").unlink()
    with pytest.raises(
        DataError, match=r"data-00001-of-00002\.arrow: no such file, .*state\.json names it"
    ):
        read(home, tmp_path / "out")
    (home / "state.json").write_text("{")
    with pytest.raises(DataError, match=r"state\.json: missing or damaged"):
        read(home, tmp_path / "out")
    silent = save_to_disk(tmp_path / "silent", table(files, embed=True).drop_columns(["audio"]))
    with pytest.raises(DataError, match=r"no column with audio, it has sentence"):
        read(silent, tmp_path / "out")
    empty = pa.table(
        {
            "audio": pa.array(
                [{"bytes": None, "path": None}],
                pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
            )
        }
    )
    (one,) = read(save_to_disk(tmp_path / "empty", empty), tmp_path / "out")
    assert one.fault == "its row has neither audio nor the path of any; remove the row"


def test_names_in_a_state_stay_in_its_folder(tmp_path: Path, files: list[Path]) -> None:
    home = save_to_disk(tmp_path / "dataset", table(files, embed=True))
    (home / "data-00000-of-00001.arrow").rename(tmp_path / "secret.arrow")
    (home / "state.json").write_text(json.dumps({"_data_files": [{"filename": "../secret.arrow"}]}))
    with pytest.raises(DataError, match=r"dataset/secret\.arrow: no such file"):
        read(home, tmp_path / "out")


@pytest.mark.parametrize(
    ("content", "name", "suffix"),
    [
        (b"RIFF", "", ".wav"),
        (b"fLaC", "x.wav", ".flac"),
        (b"OggS", "x.opus", ".opus"),
        (b"OggS", "", ".ogg"),
        (b"?", "a.mp3", ".mp3"),
        (b"?", "x.exe", ".audio"),
    ],
)
def test_suffixes_come_from_the_content(
    tmp_path: Path, content: bytes, name: str, suffix: str
) -> None:
    assert suffix_of(content, name) == suffix
    assert store(tmp_path, "id", content, name) == tmp_path / f"id{suffix}"
