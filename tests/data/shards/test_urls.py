"""Shards in the clouds: s3 and gs, from servers on localhost that the tests start. Configured as
users do it, by environment variables.
"""

from __future__ import annotations

import socket
import uuid
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import fsspec
import numpy as np
import pytest
from fsspec import AbstractFileSystem

from hubert_pretrain.data.corpus import Corpus
from hubert_pretrain.data.shards import writer
from hubert_pretrain.data.shards.index import expand
from hubert_pretrain.data.shards.reader import stream
from hubert_pretrain.data.storage import Cache
from hubert_pretrain.errors import DataError
from tests.data.shards.test_stage import WEBDATASET, prepare, same

NEEDED = "the cloud tests want pip install -e '.[dev]'"


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A new bucket's URL, on moto's server."""
    pytest.importorskip("s3fs", reason=NEEDED)
    server = pytest.importorskip("moto.server", reason=NEEDED).ThreadedMotoServer(
        ip_address="127.0.0.1", port=0, verbose=False
    )
    server.start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://{}:{}".format(*server.get_host_and_port()))
    for name, value in {
        "AWS_ACCESS_KEY_ID": "x",
        "AWS_SECRET_ACCESS_KEY": "x",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    yield f"s3://bucket-{uuid.uuid4().hex}"  # all servers of a process have the same buckets
    server.stop()


@pytest.fixture
def gs(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A new bucket's URL, on an emulator of Google's storage."""
    pytest.importorskip("gcsfs", reason=NEEDED)
    emulator = pytest.importorskip("gcp_storage_emulator.server", reason=NEEDED)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = emulator.create_server("127.0.0.1", port, in_memory=True)
    server.start()
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("GOOGLE_CLOUD_PROJECT", "test")
    monkeypatch.setenv("NO_GCE_CHECK", "true")
    yield "gs://bucket"
    server.stop()


@pytest.fixture(params=["s3", "gs"])
def bucket(request: pytest.FixtureRequest) -> Iterator[str]:
    """An empty bucket's URL."""
    url: str = request.getfixturevalue(request.param)
    fresh_system(url).mkdir(url)
    yield url
    fresh_system(url)


def fresh_system(url: str) -> AbstractFileSystem:
    """The file system of a URL. fsspec keeps those it has made by their arguments, not by the
    environment, so they are forgotten.
    """
    fsspec.get_filesystem_class(url.partition("://")[0]).clear_instance_cache()
    return fsspec.core.url_to_fs(url)[0]


@pytest.fixture
def remote(bucket: str, corpus: Corpus, tmp_path: Path) -> tuple[str, Corpus, Corpus]:
    """URL of the shards of a corpus, the corpus on disk, and the one that reads from the URL."""
    url = f"{bucket}/some/corpus"
    writer.convert(corpus, tmp_path / "out", format="flac", megabytes=0.06, workers=1, url=url)
    system = fresh_system(url)
    for path in (tmp_path / "out" / "shards").iterdir():
        system.pipe_file(f"{url}/{path.name}", path.read_bytes())
    assert sum(path.suffix == ".tar" for path in (tmp_path / "out" / "shards").iterdir()) > 2
    return url, corpus, Corpus.open(tmp_path / "out")


def crops(corpus: Corpus) -> list[np.ndarray]:
    """A crop of every row, in no order."""
    return [
        corpus.read(row, 100 + row, 1_000 + row)
        for row in np.random.default_rng(0).permutation(len(corpus.manifest)).tolist()
    ]


def read_in_a_new_process(folder: Path) -> list[np.ndarray]:
    return crops(Corpus.open(folder))


def test_audio_is_read_at_random(remote: tuple[str, Corpus, Corpus], tmp_path: Path) -> None:
    url, _, here = remote
    writer.convert(here, tmp_path / "local", format="pcm", workers=1)  # reads every row from there
    same(here, Corpus.open(tmp_path / "local"))
    (row, *_) = here.manifest.rows("valid").tolist()
    shard = here.manifest[row].path
    assert shard.startswith(url)
    fresh_system(url).rm_file(shard)
    with pytest.raises(
        DataError, match=r"valid-000000\.tar: no such file; restore it, or correct the URL"
    ):
        here.read(row)


def test_processes_of_a_loader_read_the_same_audio_as_one(
    remote: tuple[str, Corpus, Corpus],
) -> None:
    here = remote[2]
    expected = crops(here)
    for method in ("fork", "spawn"):  # a fork inherits file systems that do not work in it
        with ProcessPoolExecutor(1, mp_context=get_context(method)) as pool:
            found = pool.submit(read_in_a_new_process, here.folder).result()
        assert all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))


def test_shards_are_streamed(remote: tuple[str, Corpus, Corpus]) -> None:
    url, _, here = remote
    samples = list(stream(expand(["train-*.tar", "valid-{000000..000000}.tar"], url)))
    assert [sample.json["id"] for sample in samples] == [
        here.manifest[row].id for row in range(len(here.manifest))
    ]
    assert all(
        np.array_equal(sample.waveform, here.read(row)) for row, sample in enumerate(samples)
    )


def test_shards_are_prepared_where_they_lie_and_cached(
    remote: tuple[str, Corpus, Corpus], tmp_path: Path
) -> None:
    url, corpus, here = remote
    shards = {"train": ["train-*.tar"], "valid": ["valid-{000000..000000}.tar"]}
    where = {"cache_dir": str(tmp_path / "cache"), "cache_gigabytes": 1.0}
    folder = prepare(tmp_path / "run", {**WEBDATASET, **shards}, url, **where).folder
    expected = [here.read(row) for row in range(len(here.manifest))]
    fresh_system(url).rm(url, recursive=True)
    prepared = Corpus.open(folder, Cache.of(where["cache_dir"], 1.0))
    for row, waveform in enumerate(expected):
        assert prepared.manifest[row].id == corpus.manifest[row].id
        assert np.array_equal(prepared.read(row), waveform)
