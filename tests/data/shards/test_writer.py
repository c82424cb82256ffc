import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from hubert_pretrain.data import audio
from hubert_pretrain.data.corpus import Corpus
from hubert_pretrain.data.shards import index, writer
from hubert_pretrain.errors import ConfigError, DataError
from hubert_pretrain.frames import SAMPLE_RATE

SMALL = 0.06
"""Megabytes of a shard: the corpus of the tests makes several."""


def hashes(folder: Path) -> dict[str, str]:
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*.tar*"))
    }


@pytest.mark.parametrize("format", ["pcm", "flac"])
def test_a_corpus_in_shards_is_the_same_corpus(corpus: Corpus, tmp_path: Path, format: str) -> None:
    writer.convert(corpus, tmp_path / "out", format=format, megabytes=SMALL, workers=1)
    sharded = Corpus.open(tmp_path / "out")
    assert len(list((tmp_path / "out" / "shards").glob("*.tar"))) > 3
    assert sharded.manifest.splits == corpus.manifest.splits
    for row in range(len(corpus.manifest)):
        old = corpus.manifest[row]
        new = sharded.manifest[row]
        assert [
            getattr(new, name)
            for name in ("id", "num_samples", "speaker", "text", "label", "split", "corpus")
        ] == [
            getattr(old, name)
            for name in ("id", "num_samples", "speaker", "text", "label", "split", "corpus")
        ]
        expected = corpus.read(row)
        found = sharded.read(row)
        if soundfile.info(old.path).subtype == "PCM_16" and old.source_rate == SAMPLE_RATE:
            assert np.array_equal(found, expected)
            assert (new.mean, new.variance) == (old.mean, old.variance)
        else:
            np.testing.assert_allclose(found, expected, atol=2**-16 + 1e-7)
            assert new.mean == pytest.approx(found.mean(dtype=np.float64), abs=1e-9)
            assert new.variance == pytest.approx(found.var(dtype=np.float64), rel=1e-6)
        for start, count in [(0, 400), (7, 1_000), (old.num_samples - 10, 10), (3, 0)]:
            assert np.array_equal(sharded.read(row, start, count), found[start : start + count])


def test_webdataset_reads_our_shards(corpus: Corpus, tmp_path: Path) -> None:
    import webdataset as wds

    for format, suffix in writer.FORMATS.items():
        writer.convert(corpus, tmp_path / format, format=format, megabytes=1, workers=1)
        sharded = Corpus.open(tmp_path / format)
        shards = sorted(map(str, (tmp_path / format / "shards").glob("*.tar")))
        samples = {
            json.loads(sample["json"])["id"]: sample
            for sample in wds.WebDataset(shards, shardshuffle=False, empty_check=False)
        }
        assert len(samples) == len(corpus.manifest)
        for row in range(len(sharded.manifest)):
            utterance = sharded.manifest[row]
            sample = samples[utterance.id]
            waveform, rate = soundfile.read(io.BytesIO(sample[suffix]), dtype="float32")
            assert rate == SAMPLE_RATE
            assert np.array_equal(waveform, sharded.read(row))
            assert json.loads(sample["json"])["text"] == utterance.text


def test_any_number_of_processes_writes_the_same_bytes(corpus: Corpus, tmp_path: Path) -> None:
    for folder, workers in (("one", 1), ("two", 2)):
        list(
            writer.write_shards(
                corpus, tmp_path / folder, format="flac", megabytes=SMALL, workers=workers
            )
        )
    assert hashes(tmp_path / "one") == hashes(tmp_path / "two")
    with tarfile.open(next((tmp_path / "one").glob("*.tar"))) as tar:
        assert {(info.mtime, info.uid, info.gid, info.uname) for info in tar} == {(0, 0, 0, "")}


