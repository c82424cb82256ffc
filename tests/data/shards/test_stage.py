"""Stage `prepare` into shards, from shards, and the tool that does the former to a finished
corpus.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from hubert_pretrain.config.schema import DataConfig, Recipe
from hubert_pretrain.data.corpus import Corpus
from hubert_pretrain.data.shards import writer
from hubert_pretrain.errors import ConfigError, DataError
from hubert_pretrain.fields import check_values
from hubert_pretrain.frames import SAMPLE_RATE
from hubert_pretrain.pipeline.plan import Stage
from hubert_pretrain.pipeline.workspace import Workspace
from hubert_pretrain.stages import prepare as stage
from tests.data.shards.conftest import sound

FOLDER = {"_target_": "hubert_pretrain.corpora.folder.Folder"}
WEBDATASET = {"_target_": "hubert_pretrain.corpora.webdataset.WebDataset", "train": ["*.tar"]}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "root"
    folder.mkdir()
    for number in range(12):
        samples = (
            np.random.default_rng(number)
            .integers(-9_000, 9_000, 8_000 + 500 * number)
            .astype(np.int16)
        )
        soundfile.write(
            folder / f"u{number:02d}.{('wav', 'flac')[number % 2]}", samples, SAMPLE_RATE
        )
    return folder


def prepare(
    work_dir: Path, corpus: dict[str, object], root: Path | str, **values: object
) -> Corpus:
    data = DataConfig(
        corpus={**corpus, "root": str(root)},
        root=str(root),
        workers=1,
        valid_fraction=0.2,
        **values,
    )
    recipe = Recipe(name="test", work_dir=str(work_dir), data=data)
    workspace = Workspace(work_dir)
    folder = workspace.partial_folder("prepare")
    folder.mkdir(parents=True, exist_ok=True)
    stage.run(recipe, workspace, "prepare", folder)
    folder.rename(workspace.folder("prepare"))
    return Corpus.open(workspace.folder("prepare"))


def same(one: Corpus, other: Corpus) -> None:
    assert len(one.manifest) == len(other.manifest)
    for row in range(len(one.manifest)):
        a = one.manifest[row]
        b = other.manifest[row]
        assert (a.id, a.split, a.mean, a.variance, a.num_samples) == (
            b.id,
            b.split,
            b.mean,
            b.variance,
            b.num_samples,
        )
        assert np.array_equal(one.read(row), other.read(row))


@pytest.mark.parametrize("format", ["pcm", "flac"])
def test_prepare_writes_shards_that_move_with_their_folder(
    tmp_path: Path, root: Path, format: str
) -> None:
    files = prepare(tmp_path / "files", FOLDER, root)
    sharded = prepare(tmp_path / "sharded", FOLDER, root, shards=format, shard_megabytes=1)
    assert files.manifest.fingerprint == sharded.manifest.fingerprint
    assert sharded.manifest[0].path.startswith(str(tmp_path / "sharded/prepare/shards/"))
    assert not list((tmp_path / "sharded").rglob("*.partial"))
    same(files, sharded)
    again = prepare(
        tmp_path / "again", WEBDATASET, tmp_path / "sharded/prepare/shards", shards="none"
    )
    assert {again.manifest[row].id for row in range(12)} == {
        files.manifest[row].id for row in range(12)
    }


def test_an_interrupted_prepare_keeps_its_finished_shards(
    tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = prepare(tmp_path / "whole", FOLDER, root, shards="pcm", shard_megabytes=0.1)
    write = writer.write_shard
    written = []

    def dying(corpus: Corpus, assignment: writer.Assignment, *rest: object) -> object:
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(assignment.name)
        return write(corpus, assignment, *rest)

    monkeypatch.setattr(writer, "write_shard", dying)
    with pytest.raises(KeyboardInterrupt):
        prepare(tmp_path / "resumed", FOLDER, root, shards="pcm", shard_megabytes=0.1)
    monkeypatch.undo()
    finished = tmp_path / "resumed/prepare.partial/shards" / written[0]
    before = finished.stat().st_mtime_ns
    resumed = prepare(tmp_path / "resumed", FOLDER, root, shards="pcm", shard_megabytes=0.1)
    assert (tmp_path / "resumed/prepare/shards" / written[0]).stat().st_mtime_ns == before
    same(whole, resumed)
    for shard in (tmp_path / "whole/prepare/shards").glob("*.tar"):
        other = tmp_path / "resumed/prepare/shards" / shard.name
        assert (
            hashlib.sha256(shard.read_bytes()).digest()
            == hashlib.sha256(other.read_bytes()).digest()
        )


def test_a_mistyped_format_is_refused_before_anything_is_read() -> None:
    recipe = Recipe(name="test", data=DataConfig(root="/nowhere", shards="pcn"))
    with pytest.raises(ConfigError, match=r"data\.shards='pcn': expected .*did you mean 'pcm'"):
        check_values(recipe)


def test_bad_audio_in_foreign_shards_is_quarantined(
    tmp_path: Path, make_tar: Callable[..., Path]
) -> None:
    truncated = sound(1)[:5_000]
    garbage = b"fLaC" + os.urandom(5_000)
    members = [(f"u{number}.wav", sound(number + 10)) for number in range(4)]
    make_tar(
        [*members, ("cut.wav", truncated), ("bad.flac", garbage), ("zero.wav", b"")], "shards/a.tar"
    )
    corpus = prepare(tmp_path / "run", WEBDATASET, tmp_path / "shards", max_bad_fraction=0.5)
    assert {corpus.manifest[row].id for row in range(len(corpus.manifest))} == {
        "u0",
        "u1",
        "u2",
        "u3",
    }
    quarantine = (corpus.folder / "quarantine.jsonl").read_text()
    for id, reason in (
        ("cut", "truncated or damaged"),
        ("bad", "not readable as audio"),
        ("zero", "not readable as audio"),
    ):
        (line,) = (line for line in quarantine.splitlines() if f'"id": "{id}"' in line)
        assert reason in line
        assert "a.tar" in line
    with pytest.raises(DataError, match=r"3 of 7"):
        prepare(tmp_path / "strict", WEBDATASET, tmp_path / "shards")


def test_shards_behind_a_url_are_prepared_and_read_through_the_cache(
    tmp_path: Path, make_tar: Callable[..., Path]
) -> None:
    import fsspec

    path = make_tar([(f"u{number}.flac", sound(number, suffix="flac")) for number in range(5)])
    fsspec.filesystem("memory").pipe("/pool/s.tar", path.read_bytes())
    local = prepare(tmp_path / "local", {**WEBDATASET, "train": ["s.tar"]}, path.parent)
    where = {"cache_dir": str(tmp_path / "cache"), "cache_gigabytes": 1.0}
    remote = prepare(
        tmp_path / "remote", {**WEBDATASET, "train": ["s.tar"]}, "memory://pool", **where
    )
    fsspec.filesystem("memory").rm("/pool/s.tar")
    same(
        local,
        Corpus.open(
            remote.folder, stage.Cache.of(**{"folder": where["cache_dir"], "gigabytes": 1.0})
        ),
    )
    with pytest.raises(DataError, match=r"memory://pool/s\.tar: no such file"):
        remote.read(0)


def test_the_place_of_the_cache_does_not_change_the_fingerprint() -> None:
    here = DataConfig(corpus={}, root="x")
    there = DataConfig(corpus={}, root="x", cache_dir="/y", cache_gigabytes=3)
    assert (
        Stage("prepare", "prepare", (), {"data": here}).identity
        == Stage("prepare", "prepare", (), {"data": there}).identity
    )
    shards = DataConfig(corpus={}, root="x", shards="pcm")
    assert (
        Stage("prepare", "prepare", (), {"data": here}).identity
        != Stage("prepare", "prepare", (), {"data": shards}).identity
    )


def test_the_tool_makes_shards_of_a_finished_corpus(
    corpus: Corpus, tmp_path: Path, repository: Path
) -> None:
    def make(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [
            sys.executable,
            str(repository / "tools/make_shards.py"),
            str(corpus.folder),
            str(tmp_path / "out"),
            *arguments,
        ]
        return subprocess.run(command, capture_output=True, text=True)

    done = make("--format", "flac", "--workers", "1", "--verify")
    assert done.returncode == 0, done.stderr
    assert "12 utterances" in done.stdout
    assert len(Corpus.open(tmp_path / "out").manifest) == 12
    (tmp_path / "out/shards/other.tar").touch()
    failed = make()
    assert failed.returncode == 1
    assert "other.tar: a shard of another corpus" in failed.stderr
    assert "Traceback" not in failed.stderr
