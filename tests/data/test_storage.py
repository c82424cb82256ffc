import contextlib
import multiprocessing
import os
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import fsspec
import numpy as np
import pytest
import soundfile

from hubert_pretrain.data import audio, storage
from hubert_pretrain.data.preparation.scan import scan
from hubert_pretrain.data.storage import Cache, fetch, open_bytes
from hubert_pretrain.errors import DataError
from hubert_pretrain.frames import SAMPLE_RATE
from tests.targets.conftest import CLEAN_PROCESSES


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage.time, "sleep", lambda seconds: None)


def test_a_pipe_is_refused_before_it_is_opened(tmp_path: Path) -> None:
    """To open one waits for its writer, for ever."""
    os.mkfifo(tmp_path / "a.wav")
    for offset in (-1, 0):
        with pytest.raises(DataError, match=r"a\.wav: .*it is a folder, a pipe or a device"):
            open_bytes(str(tmp_path / "a.wav"), offset, 4)


@contextlib.contextmanager
def served(
    files: dict[str, bytes], ranges: bool = True, failures: int = 0
) -> Iterator[tuple[str, list[str]]]:
    """An HTTP server on localhost: its address, and what was asked of it."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(f"{self.path} {self.headers.get('Range', '')}")
            data = files.get(self.path)
            if len(asked) <= failures:
                self.send_error(503)
            elif data is None:
                self.send_error(404)
            else:
                span = self.headers.get("Range", "")
                if ranges and span:
                    first, last = (int(one) for one in span.removeprefix("bytes=").split("-"))
                    data = data[first : last + 1]
                self.send_response(206 if ranges and span else 200)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

        def do_HEAD(self) -> None:
            data = files.get(self.path)
            self.send_response(404 if data is None else 200)
            self.send_header("Content-Length", str(len(data or b"")))
            self.end_headers()

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()


def entries(cache: Cache) -> list[Path]:
    return sorted(path for path in cache.folder.glob("??/*"))


def size(cache: Cache) -> int:
    return sum(path.stat().st_size for path in entries(cache))


def test_a_part_of_a_file_reads_as_the_file_itself(tmp_path: Path) -> None:
    content = np.random.default_rng(0).bytes(1000)
    (tmp_path / "shard").write_bytes(b"x" * 77 + content + b"y" * 50)
    part = open_bytes(str(tmp_path / "shard"), 77, 1000)
    assert part.size == 1000
    for start, length in [(0, 1000), (5, 10), (990, 100), (1000, 5), (2000, 5)]:
        assert part.read(start, length) == content[start : start + length]
    with part.file() as file:
        assert file.read() == content
        assert (file.seek(-10, os.SEEK_END), file.read(4)) == (990, content[990:994])
    assert open_bytes(f"file://{tmp_path}/shard").size == 1127


def test_a_shard_that_was_cut_or_replaced_while_it_is_open_is_noticed(tmp_path: Path) -> None:
    shard = tmp_path / "shard"
    shard.write_bytes(b"a" * 100)
    assert open_bytes(str(shard), 50, 50).read(0, 50) == b"a" * 50
    os.truncate(shard, 99)
    with pytest.raises(
        DataError, match=r"shard: has 99 bytes, expected at least 100; the shard was cut"
    ):
        open_bytes(str(shard), 50, 50)
    (tmp_path / "new").write_bytes(b"b" * 100)
    os.replace(tmp_path / "new", shard)
    assert open_bytes(str(shard), 50, 50).read(0, 50) == b"b" * 50


def test_descriptors_stay_few(tmp_path: Path) -> None:
    for number in range(200):
        (tmp_path / f"{number}.tar").write_bytes(b"abc")
        assert open_bytes(str(tmp_path / f"{number}.tar"), 1, 1).read(0, 1) == b"b"
    held = [
        os.readlink(f"/proc/self/fd/{fd}")
        for fd in os.listdir("/proc/self/fd")
        if os.path.islink(f"/proc/self/fd/{fd}")
    ]
    assert sum(str(tmp_path) in path for path in held) <= 64


@pytest.mark.parametrize("where", ["memory", "http"])
def test_audio_behind_a_url_equals_that_of_the_file(tmp_path: Path, where: str) -> None:
    samples = np.random.default_rng(0).integers(-9000, 9000, 30_000).astype(np.int16)
    for suffix in ("wav", "flac", "ogg"):
        path = tmp_path / f"a.{suffix}"
        soundfile.write(path, samples, SAMPLE_RATE)
        content = path.read_bytes()
        shard = b"\0" * 512 + content + b"\0" * 512
        with served({"/shard.tar": shard, f"/a.{suffix}": content}) as (address, asked):
            if where == "memory":
                fsspec.filesystem("memory").pipe({"/t/shard.tar": shard, f"/t/a.{suffix}": content})
                address = "memory://t"
            stretch = {"offset": 512, "num_bytes": len(content)}
            for start, count in [(0, None), (100, 5_000), (1, 29_000)]:
                expected = audio.read(path, start, count)
                assert np.array_equal(audio.read(f"{address}/a.{suffix}", start, count), expected)
                assert np.array_equal(
                    audio.read(f"{address}/shard.tar", start, count, **stretch), expected
                )
            assert scan(f"{address}/shard.tar", **stretch) == scan(path)
        if where == "http":
            assert f"/shard.tar bytes=512-{511 + len(content)}" in asked, "only the file is fetched"


def test_the_cache_answers_without_the_network_and_stays_in_its_bounds(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache", 20_000)
    draw = np.random.default_rng(0)
    shard = draw.bytes(100_000)
    with served({"/s.tar": shard}) as (address, asked):
        for _ in range(3):
            assert fetch(f"{address}/s.tar", 10, 5_000, cache) == shard[10:5_010]
        assert len(asked) == 1
        for _ in range(60):
            first = int(draw.integers(0, 90_000))
            assert fetch(f"{address}/s.tar", first, 3_000, cache) == shard[first : first + 3_000]
            assert size(cache) <= 20_000
        assert entries(cache)
    assert fetch(f"{address}/s.tar", first, 3_000, cache) == shard[first : first + 3_000], (
        "the server is gone, the last one is kept"
    )
    with pytest.raises(DataError, match=r"s\.tar: .*4 times"):
        fetch(f"{address}/s.tar", 10, 5_000, cache)


def test_the_least_recently_used_entry_is_evicted_first(tmp_path: Path) -> None:
    cache = Cache(tmp_path, 3_100)
    for age, name in enumerate(["old", "used", "new"]):
        assert cache.get(name, lambda: b"x" * 1_000) == b"x" * 1_000
        newest = max(entries(cache), key=lambda path: path.stat().st_mtime_ns)
        os.utime(newest, (1_000 + age, 1_000 + age))
    cache.get("used", lambda: pytest.fail("it is there"))
    cache.get("one more", lambda: b"y" * 900)
    fetched: list[str] = []

    def again(name: str) -> bytes:
        fetched.append(name)
        return b"x" * 1_000

    cache.get("used", lambda: again("used"))
    cache.get("old", lambda: again("old"))
    assert fetched == ["old"]


@pytest.mark.parametrize("damage", ["cut", "empty", "flipped", "longer"])
def test_a_damaged_entry_is_fetched_again(tmp_path: Path, damage: str) -> None:
    cache = Cache(tmp_path, 10_000)
    cache.get("a", lambda: b"abc" * 100)
    (path,) = entries(cache)
    content = path.read_bytes()
    path.write_bytes(
        {
            "cut": content[:100],
            "empty": b"",
            "flipped": b"x" + content[1:],
            "longer": content + b"z",
        }[damage],
    )
    assert cache.get("a", lambda: b"abc" * 100) == b"abc" * 100
    assert path.read_bytes() == content


def test_a_cache_that_cannot_be_written_warns_and_goes_on(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    cache = Cache(tmp_path / "file" / "cache", 10_000)
    with pytest.warns(UserWarning, match="the cache cannot be written"):
        assert cache.get("a", lambda: b"abc") == b"abc"


def test_an_entry_larger_than_the_cache_is_not_stored(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache", 100)
    assert cache.get("a", lambda: b"x" * 200) == b"x" * 200
    assert not entries(cache)


def _hammer(folder: str, number: int) -> None:
    cache = Cache(Path(folder), 50_000)
    draw = np.random.default_rng(number)
    for name in draw.integers(0, 40, 150).tolist():
        expected = bytes([name]) * (1_000 + 50 * name)
        if cache.get(str(name), lambda expected=expected: expected) != expected:
            raise AssertionError(name)


def test_processes_share_a_cache(tmp_path: Path) -> None:
    processes = [
        CLEAN_PROCESSES.Process(target=_hammer, args=(str(tmp_path), number)) for number in range(4)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    cache = Cache(tmp_path, 50_000)
    assert size(cache) <= 50_000
    assert not list(tmp_path.glob("??/.*.tmp"))


def _fetch_and_fork(url: str, result: Path) -> None:
    """Fetches, and then a fork of this process does. (A fork of pytest could wait for locks of the
    threads of its libraries.)
    """
    assert fetch(url, 1, 2) == b"12"
    fork = multiprocessing.get_context("fork")
    child = fork.Process(target=lambda: result.write_bytes(fetch(url, 3, 4)))
    child.start()
    child.join()


def test_a_fork_can_fetch_after_its_parent_has(tmp_path: Path) -> None:
    with served({"/s": b"0123456789"}) as (address, _):
        parent = CLEAN_PROCESSES.Process(
            target=_fetch_and_fork, args=(f"{address}/s", tmp_path / "result")
        )
        parent.start()
        parent.join(60)
        assert parent.exitcode == 0
        assert (tmp_path / "result").read_bytes() == b"3456"


def test_the_network_is_tried_again_and_errors_name_the_url() -> None:
    with served({"/s": b"0123456789"}, failures=2) as (address, asked):
        assert fetch(f"{address}/s", 2, 3) == b"234"
        assert len(asked) == 3
        with pytest.raises(DataError, match=r"/none: no such file; restore it"):
            fetch(f"{address}/none", 0, 3)
        with pytest.raises(DataError, match=r"/s: 1 bytes came, 3 were asked for"):
            fetch(f"{address}/s", 9, 3)
    with (
        served({"/s": b"0123456789"}, ranges=False) as (address, _),
        pytest.raises(DataError, match="the server ignores ranges"),
    ):
        fetch(f"{address}/s", 2, 3)
    with pytest.raises(DataError, match="nosuchprotocol"):
        fetch("nosuchprotocol://bucket/s")


def test_no_cache_without_a_folder(tmp_path: Path) -> None:
    assert Cache.of(None, 5) is None
    assert Cache.of(tmp_path, 1.5) == Cache(tmp_path, 1_500_000_000)


def test_abandoned_files_of_killed_processes_are_evicted(tmp_path: Path) -> None:
    cache = Cache(tmp_path, 5_000)
    cache.get("a", lambda: b"x" * 100)
    (path,) = entries(cache)
    stale = path.with_name(".left.123.tmp")
    stale.write_bytes(b"x" * 500)
    os.utime(stale, (time.time() - 7200,) * 2)
    (tmp_path / ".bytes").write_bytes(b"torn")  # the count is lost: it is counted again
    cache.get("b", lambda: b"y" * 100)
    assert not stale.exists()
    assert path.exists()


def test_a_crop_of_a_long_recording_behind_a_url_fetches_a_part(tmp_path: Path) -> None:
    samples = np.random.default_rng(0).integers(-9_000, 9_000, (2_000_000, 2)).astype(np.int16)
    for suffix in ("wav", "flac"):
        path = tmp_path / f"a.{suffix}"
        soundfile.write(path, samples, SAMPLE_RATE)
        content = path.read_bytes()
        assert len(content) > 6_000_000
        with served({"/a": content, "/shard": b"\0" * 512 + content}) as (address, asked):
            expected = audio.read(path, 1_500_000, 32_000)
            assert np.array_equal(audio.read(f"{address}/a", 1_500_000, 32_000), expected)
            assert fetched(asked) <= 1 << 22
            asked.clear()
            member = {"offset": 512, "num_bytes": len(content)}
            found = audio.read(f"{address}/shard", 1_500_000, 32_000, **member)
            assert np.array_equal(found, expected)
            assert fetched(asked) <= 1 << 22
            asked.clear()
            assert scan(f"{address}/a") == scan(path)
            # A joined FLAC is searched for after the decoding.
            assert fetched(asked) < (2.2 if suffix == "flac" else 1.2) * len(content)
            assert len(asked) < 20


def fetched(asked: list[str]) -> int:
    """Bytes of the ranges that were asked for."""
    spans = [one.partition("bytes=")[2].split("-") for one in asked if "bytes=" in one]
    return sum(int(last) - int(first) + 1 for first, last in spans)


def test_a_long_recording_is_read_from_a_server_without_ranges(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    soundfile.write(path, np.zeros(1_000_000, np.int16), SAMPLE_RATE)
    with served({"/a": path.read_bytes()}, ranges=False) as (address, asked):
        assert np.array_equal(audio.read(f"{address}/a", 5, 10), np.zeros(10))
        assert len(asked) == 1
