"""Resumable downloads of one file from a faulty server."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from hubert_pretrain.corpora.download.http import fetch_file
from hubert_pretrain.errors import DataError

CONTENT = bytes(range(256)) * 4000
"""About a megabyte."""


def test_a_complete_file(server: Any, tmp_path: Path) -> None:
    server.files["a.bin"] = CONTENT
    fetch_file(f"{server.url}/a.bin", tmp_path / "a.bin")
    assert (tmp_path / "a.bin").read_bytes() == CONTENT
    assert [path.name for path in tmp_path.iterdir()] == ["a.bin"]


def test_a_broken_connection_is_resumed(server: Any, tmp_path: Path) -> None:
    server.files["a.bin"] = CONTENT
    server.drop_after = [100_000, 0, 50_001]
    fetch_file(f"{server.url}/a.bin", tmp_path / "a.bin")
    assert (tmp_path / "a.bin").read_bytes() == CONTENT
    assert server.requested_ranges() == [None, "bytes=100000-", "bytes=100000-", "bytes=150001-"]


def test_another_run_resumes(server: Any, tmp_path: Path) -> None:
    server.files["a.bin"] = CONTENT
    server.drop_after = [300_000, 0]
    with pytest.raises(
        DataError,
        match=r"ended after 300000 of 1024000 bytes, 2 times in a row; run again later, it goes on",
    ):
        fetch_file(f"{server.url}/a.bin", tmp_path / "a.bin", attempts=2)
    assert (tmp_path / "a.bin.part").stat().st_size == 300_000
    assert not (tmp_path / "a.bin").exists()
    fetch_file(f"{server.url}/a.bin", tmp_path / "a.bin")
    assert server.requested_ranges()[-1] == "bytes=300000-"
    assert (tmp_path / "a.bin").read_bytes() == CONTENT


def test_a_changed_file_is_fetched_again_from_its_start(server: Any, tmp_path: Path) -> None:
    """Two versions are never mixed: the part has the tag of the old one."""
    server.files["a.bin"] = CONTENT
    server.drop_after = [300_000, 0]
    with pytest.raises(DataError):
        fetch_file(f"{server.url}/a.bin", tmp_path / "a.bin", attempts=2)
    server.files["a.bin"] = CONTENT[::-1]
    fetch_file(f"{server.url}/a.bin", tmp_path / "a.bin")
    assert (tmp_path / "a.bin").read_bytes() == CONTENT[::-1]


@pytest.mark.parametrize("lack", ["ranges", "tags"])
def test_servers_that_cannot_resume(server: Any, tmp_path: Path, lack: str) -> None:
    server.files["a.bin"] = CONTENT
    setattr(server, lack, False)
    server.drop_after = [100_000, 200_000]
    fetch_file(f"{server.url}/a.bin", tmp_path / "a.bin")
    assert (tmp_path / "a.bin").read_bytes() == CONTENT
    assert len(server.requests) == 3


def test_a_server_that_does_not_say_the_length(server: Any, tmp_path: Path) -> None:
    server.files["a.bin"] = CONTENT
    server.lengths = False
    fetch_file(f"{server.url}/a.bin", tmp_path / "a.bin")
    assert (tmp_path / "a.bin").read_bytes() == CONTENT


def test_a_complete_part_needs_no_request(server: Any, tmp_path: Path) -> None:
    """Killed between the last byte and the rename."""
    (tmp_path / "a.bin.part").write_bytes(CONTENT)
    note = {"url": f"{server.url}/a.bin", "validator": '"x"', "total": len(CONTENT)}
    (tmp_path / "a.bin.part.json").write_text(json.dumps(note))
    fetch_file(f"{server.url}/a.bin", tmp_path / "a.bin")
    assert not server.requests
    assert (tmp_path / "a.bin").read_bytes() == CONTENT


def test_errors_of_the_server(server: Any, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"/a\.bin: the server says 404 Not Found; .*data\.mirror"):
        fetch_file(f"{server.url}/a.bin", tmp_path / "a.bin")
    assert len(server.requests) == 1  # a permanent error is not tried again
    server.files["a.bin"] = CONTENT
    server.errors = [503, 429, 500]
    fetch_file(f"{server.url}/a.bin", tmp_path / "a.bin")
    assert (tmp_path / "a.bin").read_bytes() == CONTENT
    server.errors = [503] * 9
    with pytest.raises(
        DataError, match=r"the server says 503 Service Unavailable, 3 times in a row"
    ):
        fetch_file(f"{server.url}/a.bin", tmp_path / "b.bin", attempts=3)


def test_no_server_and_no_url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")
    with pytest.raises(DataError, match=r"no connection \(.*refused.*2 times in a row"):
        fetch_file("http://127.0.0.1:1/a.bin", tmp_path / "a.bin", attempts=2, pause_seconds=0.01)
    with pytest.raises(DataError, match=r"file:///etc/passwd: not an http\(s\) URL"):
        fetch_file("file:///etc/passwd", tmp_path / "a.bin")


def test_the_disk_needs_room_for_the_unpacked_content(
    server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.files["a.bin"] = CONTENT
    usage = shutil.disk_usage(tmp_path)._replace(free=2 * len(CONTENT))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    fetch_file(f"{server.url}/a.bin", tmp_path / "a.bin", unpacked_ratio=0.9)
    with pytest.raises(DataError, match=r"0\.0 GB are needed for b\.bin .*are free; make room"):
        fetch_file(f"{server.url}/a.bin", tmp_path / "b.bin", unpacked_ratio=1.1)