def test_finished_shards_stay_and_missing_ones_are_written(corpus: Corpus, tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    list(writer.write_shards(corpus, folder, format="pcm", megabytes=SMALL, workers=1))
    made = hashes(folder)
    first, *others = sorted(folder.glob("*.tar"))
    before = {path: path.stat().st_mtime_ns for path in [first, *others]}
    index.sidecar(others[0]).unlink()
    os.truncate(others[1], 1_000)
    others[2].unlink()
    list(writer.write_shards(corpus, folder, format="pcm", megabytes=SMALL, workers=1))
    assert hashes(folder) == made
    changed = [path for path in before if path.stat().st_mtime_ns != before[path]]
    assert changed == others[:3]


WRITE = """
import sys
from pathlib import Path
from hubert_pretrain.data.corpus import Corpus
from hubert_pretrain.data.shards import writer

if __name__ == "__main__":
    add = writer._member
    def slowly(*args):
        import time
        time.sleep(0.05)
        return add(*args)
    writer._member = slowly
    corpus = Corpus.open(sys.argv[1])
    folder = Path(sys.argv[2])
    list(writer.write_shards(corpus, folder, format="flac", megabytes=0.06, workers=1))
"""


def test_a_killed_writer_leaves_whole_shards_only_and_is_resumed_to_the_byte(
    corpus: Corpus, tmp_path: Path
) -> None:
    script = tmp_path / "write.py"
    folder = tmp_path / "killed"
    script.write_text(WRITE)
    list(writer.write_shards(corpus, tmp_path / "whole", format="flac", megabytes=SMALL, workers=1))
    process = subprocess.Popen([sys.executable, str(script), str(corpus.folder), str(folder)])
    deadline = time.monotonic() + 60
    while not (len(list(folder.glob("*.index.json"))) >= 1 and list(folder.glob(".*.tmp"))):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert list(folder.glob(".*.tmp")), "killed in the middle of a shard"
    for shard in folder.glob("*.tar"):
        assert (
            hashlib.sha256(shard.read_bytes()).hexdigest() == hashes(tmp_path / "whole")[shard.name]
        )
    list(writer.write_shards(corpus, folder, format="flac", megabytes=SMALL, workers=1))
    assert hashes(folder) == hashes(tmp_path / "whole")
    assert not list(folder.glob(".*.tmp"))


def test_shards_are_within_splits_and_near_their_size(corpus: Corpus) -> None:
    shards = writer.assign(corpus.manifest, "pcm", SMALL)
    assert [row for shard in shards for row in range(shard.first, shard.last)] == list(
        range(len(corpus.manifest))
    )
    for shard in shards:
        assert {corpus.manifest[row].split for row in range(shard.first, shard.last)} == {
            shard.name.partition("-")[0]
        }
    assert len({shard.name for shard in shards}) == len(shards)
    assert len(writer.assign(corpus.manifest, "pcm", 512)) == 2


def test_a_disk_without_room_is_found_before_the_first_byte(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        writer.shutil, "disk_usage", lambda _: type("usage", (), {"free": 100_000})()
    )
    with pytest.raises(
        DataError,
        match=r"shards: about \d{3}\.\d kB are needed for shards in pcm, "
        r"100\.0 kB are free; make room",
    ):
        writer.convert(corpus, tmp_path / "out", format="pcm", workers=1)
    assert not list((tmp_path / "out/shards").iterdir())


def test_reading_beyond_a_cut_names_the_shard(corpus: Corpus, tmp_path: Path) -> None:
    writer.convert(corpus, tmp_path / "out", format="pcm", workers=1)
    sharded = Corpus.open(tmp_path / "out")
    row = sharded.manifest.split_range("train")[-1]
    os.truncate(sharded.manifest[row].path, sharded.manifest[row].offset + 100)
    with pytest.raises(
        DataError,
        match=r"train-000000\.tar: has \d+ bytes, expected at least \d+; the shard was cut",
    ):
        sharded.read(row)


def test_the_wrong_format_and_a_folder_of_other_shards_are_refused(
    corpus: Corpus, tmp_path: Path, make_tar: Callable[..., Path]
) -> None:
    with pytest.raises(
        ConfigError,
        match=r"data\.shards='flacc': expected none, pcm, flac \(did you mean 'flac'\?\)",
    ):
        list(writer.write_shards(corpus, tmp_path / "s", format="flacc"))
    make_tar([("a.wav", b"")], "s/other.tar")
    with pytest.raises(DataError, match=r"other\.tar: a shard of another corpus"):
        list(writer.write_shards(corpus, tmp_path / "s", format="pcm"))


def test_shards_may_lie_behind_a_url(corpus: Corpus, tmp_path: Path) -> None:
    import fsspec

    writer.convert(corpus, tmp_path / "out", format="flac", workers=1, url="memory://bucket/c")
    memory = fsspec.filesystem("memory")
    for shard in (tmp_path / "out" / "shards").glob("*.tar"):
        memory.pipe(f"/bucket/c/{shard.name}", shard.read_bytes())
        shard.rename(shard.with_suffix(".moved"))
    sharded = Corpus.open(tmp_path / "out")
    for row in range(len(corpus.manifest)):
        np.testing.assert_allclose(sharded.read(row), corpus.read(row), atol=2**-16 + 1e-7)


@given(samples=st.lists(st.integers(-(2**15), 2**15 - 1), min_size=1, max_size=500))
def test_stored_samples_are_those_given(samples: list[int]) -> None:
    values = np.array(samples, dtype=np.int16)
    for format in writer.FORMATS:
        decoded, rate = soundfile.read(io.BytesIO(writer.encode(values, format)), dtype="int16")
        assert rate == SAMPLE_RATE
        assert np.array_equal(decoded, values)
    assert np.array_equal(audio.to_int16(values.astype(np.float32) / 2**15), values)


def test_our_wav_header_is_libsndfiles(tmp_path: Path) -> None:
    file = io.BytesIO()
    soundfile.write(
        file, np.zeros(1_000, dtype=np.int16), SAMPLE_RATE, format="WAV", subtype="PCM_16"
    )
    assert file.getvalue()[:44] == audio.wav_header(1_000)


def test_rounding_is_to_the_nearest_and_clips() -> None:
    waveform = np.array([0.0, 1.4 / 2**15, 1.6 / 2**15, 1.0, -1.0, 3.0, -3.0], dtype=np.float32)
    assert audio.to_int16(waveform).tolist() == [0, 1, 2, 32767, -32768, 32767, -32768]
