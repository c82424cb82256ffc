"""Rows about shards and the cache: well, and made to fail."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from hubert_pretrain.corpora.webdataset import WebDataset
from hubert_pretrain.data.corpus import Corpus
from hubert_pretrain.data.shards.index import INDEX_FOLDER, sidecar
from hubert_pretrain.data.shards.writer import convert
from hubert_pretrain.preflight import machine, shards
from hubert_pretrain.preflight.report import CheckResult

Make = Callable[..., Corpus]


def asked(corpus: Corpus, everything: bool = False) -> CheckResult:
    return shards.shards(corpus, sample=200, everything=everything, seed=1, workers=1)


@pytest.fixture
def sharded(make_corpus: Make, tmp_path: Path) -> Corpus:
    convert(make_corpus(), tmp_path / "out", format="pcm", workers=1)
    return Corpus.open(tmp_path / "out")


def test_files_are_no_shards(make_corpus: Make) -> None:
    assert asked(make_corpus()).found == "none: the audio lies in files"
    assert shards.shards(None, sample=1, everything=True, seed=1, workers=1).state == "skipped"


def test_whole_shards(sharded: Corpus) -> None:
    assert (asked(sharded).state, asked(sharded).found) == (
        "ok",
        "3 have the sizes of their indexes",
    )
    assert (
        asked(sharded, everything=True).found
        == "3 read to the end, their sha256 is that of their indexes"
    )


def test_a_flipped_bit_is_found_when_all_is_read(sharded: Corpus) -> None:
    shard = sorted((sharded.folder / "shards").glob("*.tar"))[1]
    content = bytearray(shard.read_bytes())
    content[2000] ^= 1
    shard.write_bytes(content)
    assert asked(sharded).state == "ok"
    row = asked(sharded, everything=True)
    assert row.state == "error"
    assert row.found.startswith(f"1 of 3 bad, the first: {shard}: its content changed (sha256 ")
    assert len(row.details) == 1


def test_a_cut_a_missing_and_an_unindexed_shard(sharded: Corpus) -> None:
    one, two, three = sorted((sharded.folder / "shards").glob("*.tar"))
    one.write_bytes(one.read_bytes()[:-512])
    two.unlink()
    sidecar(three).unlink()
    row = asked(sharded)
    assert row.state == "error"
    assert row.found.startswith("3 of 3 bad")
    assert [
        word in detail
        for word, detail in zip(
            ("its index says", "missing", "missing or damaged"), row.details, strict=True
        )
    ] == [True] * 3


def test_shards_of_others_have_their_index_beside_the_manifest(
    sharded: Corpus, tmp_path: Path
) -> None:
    """The note of `prepare` about a shard without a sidecar: it is enough to tell a change."""
    home = sharded.folder / "shards"
    for shard in home.glob("*.tar"):
        sidecar(shard).unlink()
    list(WebDataset(root=str(home), train=["*.tar"]).utterances(sharded.folder))
    assert len(list((sharded.folder / INDEX_FOLDER).glob("*.index.json"))) == 3
    assert asked(sharded, everything=True).state == "ok"
    next(home.glob("*.tar")).write_bytes(b"")
    assert asked(sharded).state == "error"


def test_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert shards.cache(None, 1.0).found.startswith("none")
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "entry").write_bytes(b"x" * 1000)
    free = type("usage", (), {"free": 2 * 10**9})()
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda _: free)
    assert shards.cache(str(tmp_path / "cache"), 2.0).state == "ok"
    row = shards.cache(str(tmp_path / "cache"), 3.0)
    assert (row.state, "lower data.cache_gigabytes" in row.fix) == ("warning", True)
    monkeypatch.setattr(shards.os, "access", lambda *_: False)
    assert shards.cache(f"{tmp_path}/new/cache", 1.0).state == "error"
