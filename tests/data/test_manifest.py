import os
import pickle
import tracemalloc
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from hubert_pretrain.data import arrow_table
from hubert_pretrain.data import manifest as manifest_module
from hubert_pretrain.data.manifest import Manifest, Utterance, write_manifest
from hubert_pretrain.errors import ArtefactError, DataError


def utterance(id: str, split: str = "train", **values: object) -> Utterance:
    return Utterance(
        **(
            {"id": id, "path": f"/corpus/{id}.wav", "num_samples": 16_000 + len(id), "split": split}
            | values
        )
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "manifest.arrow"


def test_a_row_comes_back_as_it_was(path: Path) -> None:
    one = utterance(
        "a",
        start=320,
        source_rate=8000,
        speaker="s",
        text="HELLO\tÄ",
        label="yes",
        corpus="folder",
        mean=0.25,
        variance=0.5,
    )
    found = write_manifest(path, [one], root="/corpus")[0]
    assert found == Manifest.open(path)[0]
    assert (found.path, found.start, found.source_rate, found.text, found.label) == (
        one.path,
        320,
        8000,
        "HELLO\tÄ",
        "yes",
    )
    assert (found.mean, found.variance, found.row) == (0.25, 0.5, 0)


def test_order_is_split_then_id_whatever_the_order_given(path: Path, tmp_path: Path) -> None:
    given = [
        utterance("t1", "test"),
        utterance("b"),
        utterance("x", "extra"),
        utterance("v", "valid"),
        utterance("a"),
    ]
    write_manifest(path, given, root="/corpus")
    other = tmp_path / "other.arrow"
    write_manifest(other, reversed(given), root="/corpus")
    manifest = Manifest.open(path)
    assert [manifest[row].id for row in range(len(manifest))] == ["a", "b", "v", "t1", "x"]
    assert path.read_bytes() == other.read_bytes()
    assert manifest.splits == ["train", "valid", "test", "extra"]
    assert manifest.split_range("valid") == range(2, 3)
    assert manifest.rows("train").tolist() == [0, 1]
    assert manifest.rows().tolist() == [0, 1, 2, 3, 4]


def test_lengths_are_a_view_of_the_file(path: Path) -> None:
    write_manifest(path, [utterance("a"), utterance("bb")], root="/corpus")
    lengths = Manifest.open(path).num_samples
    assert lengths.tolist() == [16_001, 16_002]
    assert lengths.dtype == np.int64
    assert not lengths.flags.owndata
    assert not lengths.flags.writeable


def test_names_are_stored_once(path: Path) -> None:
    write_manifest(
        path, [utterance(str(i), speaker="a very long name") for i in range(100)], root="/corpus"
    )
    assert Manifest.open(path).column("speaker").dictionary.to_pylist() == ["a very long name"]


def test_paths_move_with_the_corpus_and_with_the_manifest(tmp_path: Path) -> None:
    home = tmp_path / "prepare.partial"
    home.mkdir()
    utterances = [
        utterance("corpus", path=str(tmp_path / "corpus/x/a.wav")),
        utterance("elsewhere", path="/elsewhere/b.wav"),
        utterance("made", path=str(home / "audio/c.wav")),
    ]
    write_manifest(home / "manifest.arrow", utterances, root=tmp_path / "corpus")
    home.rename(tmp_path / "prepare")
    manifest = Manifest.open(tmp_path / "prepare")
    assert [manifest[row].path for row in range(3)] == [
        str(tmp_path / "corpus/x/a.wav"),
        "/elsewhere/b.wav",
        str(tmp_path / "prepare/audio/c.wav"),
    ]
    assert Manifest.open(tmp_path / "prepare", root="/moved")[0].path == "/moved/x/a.wav"


def test_fingerprint_follows_ids_and_lengths_only(tmp_path: Path) -> None:
    def fingerprint(*utterances: Utterance) -> str:
        write_manifest(tmp_path / "m.arrow", utterances, root="/corpus")
        return Manifest.open(tmp_path / "m.arrow").fingerprint

    first = fingerprint(utterance("a"), utterance("b"))
    assert first == fingerprint(utterance("b"), utterance("a", text="words"))
    assert first != fingerprint(utterance("a"), utterance("c"))
    assert first != fingerprint(utterance("a"), utterance("b", num_samples=5000))


def test_pickles_by_path(path: Path) -> None:
    write_manifest(path, [utterance("a")], root="/corpus")
    copy = pickle.loads(pickle.dumps(Manifest.open(path, root="/moved")))
    assert copy[0].path == "/moved/a.wav"
    assert len(pickle.dumps(Manifest.open(path))) < 500


def test_a_duplicate_id_names_both_files(path: Path) -> None:
    with pytest.raises(DataError, match=r"/two\.wav.*'a'.*/corpus/a\.wav"):
        write_manifest(path, [utterance("a"), utterance("a", path="/two.wav")], root="/corpus")
    assert not path.exists()


def test_an_unknown_split_names_the_nearest(path: Path) -> None:
    write_manifest(path, [utterance("a"), utterance("b", "test")], root="/corpus")
    with pytest.raises(DataError, match=r"'tests'.*train, test \(did you mean 'test'\?\)"):
        Manifest.open(path).split_range("tests")
    assert Manifest.open(path).rows("tests").tolist() == []


def test_a_row_outside_is_an_index_error(path: Path) -> None:
    write_manifest(path, [utterance("a")], root="/corpus")
    for row in (-1, 1):
        with pytest.raises(IndexError, match="of 1 rows"):
            Manifest.open(path)[row]


@pytest.mark.parametrize("keep", [0, 10, 0.5, 0.99])
def test_a_damaged_file_is_named(path: Path, keep: float) -> None:
    write_manifest(path, [utterance("a")], root="/corpus")
    whole = path.read_bytes()
    path.write_bytes(whole[: int(keep * len(whole) if keep < 1 else keep)])
    with pytest.raises(ArtefactError, match=r"manifest\.arrow: damaged .*prepare"):
        Manifest.open(path)


def test_a_missing_or_foreign_file_is_named(path: Path) -> None:
    with pytest.raises(ArtefactError, match=r"manifest\.arrow: not found.*prepare"):
        Manifest.open(path)
    table = pa.table({"x": [1]})
    with pa.ipc.new_file(str(path), table.schema) as writer:
        writer.write_table(table)
    with pytest.raises(ArtefactError, match="not a manifest"):
        Manifest.open(path)


def test_opening_and_reading_do_not_depend_on_the_number_of_rows(tmp_path: Path) -> None:
    peaks = []
    for count in (2_000, 2_000, 40_000):  # the first loads what is loaded once
        path = tmp_path / f"{count}.arrow"
        rows = (utterance(f"{i:06d}", speaker=f"s{i % 50}") for i in range(count))
        write_manifest(path, rows, root="/corpus")
        assert os.path.getsize(path) < 150 * count + 10_000
        tracemalloc.start()
        manifest = Manifest.open(path)
        for row in np.random.default_rng(0).integers(0, count, 500):
            assert manifest[int(row)].id == f"{row:06d}"
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[2] < 1.2 * peaks[1] + 10_000, peaks


def test_many_parts_are_as_one(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = [
        utterance(
            f"é{i}", ("train", "test")[i % 2], speaker=f"s{i % 7}", text="x" * (i % 5), start=i
        )
        for i in range(100)
    ]
    write_manifest(path, given, root="/corpus")
    monkeypatch.setattr(manifest_module, "CHUNK", 9)
    monkeypatch.setattr(manifest_module, "chunks", lambda count: arrow_table.chunks(count, 7))
    write_manifest(tmp_path / "parts.arrow", given[::-1], root="/corpus")
    assert path.read_bytes() == (tmp_path / "parts.arrow").read_bytes()
    assert sorted(one.name for one in tmp_path.iterdir()) == ["manifest.arrow", "parts.arrow"]


def test_an_empty_manifest_opens(path: Path) -> None:
    manifest = write_manifest(path, [])
    assert (len(manifest), manifest.splits, manifest.length_sorted("train")) == (0, [], [])


def test_a_manifest_without_channels_reads_as_the_mix(path: Path) -> None:
    write_manifest(path, [utterance("a"), utterance("b")], root="/corpus")
    with pa.memory_map(str(path)) as file:
        reader = pa.ipc.open_file(file)
        batch = reader.get_batch(0)
        metadata = dict(reader.schema.metadata)
    assert metadata[b"format"] == b"hubert_pretrain.manifest.5"
    metadata[b"format"] = b"hubert_pretrain.manifest.4"
    old = batch.drop_columns(["channel"]).replace_schema_metadata(metadata)
    with pa.ipc.new_file(str(path.with_name("old.arrow")), old.schema) as writer:
        writer.write_batch(old)
    manifest = Manifest.open(path.with_name("old.arrow"))
    assert [manifest[row] for row in range(2)] == [Manifest.open(path)[row] for row in range(2)]
    assert manifest.numbers("channel").tolist() == [-1, -1]
