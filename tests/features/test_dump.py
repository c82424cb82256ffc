from __future__ import annotations

import errno
import json
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from hubert_pretrain.clustering.kmeans import KMeans
from hubert_pretrain.data.corpus import Corpus
from hubert_pretrain.data.manifest import Utterance, write_manifest
from hubert_pretrain.errors import ArtefactError, ConfigError, DataError, HubertPretrainError
from hubert_pretrain.features import dump as module
from hubert_pretrain.features.dump import FrameDump, shard_path, write_dump, write_fairseq
from hubert_pretrain.features.mfcc import Mfcc

ROWS = 150


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """150 utterances of noise, three groups, one shorter than a frame."""
    folder = tmp_path_factory.mktemp("dump") / "corpus"
    made = []
    folder.mkdir()
    for number in range(ROWS):
        draw = np.random.default_rng(number)
        length = 300 if number == 70 else int(draw.integers(500, 6_000))
        soundfile.write(
            folder / f"{number}.wav",
            draw.normal(0, 0.1, length).astype(np.float32),
            16_000,
            subtype="FLOAT",
        )
        made.append(
            Utterance(
                id=f"u{number:03}",
                path=str(folder / f"{number}.wav"),
                num_samples=length,
                split="train",
            )
        )
    write_manifest(folder / "manifest.arrow", made)
    return Corpus.open(folder)


def write(corpus: Corpus, folder: Path, **more: Any) -> FrameDump:
    write_dump(corpus, corpus.manifest.rows(), Mfcc(), folder, shard_bytes=60_000, **more)
    return FrameDump.open(folder)


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}


def test_every_utterance_has_its_frames(corpus: Corpus, tmp_path: Path) -> None:
    dump = write(corpus, tmp_path / "dump", workers=2)
    assert len(dump.paths) == 3
    assert dump.ids == [corpus.manifest[row].id for row in range(ROWS)]
    assert dump.features == Mfcc().fingerprint()
    for row in range(ROWS):
        expected = Mfcc()(torch.from_numpy(corpus.read(row))[None])[0].numpy()
        np.testing.assert_allclose(dump.utterance(row), expected, atol=1e-4)
    assert all(np.load(path, mmap_mode="r").flags["C_CONTIGUOUS"] for path in dump.paths)


def test_it_reads_like_an_array(corpus: Corpus, tmp_path: Path) -> None:
    dump = write(corpus, tmp_path / "dump")
    whole = np.concatenate([np.load(path) for path in dump.paths])
    assert dump.shape == whole.shape
    for start, stop in [
        (0, len(whole)),
        (0, 0),
        (5, 6),
        (len(np.load(dump.paths[0])) - 3, len(whole) - 2),
    ]:
        np.testing.assert_array_equal(dump[start:stop], whole[start:stop])
    ours = KMeans(engine="torch", n_clusters=5, restarts=1).fit(dump).cluster_centers_
    np.testing.assert_array_equal(
        ours, KMeans(engine="torch", n_clusters=5, restarts=1).fit(whole).cluster_centers_
    )


def test_a_kill_and_several_processes_leave_the_same_bytes(corpus: Corpus, tmp_path: Path) -> None:
    write(corpus, tmp_path / "whole")
    for rank in (1, 0):
        write_dump(
            corpus,
            corpus.manifest.rows(),
            Mfcc(),
            tmp_path / "ranks",
            shard_bytes=60_000,
            rank=rank,
            world_size=2,
        )
        if rank == 1:
            with pytest.raises(
                ArtefactError, match=r"2 of 3 shards are missing, frames-00000-of-00003\.npy first"
            ):
                FrameDump.open(tmp_path / "ranks")
    assert files(tmp_path / "ranks") == files(tmp_path / "whole")
    shard_path(tmp_path / "whole", 1, 3).unlink()
    before = shard_path(tmp_path / "whole", 0, 3).stat().st_mtime_ns
    write(corpus, tmp_path / "whole")
    assert files(tmp_path / "whole") == files(tmp_path / "ranks")
    assert shard_path(tmp_path / "whole", 0, 3).stat().st_mtime_ns == before, (
        "a finished shard is not written again"
    )


