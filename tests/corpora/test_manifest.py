"""`data=manifest`: detection of formats, splits, several manifests, stage `prepare`, and the
command that converts manifests.
"""

from __future__ import annotations

import importlib.util
import json
import tracemalloc
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import soundfile

from hubert_pretrain.config.schema import DataConfig, Recipe
from hubert_pretrain.corpora.manifest import ManifestFile
from hubert_pretrain.data.corpus import Corpus
from hubert_pretrain.data.source import SourceUtterance
from hubert_pretrain.errors import DataError
from hubert_pretrain.formats import registry
from hubert_pretrain.interop.fairseq_dictionary import read_dictionary
from hubert_pretrain.pipeline.workspace import Workspace
from hubert_pretrain.stages import prepare


def write_audio(path: Path, num_samples: int = 8000) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.random.default_rng(len(path.name)).normal(0, 0.1, num_samples), 16_000)
    return path


def write(path: Path, content: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    return path


def utterances(path: Any, **options: Any) -> list[SourceUtterance]:
    return list(ManifestFile(path=path, **options).utterances(Path("unused")))


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("x.csv", "path,text\na.wav,b\n", "csv"),
        ("x.csv", "path\na.wav\n", "csv"),
        ("x.txt", "text\tpath\nb\ta.wav\n", "tsv"),
        ("x.tsv", "path\na.wav\n", "tsv"),
        ("x.tsv", "/root\na.wav\t1000\n", "fairseq"),
        ("x.tsv", ".\na.wav\n", "fairseq"),
        ("x.txt", "/root, with a comma\na.wav\t1000\n", "fairseq"),
        ("x", '{"path": "a.wav"}\n', "jsonl"),
        ("x", '{"id": "c", "type": "MonoCut"}\n', "lhotse"),
        ("x", '{"id": "r", "sources": []}\n', "lhotse"),
        ("wav.scp", "u a.wav\n", "kaldi"),
    ],
)
def test_formats_are_detected_by_content(
    tmp_path: Path, name: str, content: str, expected: str
) -> None:
    path = write(tmp_path / name, content)
    assert registry.detect_format(path, {}) == expected
    assert [format for _, format in registry.find_manifests(path, "auto", {})] == [expected]


def test_splits_come_from_rows_then_arguments_then_names(tmp_path: Path) -> None:
    for name in ("a", "b", "c", "d"):
        write_audio(tmp_path / f"{name}.wav")
    write(tmp_path / "lists" / "train.csv", "path,split\n../a.wav,\n../b.wav,Dev\n")
    write(tmp_path / "lists" / "my_eval-clean.csv", "path\n../c.wav\n")
    write(tmp_path / "lists" / "other.csv", "path\n../d.wav\n")
    found = utterances(str(tmp_path / "lists"))
    assert {utterance.id[-1]: utterance.split for utterance in found} == {
        "a": "train",
        "b": "valid",
        "c": "test",
        "d": "train",
    }
    chosen = utterances(
        {"valid": str(tmp_path / "lists/train.csv"), "test": [str(tmp_path / "lists/other.csv")]}
    )
    assert {utterance.id[-1]: utterance.split for utterance in chosen} == {
        "a": "valid",
        "b": "valid",
        "d": "test",
    }
    assert {
        utterance.split
        for utterance in utterances([str(tmp_path / "lists/other.csv")], split="extra")
    } == {"extra"}


def test_ids_are_unique_over_all_manifests(tmp_path: Path) -> None:
    write_audio(tmp_path / "a.wav")
    one = write(tmp_path / "train.csv", "path\na.wav\n")
    two = write(tmp_path / "dev.csv", "path\n./a.wav\n")
    with pytest.raises(
        DataError, match=r"dev\.csv: line 2: repeats utterance 'a' of .*train\.csv: line 2"
    ):
        utterances([str(one), str(two)])


def test_names_of_files_as_ids(tmp_path: Path) -> None:
    write_audio(tmp_path / "84/1/84-1-0.wav")
    manifest = write(tmp_path / "train.tsv", ".\n84/1/84-1-0.wav\t8000\n")
    assert [utterance.id for utterance in utterances(str(manifest))] == ["84/1/84-1-0"]
    assert [utterance.id for utterance in utterances(str(manifest), ids="name")] == ["84-1-0"]