def test_float16_takes_half(corpus: Corpus, tmp_path: Path) -> None:
    full = write(corpus, tmp_path / "full")
    half = write(corpus, tmp_path / "half", dtype="float16")
    assert np.load(half.paths[0]).dtype == np.float16
    assert half[0:50].dtype == np.float32
    np.testing.assert_allclose(half[: len(half)], full[: len(full)], rtol=2e-3, atol=1e-3)

    class Loud(Mfcc):
        def extract_packed(self, waveforms: Any) -> torch.Tensor:
            return 1e6 * super().extract_packed(waveforms)

    with pytest.raises(DataError, match="more than float16 holds; use dtype=float32"):
        write_dump(corpus, corpus.manifest.rows(), Loud(), tmp_path / "loud", dtype="float16")
    assert not list((tmp_path / "loud").glob(".*.tmp"))


def test_fairseqs_layout(corpus: Corpus, tmp_path: Path) -> None:
    dump = write(corpus, tmp_path / "dump")
    write_fairseq(dump, tmp_path / "fairseq", "train")
    frames = []
    lengths = []
    for shard in range(3):  # as fairseq's learn_kmeans.py and dump_km_label.py read them
        frames.append(np.load(tmp_path / "fairseq" / f"train_{shard}_3.npy", mmap_mode="r"))
        lengths += [
            int(line)
            for line in (tmp_path / "fairseq" / f"train_{shard}_3.len").read_text().splitlines()
        ]
        assert sum(lengths) == sum(map(len, frames))
    np.testing.assert_array_equal(np.concatenate(frames), dump[: len(dump)])
    assert lengths == np.diff(dump.offsets).tolist()


def test_bad_input(corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(corpus, tmp_path / "dump")
    with pytest.raises(
        ArtefactError,
        match=r"holds mfcc \(dim 39\), extracted in another way \(other dtype\); choose another",
    ):
        write(corpus, tmp_path / "dump", dtype="float16")
    with pytest.raises(ConfigError, match="dtype='int8': expected one of float32, float16"):
        write(corpus, tmp_path / "other", dtype="int8")
    with pytest.raises(ArtefactError, match=r"features\.json: missing, damaged"):
        FrameDump.open(tmp_path)

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module.np.lib.format, "write_array_header_1_0", full)
    with pytest.raises(
        HubertPretrainError, match=r"frames-00000-of-00003\.npy: the disk is full; free some room"
    ):
        write(corpus, tmp_path / "full")
    assert not list((tmp_path / "full").glob(".*.tmp"))


@pytest.fixture
def tool(repository: Path) -> Callable[[list[str]], int]:
    main: Callable[[list[str]], int] = runpy.run_path(
        str(repository / "tools" / "extract_features.py")
    )["main"]
    return main


def test_the_tool_reads_a_folder(
    corpus: Corpus,
    tmp_path: Path,
    tool: Callable[[list[str]], int],
    capsys: pytest.CaptureFixture[str],
) -> None:
    audio = tmp_path / "audio" / "inside"
    audio.mkdir(parents=True)
    for row in (0, 1):
        soundfile.write(audio / f"{row}.flac", corpus.read(row), 16_000)
    assert (
        tool(
            [
                "log_mel",
                str(tmp_path / "audio"),
                str(tmp_path / "out"),
                "--num-mel-bins",
                "40",
                "--fairseq",
            ]
        )
        == 0
    )
    dump = FrameDump.open(tmp_path / "out")
    assert dump.ids == ["inside/0.flac", "inside/1.flac"]
    assert dump.shape[1] == 40
    assert (tmp_path / "out" / "fairseq" / "all_0_1.len").read_text().split() == [
        str(n) for n in np.diff(dump.offsets)
    ]
    assert "of dimension 40 of 2 utterances in 1 shards" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["mfcc", "nowhere", "out"],
            "nowhere: neither audio, nor a folder with audio files, nor a prepared corpus",
        ),
        (["checkpoint", "nowhere", "out"], "--layer has no value: which layer of checkpoint?"),
        (["checkpoint", "nowhere", "out", "--layer", "six"], "--layer six: expected a number"),
    ],
)
def test_the_tool_says_what_is_wrong(
    arguments: list[str],
    message: str,
    tool: Callable[[list[str]], int],
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert tool(arguments) != 0
    assert message in capsys.readouterr().err


def test_the_description_is_json(corpus: Corpus, tmp_path: Path) -> None:
    write(corpus, tmp_path / "dump")
    description = json.loads((tmp_path / "dump" / "features.json").read_text())
    assert description["grid"] == {"window": 400, "hop": 320}
    assert description["manifest"] == corpus.manifest.fingerprint