def test_other_names_of_columns(tmp_path: Path) -> None:
    write_audio(tmp_path / "a.wav", 16_000)
    row = '{"wav": "a.wav", "begin": 0.25, "length": 0.5, "text": "hi"}\n'
    manifest = write(tmp_path / "train.json", row)
    columns = {"path": "wav", "start_seconds": "begin", "duration_seconds": "length"}
    with pytest.raises(DataError, match=r"no column 'path'"):
        utterances(str(manifest))
    (utterance,) = utterances(str(manifest), columns=columns)
    assert (utterance.start, utterance.num_samples, utterance.text) == (4000, 8000, "hi")


def test_a_manifest_of_nemo_needs_no_names_of_columns(tmp_path: Path) -> None:
    """Its `offset` is a time, ours a byte; its rows have no ids, and several are of one file."""
    write_audio(tmp_path / "a.wav", 16_000)
    row = {"audio_filepath": "a.wav", "duration": 0.5, "text": "hi"}
    rows = [row | {"offset": 0.25}, row | {"offset": 0}, row | {"duration": 1.0}]
    text = "".join(f"{json.dumps(row)}\n" for row in rows)
    manifest = write(tmp_path / "train.json", text)
    found = [
        ("a-000004000-000012000", 4000, 8000, None),
        ("a-000000000-000008000", 0, 8000, None),
        ("a", 0, None, 16000),
    ]
    for columns in ({}, {"path": "audio_filepath"}, {"text": "text"}):
        assert [
            (one.id, one.start, one.num_samples, one.expected_samples)
            for one in utterances(str(manifest), columns=columns)
        ] == found


@pytest.mark.parametrize("row", ["a.wav,4", "a.wav,0"])
def test_an_offset_without_a_number_of_bytes_is_refused(tmp_path: Path, row: str) -> None:
    write_audio(tmp_path / "a.wav", 16_000)
    manifest = write(tmp_path / "train.csv", f"path,offset\n{row}\n")
    with pytest.raises(DataError, match=r"line 2: has one of offset and .*columns\.start_seconds"):
        utterances(str(manifest))


@pytest.mark.parametrize("delimiter", [";", "|", ",", "\t"])
def test_delimiters(tmp_path: Path, delimiter: str) -> None:
    write_audio(tmp_path / "a.wav", 16_000)
    lines = [["path", "text", "split"], ["a.wav", "hi", "dev"]]
    text = "".join(f"{delimiter.join(line)}\n" for line in lines)
    (utterance,) = utterances(str(write(tmp_path / "list.csv", text)))
    assert (utterance.id, utterance.text, utterance.split) == ("a", "hi", "valid")


def test_several_formats_in_a_folder_need_a_choice(tmp_path: Path) -> None:
    write_audio(tmp_path / "a.wav")
    write(tmp_path / "train.csv", "path\na.wav\n")
    write(tmp_path / "valid.jsonl", '{"path": "a.wav"}\n')
    with pytest.raises(
        DataError,
        match=r"several formats, train\.csv \(csv\), valid\.jsonl \(jsonl\); name one file",
    ):
        utterances(str(tmp_path))


def test_rows_are_read_one_by_one(tmp_path: Path) -> None:
    """Ten thousand rows of 100 bytes: memory holds a hash of 8 bytes of each."""
    write_audio(tmp_path / "a.wav")
    manifest = write(
        tmp_path / "train.csv",
        "id,path,text\n" + "".join(f"{i},a.wav,{'x' * 90}\n" for i in range(10_000)),
    )
    source = ManifestFile(path=str(manifest))
    tracemalloc.start()
    count = sum(1 for _ in source.utterances(tmp_path))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 10_000
    assert peak < 500_000


# -- stage `prepare` and the command


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Six utterances in a Kaldi data directory with segments, and their alignments."""
    data = tmp_path / "data"
    for name in ("r", "s"):
        write_audio(tmp_path / f"{name}.wav", 48_000)
    for split, recording in (("train", "r"), ("test", "s")):
        write(data / split / "wav.scp", f"{recording} ../../{recording}.wav\n")
        ids = [f"{recording}{i}" for i in range(3)]
        write(
            data / split / "segments",
            "".join(f"{id} {recording} {i}.0 {i + 1}.0\n" for i, id in enumerate(ids)),
        )
        write(data / split / "text", "".join(f"{id} HI {id.upper()}\n" for id in ids))
        write(data / split / "utt2spk", "".join(f"{id} {recording}\n" for id in ids))
    # The last ends 5 ms after the audio: times of a ctm are rounded.
    write(
        tmp_path / "ali.ctm",
        "".join(f"{r}{i} 1 0.0 0.5 HH\n{r}{i} 1 0.5 0.505 AY\n" for r in "rs" for i in range(3)),
    )
    return tmp_path


@pytest.fixture
def prepared(corpus: Path) -> Path:
    node = {
        "_target_": "hubert_pretrain.corpora.manifest.ManifestFile",
        "path": str(corpus / "data"),
        "name": "lectures",
    }
    data = DataConfig(
        corpus=node, root=str(corpus), alignments=str(corpus / "ali.ctm"), valid_fraction=0.0
    )
    folder = corpus / "run" / "prepare"
    folder.mkdir(parents=True)
    prepare.run(
        Recipe(name="test", work_dir=str(corpus / "run"), data=data),
        Workspace(corpus / "run"),
        "prepare",
        folder,
    )
    return folder


def test_prepare_reads_a_manifest_with_alignments(prepared: Path) -> None:
    corpus = Corpus.open(prepared)
    rows = [corpus.manifest[row] for row in range(len(corpus.manifest))]
    assert sorted(row.id for row in rows) == ["r0", "r1", "r2", "s0", "s1", "s2"]
    by_id = {row.id: row for row in rows}
    assert (by_id["r1"].start, by_id["r1"].num_samples, by_id["r1"].text, by_id["r1"].speaker) == (
        16_000,
        16_000,
        "HI R1",
        "r",
    )
    assert {row.id: row.split for row in rows if row.split == "test"} == {
        f"s{i}": "test" for i in range(3)
    }
    assert {row.corpus for row in rows} == {"lectures"}
    assert corpus.alignments is not None
    assert [corpus.alignments.has(row) for row in range(6)] == [True] * 6
    assert set(corpus.alignments.frame_phones(0, 49)) == {"HH", "AY"}


LISTS = {
    "fairseq": ("train.tsv", ".\n{}", "{name}.wav\t{samples}\n"),
    "csv": ("train.csv", "path,num_samples\n{}", "{name}.wav,{samples}\n"),
    "csv of seconds": ("train.csv", "path,duration_seconds\n{}", "{name}.wav,{seconds:.2f}\n"),
    "kaldi": ("utt2dur", "{}", "{name} {seconds:.2f}\n"),
    "lhotse": (
        "cuts.jsonl",
        "{}",
        '{{"id": "{name}", "type": "MonoCut", "start": 0, "duration": {seconds}, '
        '"recording": {{"sampling_rate": 16000, "num_samples": {samples}, '
        '"sources": [{{"type": "file", "source": "{name}.wav"}}]}}}}\n',
    ),
}


@pytest.mark.parametrize("kind", LISTS)
def test_a_file_of_another_length_than_its_list_states_is_quarantined(
    tmp_path: Path, kind: str
) -> None:
    """A truncated WAV with a repaired header is complete for every decoder; only the list reveals
    it.
    """
    names = [f"u{i}" for i in range(5)]
    (name, whole, line) = LISTS[kind]
    for each in names:
        write_audio(tmp_path / f"data/{each}.wav", {"u3": 9_000, "u4": 21_000}.get(each, 16_000))
    write(
        tmp_path / "data" / name,
        whole.format(
            "".join(line.format(name=each, samples=16_000, seconds=1.0) for each in names)
        ),
    )
    if kind == "kaldi":
        write(tmp_path / "data/wav.scp", "".join(f"{each} {each}.wav\n" for each in names))
    node = {
        "_target_": "hubert_pretrain.corpora.manifest.ManifestFile",
        "path": str(tmp_path / "data"),
    }
    data = DataConfig(corpus=node, root=str(tmp_path / "data"), max_bad_fraction=0.5, workers=1)
    (tmp_path / "prepare").mkdir()
    prepare.run(
        Recipe(name="test", work_dir=str(tmp_path), data=data),
        Workspace(tmp_path),
        "prepare",
        tmp_path / "prepare",
    )
    reasons = {
        bad["id"]: bad["reason"]
        for bad in map(json.loads, (tmp_path / "prepare/quarantine.jsonl").read_text().splitlines())
    }
    assert reasons == {
        "u3": "has 9000 samples at 16000 Hz, its list says 16000; it is truncated: copy it again",
        "u4": "has 21000 samples at 16000 Hz, its list says 16000; "
        "the list is of other audio, or of a part of it: correct the list",
    }
    assert sorted(Corpus.open(tmp_path / "prepare").manifest.column("id").to_pylist()) == [
        "u0",
        "u1",
        "u2",
    ]


def test_with_a_start_the_length_is_that_of_a_segment(tmp_path: Path) -> None:
    """In a table, a length beside a start, 0 as well, is that of a segment; alone it is that of the
    whole file.
    """
    write_audio(tmp_path / "a.wav")
    table = write(
        tmp_path / "x.csv",
        "id,path,start,num_samples\none,a.wav,0,500\ntwo,a.wav,,8000\nthree,a.wav,7000,\n",
    )
    found = [
        (utterance.start, utterance.num_samples, utterance.expected_samples)
        for utterance in utterances(str(table))
    ]
    assert found == [(0, 500, None), (0, None, 8000), (7000, None, None)]


@pytest.fixture
def tool(repository: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "convert_manifest", repository / "tools" / "convert_manifest.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("to", "name"),
    [
        ("csv", "x.csv"),
        ("tsv", "x.tsv"),
        ("jsonl", "x.jsonl"),
        ("kaldi", "k"),
        ("lhotse", "c.jsonl.gz"),
        ("huggingface", "h"),
    ],
)
def test_a_prepared_corpus_in_every_format(
    prepared: Path, tool: ModuleType, tmp_path: Path, to: str, name: str
) -> None:
    """Written by the tool, read as a corpus: the same utterances, splits, texts and speakers; where
    the format holds them, starts.
    """
    assert tool.main([str(prepared.parent), str(tmp_path / "out" / name), "--to", to]) == 0
    found = {utterance.id: utterance for utterance in utterances(str(tmp_path / "out" / name))}
    for row in (corpus := Corpus.open(prepared)).manifest.rows():
        expected = corpus.manifest[row]
        utterance = found.pop(expected.id)
        assert (utterance.split, utterance.text, utterance.speaker) == (
            expected.split,
            expected.text,
            expected.speaker,
        )
        if to != "huggingface":
            assert (utterance.start, str(utterance.path)) == (expected.start, expected.path)
            assert (utterance.num_samples or 48_000 - utterance.start) == expected.num_samples
        if to == "lhotse":
            assert utterance.phones == [("HH", 0, 8000), ("AY", 8000, 16_080)]
    assert not found


def test_segments_become_files_and_files_become_fairseq(
    prepared: Path, tool: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "fairseq"
    assert tool.main([str(prepared), str(target), "--to", "fairseq"]) == 1
    assert "error: utterance 'r0' is a part of" in (error := capsys.readouterr().err)
    assert error.count("\n") == 1
    assert (
        tool.main(
            [str(prepared), str(tmp_path / "folder"), "--to", "huggingface", "--split", "test"]
        )
        == 0
    )
    assert tool.main([str(tmp_path / "folder"), str(target), "--to", "fairseq"]) == 0
    assert (target / "test.tsv").read_text().splitlines()[1:] == [
        f"s{i}.flac\t16000" for i in range(3)
    ]
    assert (target / "test.ltr").read_text().splitlines()[0] == "H I | S 0 |"
    assert read_dictionary(target / "dict.ltr.txt")[4:] == ["|", "H", "I", "S", "0", "1", "2"]
    assert not (target / "train.tsv").exists()


def test_errors_of_the_command(
    prepared: Path, tool: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments, code, message in [
        ([str(prepared), str(prepared), "--to", "kaldi"], 2, "OUT is IN"),
        ([str(prepared), str(tmp_path / "x.txt"), "--to", "csv"], 2, "should end in .csv"),
        ([str(prepared), str(tmp_path / "x.csv"), "--to", "kaldi"], 2, "writes a folder"),
        (
            [str(prepared), str(tmp_path / "x.csv"), "--to", "csv", "--split", "tset"],
            1,
            "no utterances in split 'tset', it has test",
        ),
        (
            [str(prepared), str(tmp_path / "x.csv"), "--to", "csv", "--column", "path"],
            2,
            "expected OURS=THEIRS",
        ),
        (
            [str(tmp_path / "nowhere"), str(tmp_path / "x.csv"), "--to", "csv"],
            1,
            "no such file or folder",
        ),
    ]:
        assert tool.main(arguments) == code
        assert message in capsys.readouterr().err
    assert not (tmp_path / "x.csv").exists()
