"""Downloading, against a server on localhost that is as bad as they come; and unpacking what nobody
should unpack.
"""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from hydra import compose as hydra_compose
from hydra import initialize_config_dir

from hubert_pretrain.corpora import librilight, speech_commands
from hubert_pretrain.corpora.download import http, unpack
from hubert_pretrain.corpora.download.archives import DESK, Archive, download, fetch_all, is_there
from hubert_pretrain.corpora.download.http import fetch_file
from hubert_pretrain.corpora.folder import Folder
from hubert_pretrain.corpora.fsdd import Fsdd
from hubert_pretrain.corpora.librilight import LibriLight, LibriLightLimited
from hubert_pretrain.corpora.librispeech import LibriSpeech
from hubert_pretrain.corpora.mixture import Mixture
from hubert_pretrain.corpora.speech_commands import TEN_WORDS, SpeechCommands
from hubert_pretrain.corpora.timit import Timit
from hubert_pretrain.corpora.voxpopuli import VoxPopuli
from hubert_pretrain.data.manifest import Manifest
from hubert_pretrain.errors import ConfigError, DataError

CONTENT = bytes(range(256)) * 4000
"""About a megabyte."""


class Server(ThreadingHTTPServer):
    """Serves `files` with Range, ETag and the faults that a test switches on."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.tags = True
        self.ranges = True
        self.lengths = True
        self.drop_after: list[
            int
        ] = []  # of each answer in turn, how many bytes are sent before the line breaks
        self.errors: list[int] = []  # of each request in turn, its status
        self.stall_after: int | None = (
            None  # an answer stops after so many bytes until `stalled` is set
        )
        self.stalled = threading.Event()
        self.requests: list[dict[str, str]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        server = self.server
        server.requests.append(dict(self.headers))
        if server.errors:
            self.send_error(server.errors.pop(0))
            return
        content = server.files.get(self.path.strip("/"))
        if content is None:
            self.send_error(404)
            return
        tag = f'"{hashlib.md5(content).hexdigest()}"'
        start = 0
        asked = self.headers.get("Range")
        if asked and server.ranges and self.headers.get("If-Range") in (None, tag):
            start = int(asked.removeprefix("bytes=").rstrip("-"))
            if start >= len(content):
                self.send_error(416)
                return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        if server.tags:
            self.send_header("ETag", tag)
        if server.lengths:
            self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        body = content[start:]
        if server.stall_after is not None:
            self.wfile.write(body[: server.stall_after])
            server.stalled.wait(60)
            return
        self.wfile.write(body[: server.drop_after.pop(0)] if server.drop_after else body)

    def log_message(self, *arguments: Any) -> None: ...


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(http, "_LONGEST_PAUSE_SECONDS", 0.01)
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def ranges(server: Server) -> list[str | None]:
    return [headers.get("Range") for headers in server.requests]


# -- one file
# -----------------------------------------------------------------------------------------------------------------------


def test_a_file_whole(server: Server, tmp_path: Path) -> None:
    server.files["a.bin"] = CONTENT
    fetch_file(f"{server.url}/a.bin", tmp_path / "a.bin")
    assert (tmp_path / "a.bin").read_bytes() == CONTENT
    assert [path.name for path in tmp_path.iterdir()] == ["a.bin"]


def test_a_line_that_breaks_is_taken_up_where_it_broke(server: Server, tmp_path: Path) -> None:
    server.files["a.bin"] = CONTENT
    server.drop_after = [100_000, 0, 50_001]
    fetch_file(f"{server.url}/a.bin", tmp_path / "a.bin")
    assert (tmp_path / "a.bin").read_bytes() == CONTENT
    assert ranges(server) == [None, "bytes=100000-", "bytes=100000-", "bytes=150001-"]


def test_another_run_goes_on(server: Server, tmp_path: Path) -> None:
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
    assert ranges(server)[-1] == "bytes=300000-"
    assert (tmp_path / "a.bin").read_bytes() == CONTENT


def test_a_file_that_changed_meanwhile_is_fetched_anew(server: Server, tmp_path: Path) -> None:
    """Two versions are never mixed: the part has the tag of the old one."""
    server.files["a.bin"] = CONTENT
    server.drop_after = [300_000, 0]
    with pytest.raises(DataError):
        fetch_file(f"{server.url}/a.bin", tmp_path / "a.bin", attempts=2)
    server.files["a.bin"] = CONTENT[::-1]
    fetch_file(f"{server.url}/a.bin", tmp_path / "a.bin")
    assert (tmp_path / "a.bin").read_bytes() == CONTENT[::-1]


@pytest.mark.parametrize("lack", ["ranges", "tags"])
def test_servers_that_cannot_resume(server: Server, tmp_path: Path, lack: str) -> None:
    server.files["a.bin"] = CONTENT
    setattr(server, lack, False)
    server.drop_after = [100_000, 200_000]
    fetch_file(f"{server.url}/a.bin", tmp_path / "a.bin")
    assert (tmp_path / "a.bin").read_bytes() == CONTENT
    assert len(server.requests) == 3


def test_a_server_that_does_not_say_the_length(server: Server, tmp_path: Path) -> None:
    server.files["a.bin"] = CONTENT
    server.lengths = False
    fetch_file(f"{server.url}/a.bin", tmp_path / "a.bin")
    assert (tmp_path / "a.bin").read_bytes() == CONTENT


def test_a_part_that_was_whole_needs_no_request(server: Server, tmp_path: Path) -> None:
    """Killed between the last byte and the rename."""
    (tmp_path / "a.bin.part").write_bytes(CONTENT)
    note = {"url": f"{server.url}/a.bin", "validator": '"x"', "total": len(CONTENT)}
    (tmp_path / "a.bin.part.json").write_text(json.dumps(note))
    fetch_file(f"{server.url}/a.bin", tmp_path / "a.bin")
    assert not server.requests
    assert (tmp_path / "a.bin").read_bytes() == CONTENT


def test_refusals_and_troubles_of_the_server(server: Server, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"/a\.bin: the server says 404 Not Found; .*data\.mirror"):
        fetch_file(f"{server.url}/a.bin", tmp_path / "a.bin")
    assert len(server.requests) == 1  # what will not pass is not tried again
    server.files["a.bin"] = CONTENT
    server.errors = [503, 429, 500]
    fetch_file(f"{server.url}/a.bin", tmp_path / "a.bin")
    assert (tmp_path / "a.bin").read_bytes() == CONTENT
    server.errors = [503] * 9
    with pytest.raises(
        DataError, match=r"the server says 503 Service Unavailable, 3 times in a row"
    ):
        fetch_file(f"{server.url}/a.bin", tmp_path / "b.bin", attempts=3)


def test_nobody_there_and_no_url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")
    with pytest.raises(DataError, match=r"no connection \(.*refused.*2 times in a row"):
        fetch_file("http://127.0.0.1:1/a.bin", tmp_path / "a.bin", attempts=2, pause_seconds=0.01)
    with pytest.raises(DataError, match=r"file:///etc/passwd: not an http\(s\) URL"):
        fetch_file("file:///etc/passwd", tmp_path / "a.bin")


def test_the_disk_must_have_room_for_what_is_unpacked_too(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.files["a.bin"] = CONTENT
    usage = shutil.disk_usage(tmp_path)._replace(free=2 * len(CONTENT))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    fetch_file(f"{server.url}/a.bin", tmp_path / "a.bin", unpacked_ratio=0.9)
    with pytest.raises(DataError, match=r"0\.0 GB are needed for b\.bin .*are free; make room"):
        fetch_file(f"{server.url}/a.bin", tmp_path / "b.bin", unpacked_ratio=1.1)


# -- archives
# -----------------------------------------------------------------------------------------------------------------------


def tar_of(files: dict[str, bytes], *members: tarfile.TarInfo, mode: str = "w:gz") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as tar:  # type: ignore[call-overload]
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
        for member in members:
            tar.addfile(member)
    return buffer.getvalue()


def special(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type = kind
    info.linkname = target
    return info


@pytest.mark.parametrize(
    ("name", "mode"),
    [("a.tar", "w"), ("a.tar.gz", "w:gz"), ("a.tgz", "w:gz"), ("a.tar.xz", "w:xz")],
)
def test_tar(tmp_path: Path, name: str, mode: str) -> None:
    files = {f"x/{number}/a.flac": bytes([number]) * 5000 for number in range(20)} | {
        "./y.txt": b""
    }
    (tmp_path / name).write_bytes(tar_of(files, special("x/empty", tarfile.DIRTYPE), mode=mode))
    assert unpack.unpack(tmp_path / name, tmp_path / "out") == 21
    assert all((tmp_path / "out" / path).read_bytes() == content for path, content in files.items())
    assert (tmp_path / "out/x/empty").is_dir()


def test_zip(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        file.writestr("x/a.wav", b"123")
        file.mkdir("x/y") if hasattr(file, "mkdir") else file.writestr("x/y/", b"")
    assert unpack.unpack(tmp_path / "a.zip", tmp_path / "out") == 1
    assert (tmp_path / "out/x/a.wav").read_bytes() == b"123"
    link = zipfile.ZipInfo("x/link")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        file.writestr(link, "/etc/passwd")
    with pytest.raises(
        DataError, match=r"a\.zip: member 'x/link' is a link; only files and folders are unpacked"
    ):
        unpack.unpack(tmp_path / "a.zip", tmp_path / "out")


HOSTILE = {
    "absolute": (tar_of({"/tmp/evil": b"x"}), "would land outside"),
    "climbing": (tar_of({"a/../../evil": b"x"}), "would land outside"),
    "backslash": (tar_of({"..\\evil": b"x"}), "would land outside"),
    "symbolic link": (tar_of({}, special("evil", tarfile.SYMTYPE, "/etc")), "is a link"),
    "hard link": (tar_of({}, special("evil", tarfile.LNKTYPE, "../secret")), "is a link"),
    "device": (tar_of({}, special("evil", tarfile.CHRTYPE)), "is a device"),
    "pipe": (tar_of({}, special("evil", tarfile.FIFOTYPE)), "is a device"),
    "through a link": (
        tar_of({}, special("d", tarfile.SYMTYPE, ".."), special("d/evil", tarfile.REGTYPE)),
        "is a link",
    ),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_members_are_refused_and_leave_nothing_outside(tmp_path: Path, case: str) -> None:
    content, message = HOSTILE[case]
    folder = tmp_path / "deep/out"
    (tmp_path / "a.tar.gz").write_bytes(content)
    with pytest.raises(DataError, match=rf"a\.tar\.gz: member '.*' {message}"):
        unpack.unpack(tmp_path / "a.tar.gz", folder)
    assert {path.name for path in tmp_path.rglob("*")} <= {"a.tar.gz", "deep", "out"}


def test_zip_members_that_climb_are_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        file.writestr("../evil", b"x")
    with pytest.raises(DataError, match=r"member '\.\./evil' would land outside the folder"):
        unpack.unpack(tmp_path / "a.zip", tmp_path / "out")


@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz", "a.tar.xz", "a.zip"])
@pytest.mark.parametrize("damage", ["cut", "garbage", "empty"])
def test_damaged_archives_are_named(tmp_path: Path, name: str, damage: str) -> None:
    files = {f"{number}": bytes([number]) * 3000 for number in range(9)}
    mode = {"a.tar": "w", "a.tar.gz": "w:gz", "a.tar.xz": "w:xz"}.get(name)
    content = tar_of(files, mode=mode) if mode else b"PK\x03\x04" + bytes(500)
    broken = {"cut": content[: len(content) * 2 // 3], "garbage": b"garbage" * 200, "empty": b""}[
        damage
    ]
    (tmp_path / name).write_bytes(broken)
    with pytest.raises(DataError, match=rf"{name}: (damaged|.*has \d+ of \d+ bytes)"):
        unpack.unpack(tmp_path / name, tmp_path / "out")


@pytest.mark.parametrize("mode", ["w", "w:gz"])
@pytest.mark.parametrize("blocks", [1, 4, 8])
def test_a_tar_cut_between_two_members_is_found(tmp_path: Path, mode: str, blocks: int) -> None:
    """Each member is two blocks of 512 bytes: its header and its content. tarfile itself is content
    with such a file.
    """
    plain = tar_of({f"{number}": bytes(512) for number in range(9)}, mode="w")[: blocks * 1024]
    name = "a.tar" if mode == "w" else "a.tar.gz"
    (tmp_path / name).write_bytes(plain if mode == "w" else gzip.compress(plain))
    with tarfile.open(tmp_path / name) as tar:
        assert len(tar.getmembers()) == blocks
    with pytest.raises(DataError, match=rf"{name}: damaged \(it ends before its end mark\)"):
        unpack.unpack(tmp_path / name, tmp_path / "out")


def test_a_flipped_bit_in_a_gzip_is_found(tmp_path: Path) -> None:
    content = bytearray(tar_of({"a.txt": b"A" * 100}))
    content[-5] ^= 1  # in the checksum, which is the last thing that is read
    (tmp_path / "a.tar.gz").write_bytes(content)
    with pytest.raises(DataError, match=r"a\.tar\.gz: damaged"):
        unpack.unpack(tmp_path / "a.tar.gz", tmp_path / "out")


# -- a corpus
# -----------------------------------------------------------------------------------------------------------------------


def subset(name: str) -> bytes:
    """`<subset>.tar.gz` as LibriSpeech publishes it: one chapter, and files that every archive
    has.
    """
    chapter = f"LibriSpeech/{name}/19/198/19-198"
    return tar_of(
        {
            "LibriSpeech/README.TXT": b"readme",
            "LibriSpeech/SPEAKERS.TXT": name.encode(),
            f"{chapter}-0000.flac": b"",
            f"{chapter}.trans.txt": b"19-198-0000 A TEXT\n",
        }
    )


def archive(server: Server, name: str = "dev-clean", checksum: str | None = None) -> Archive:
    content = server.files.setdefault(f"{name}.tar.gz", subset(name))
    checksum = f"sha256:{hashlib.sha256(content).hexdigest()}" if checksum is None else checksum
    return Archive(
        url=f"{server.url}/{name}.tar.gz", brings=f"LibriSpeech/{name}", checksum=checksum
    )


def test_archives_are_fetched_verified_unpacked_and_removed_once(
    server: Server, tmp_path: Path
) -> None:
    wanted = [archive(server, "dev-clean"), archive(server, "test-clean")]
    said: list[str] = []
    fetch_all(wanted, tmp_path, say=said.append)
    fetch_all(wanted, tmp_path, say=said.append)
    assert len(server.requests) == len(said) == 2
    assert "dev-clean.tar.gz: 0.0 MB, verified" in said[0]
    found = list(
        LibriSpeech(root=str(tmp_path), train=["dev-clean"], test=["test-clean"]).utterances(
            tmp_path
        )
    )
    assert [(claim.split, claim.text) for claim in found] == [
        ("train", "A TEXT"),
        ("test", "A TEXT"),
    ]
    assert sorted(path.name for path in (tmp_path / DESK).iterdir()) == [
        "dev-clean.tar.gz.json",
        "lock",
        "test-clean.tar.gz.json",
    ]


def test_archives_may_be_kept(server: Server, tmp_path: Path) -> None:
    fetch_all([archive(server)], tmp_path, keep=True)
    assert (tmp_path / DESK / "dev-clean.tar.gz").read_bytes() == server.files["dev-clean.tar.gz"]


def test_a_wrong_checksum_is_refused_and_nothing_unpacked(server: Server, tmp_path: Path) -> None:
    wrong = archive(server, checksum="md5:" + "0" * 32)
    with pytest.raises(
        DataError,
        match=r"dev-clean\.tar\.gz: its md5 is [0-9a-f]{32}, expected 0{32}; what was fetched is removed",
    ):
        fetch_all([wrong], tmp_path)
    assert sorted(path.name for path in tmp_path.rglob("*")) == [DESK, "lock"]
    md5 = hashlib.md5(server.files["dev-clean.tar.gz"]).hexdigest()
    fetch_all([archive(server, checksum=f"md5:{md5}")], tmp_path)
    assert (tmp_path / "LibriSpeech/dev-clean").is_dir()


def test_without_a_published_checksum_it_says_so_and_records_its_own(
    server: Server, tmp_path: Path
) -> None:
    said: list[str] = []
    fetch_all([archive(server, checksum="")], tmp_path, say=said.append)
    sha256 = hashlib.sha256(server.files["dev-clean.tar.gz"]).hexdigest()
    assert f"unverified, no checksum is published; sha256 {sha256}" in said[0]
    mark = json.loads((tmp_path / DESK / "dev-clean.tar.gz.json").read_text())
    assert (mark["sha256"], mark["verified"], mark["placed"]) == (sha256, False, True)


def test_a_mirror_holds_the_same_names(server: Server, tmp_path: Path) -> None:
    server.files["mirror/dev-clean.tar.gz"] = subset("dev-clean")
    wanted = Archive(
        url="https://nowhere.invalid/resources/12/dev-clean.tar.gz", brings="LibriSpeech/dev-clean"
    )
    fetch_all([wanted], tmp_path, f"{server.url}/mirror/")
    assert (tmp_path / "LibriSpeech/dev-clean").is_dir()


def test_a_plain_file_is_not_unpacked(server: Server, tmp_path: Path) -> None:
    server.files["list.tsv.gz"] = b"a table"
    fetch_all([Archive(url=f"{server.url}/list.tsv.gz", brings="lists/list.tsv.gz")], tmp_path)
    assert (tmp_path / "lists/list.tsv.gz").read_bytes() == b"a table"


def test_what_is_there_already_is_not_fetched(server: Server, tmp_path: Path) -> None:
    (tmp_path / "LibriSpeech/dev-clean").mkdir(parents=True)
    fetch_all([archive(server)], tmp_path)
    assert not server.requests
    assert not (tmp_path / DESK).exists()


def test_an_archive_that_brings_something_else(server: Server, tmp_path: Path) -> None:
    wanted = archive(server)
    other = Archive(url=wanted.url, brings="LibriSpeech/dev-other", checksum=wanted.checksum)
    with pytest.raises(
        DataError, match=r"does not bring LibriSpeech/dev-other, which was expected"
    ):
        fetch_all([other], tmp_path)


def test_two_at_once_are_one_too_many(server: Server, tmp_path: Path) -> None:
    import fcntl

    (tmp_path / DESK).mkdir()
    with open(tmp_path / DESK / "lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(DataError, match=r"another process is downloading there"):
            fetch_all([archive(server)], tmp_path)


@pytest.mark.parametrize("when", ["unpacking", "moving", "marking"])
def test_an_interruption_at_any_point_is_made_good(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """What a kill leaves is taken for neither done nor damage: the next run brings it to the end
    without fetching again.
    """
    from hubert_pretrain.corpora.download import archives as module

    wanted = archive(server)

    def stop(*arguments: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        if when == "unpacking":
            write = unpack._write
            count = iter(range(9))
            patch.setattr(
                unpack,
                "_write",
                lambda *arguments: stop() if next(count) == 2 else write(*arguments),
            )
        elif when == "moving":
            move = module._move_in
            patch.setattr(
                module,
                "_move_in",
                lambda source, target: (
                    stop() if target.name == "LibriSpeech" else move(source, target)
                ),
            )
            (tmp_path / "LibriSpeech").mkdir()
        else:
            write_json = module.write_json
            patch.setattr(
                module,
                "write_json",
                lambda path, value: stop() if value["placed"] else write_json(path, value),
            )
        with pytest.raises(KeyboardInterrupt):
            fetch_all([wanted], tmp_path)
    assert not is_there(wanted, tmp_path)
    fetch_all([wanted], tmp_path)
    assert is_there(wanted, tmp_path)
    assert len(server.requests) == 1
    assert (
        tmp_path / "LibriSpeech/dev-clean/19/198/19-198.trans.txt"
    ).read_bytes() == b"19-198-0000 A TEXT\n"
    assert sorted(path.name for path in (tmp_path / DESK).iterdir()) == [
        "dev-clean.tar.gz.json",
        "lock",
    ]


def test_kill_9_in_the_middle_of_a_file(server: Server, tmp_path: Path, repository: Path) -> None:
    content = tar_of(
        {
            f"free-spoken-digit-dataset-1.0.10/recordings/0_a_{number}.wav": os.urandom(20_000)
            for number in range(50)
        }
    )
    server.files["v1.0.10.tar.gz"] = content
    server.stall_after = 400_000
    words = ["fsdd", "--to", str(tmp_path), "--mirror", server.url]
    part = tmp_path / DESK / "v1.0.10.tar.gz.part"
    with subprocess.Popen(
        [sys.executable, str(repository / "tools/download_corpus.py"), *words]
    ) as process:
        deadline = time.monotonic() + 60
        while not (part.exists() and part.stat().st_size >= 300_000):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.kill()
    server.stall_after = None
    server.stalled.set()
    fetch_all(
        [
            Archive(
                url=f"{server.url}/v1.0.10.tar.gz",
                brings="free-spoken-digit-dataset-1.0.10/recordings",
            )
        ],
        tmp_path,
    )
    begun = int(str(ranges(server)[-1]).removeprefix("bytes=").rstrip("-"))
    assert begun >= 300_000
    assert len(list(Fsdd(root=str(tmp_path)).utterances(tmp_path))) == 50


def test_a_corpus_fetches_the_subsets_that_it_lacks(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through the class that a recipe names; with the checksums of this server's archives."""
    from hubert_pretrain.corpora import librispeech

    for name in ("dev-clean", "test-clean"):
        wanted = archive(server, name)
        monkeypatch.setitem(librispeech.PUBLISHED, name, (server.url, wanted.checksum))
    root = tmp_path / "LibriSpeech"
    source = LibriSpeech(root=str(root), train=["dev-clean"], test=["test-clean"])
    with pytest.raises(DataError, match=r"no such folder; .*data\.download=true"):
        list(source.utterances(tmp_path))
    assert not server.requests  # never unless it is asked for
    download(source)
    download(source)
    assert len(server.requests) == 2
    assert len(list(source.utterances(tmp_path))) == 2
    with pytest.raises(ConfigError, match=r"'dev-clena': expected .*did you mean 'dev-clean'"):
        download(LibriSpeech(root=str(root), train=["dev-clena"]))


def test_prepare_downloads_first_when_it_is_asked_to(server: Server, tmp_path: Path) -> None:
    """`data=fsdd data.download=true` from an empty folder, and nothing of the kind without being
    asked.
    """
    from hubert_pretrain.config import compose
    from hubert_pretrain.pipeline import plan
    from hubert_pretrain.pipeline.workspace import Workspace
    from hubert_pretrain.stages import prepare

    recordings = {}
    for number, digit in enumerate("0123456789"):
        buffer = io.BytesIO()
        soundfile.write(
            buffer, np.random.default_rng(number).normal(0, 0.1, 8000), 8000, format="WAV"
        )
        recordings[f"free-spoken-digit-dataset-1.0.10/recordings/{digit}_anna_{number}.wav"] = (
            buffer.getvalue()
        )
    server.files["v1.0.10.tar.gz"] = tar_of(recordings)
    words = ["+recipe=smoke", "data=fsdd", f"data.root={tmp_path}/fsdd", "data.workers=1"]
    compose.register()
    with initialize_config_dir(config_dir=str(compose.conf_folder()), version_base="1.3"):
        without, asking = (
            compose.to_recipe(hydra_compose("config", overrides=[*words, *more]), words)
            for more in ([], ["data.download=true", f"data.mirror={server.url}"])
        )
    folder = tmp_path / "prepare"
    folder.mkdir()
    with pytest.raises(DataError, match=r"fsdd: no such folder"):
        prepare.run(without, Workspace(tmp_path), "prepare", folder)
    assert not server.requests
    prepare.run(asking, Workspace(tmp_path), "prepare", folder)
    assert len(Manifest.open(folder / "manifest.arrow")) == 10
    # Whether and whence it was fetched is no part of what the artefact is.
    assert plan.stages(without)[0].identity == plan.stages(asking)[0].identity


def test_a_mixture_fetches_those_of_its_corpora_that_can_be(server: Server, tmp_path: Path) -> None:
    server.files["v1.0.10.tar.gz"] = PUBLISHED["fsdd"][1]["v1.0.10.tar.gz"]
    (tmp_path / "own").mkdir()
    (tmp_path / "own/a.wav").touch()
    mixture = Mixture(
        corpora={
            "digits": Fsdd(root=str(tmp_path / "fsdd")),
            "own": Folder(root=str(tmp_path / "own")),
        }
    )
    download(mixture, server.url)
    assert [claim.id for claim in mixture.utterances(tmp_path)] == ["digits/0_a_0", "own/a"]


def test_a_corpus_that_is_sold_says_where(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError,
        match=r"Timit has no download: the Linguistic Data Consortium, LDC93S1; then set data\.root",
    ):
        download(Timit(root=str(tmp_path)))


def voxpopuli(root: str) -> VoxPopuli:
    return VoxPopuli(root=root, languages=["en"], part="raw", years=[2019])


SEGMENTS = gzip.compress(
    b"event_id\tsegment_no\tstart\tend\n20190401-0900-PLENARY_en\t0\t1.0\t3.0\n"
)
CHAPTER = {
    f"{part}/198/19-198{end}": text
    for part in ("clean/19", "other/19")
    for end, text in (("-0.flac", b""), (".trans.txt", b"19-198-0 A\n"))
}
PUBLISHED: dict[str, tuple[Callable[[str], Any], dict[str, bytes], int]] = {
    "fsdd": (
        lambda root: Fsdd(root=root),
        {"v1.0.10.tar.gz": tar_of({"free-spoken-digit-dataset-1.0.10/recordings/0_a_0.wav": b""})},
        1,
    ),
    "librilight": (
        lambda root: LibriLight(root=root, subsets=["small", "medium"], max_seconds=None),
        {
            f"{name}.tar": tar_of(
                {f"{name}/100/book/01.flac": b"", f"{name}/100/book/01.json": b"{}"}, mode="w"
            )
            for name in ("small", "medium")
        },
        2,
    ),
    "librilight_limited": (
        lambda root: LibriLightLimited(root=root, size="10min"),
        {
            "librispeech_finetuning.tgz": tar_of(
                {f"librispeech_finetuning/1h/0/{path}": text for path, text in CHAPTER.items()}
            )
        },
        2,
    ),
    "speech_commands": (
        lambda root: SpeechCommands(root=root, classes=12, official_test=True),
        {
            "speech_commands_v0.02.tar.gz": tar_of(
                {
                    "./yes/0a_nohash_0.wav": b"",
                    "./testing_list.txt": b"",
                    "./validation_list.txt": b"",
                    "./_background_noise_/README.md": b"",
                }
            ),
            "speech_commands_test_set_v0.02.tar.gz": tar_of(
                {
                    f"./{word}/0a_nohash_0.wav": b""
                    for word in (*TEN_WORDS, "_unknown_", "_silence_")
                }
            ),
        },
        13,
    ),
    "voxpopuli": (
        voxpopuli,
        {
            "en_2019.tar": tar_of({"en/2019/20190401-0900-PLENARY_en.ogg": b""}, mode="w"),
            "unlabelled_v2.tsv.gz": SEGMENTS,
        },
        1,
    ),
}
"""Name -> the corpus, its archives in their published form, and how many utterances they hold."""


@pytest.mark.parametrize("name", PUBLISHED)
def test_what_each_corpus_fetches_lands_where_it_looks(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    build, files, count = PUBLISHED[name]
    server.files.update(files)
    checksums = {
        file.partition(".")[0]: f"sha256:{hashlib.sha256(content).hexdigest()}"
        for file, content in files.items()
    }
    monkeypatch.setattr(librilight, "PUBLISHED", checksums)
    monkeypatch.setattr(
        librilight, "_FINETUNING_CHECKSUM", checksums.get("librispeech_finetuning", "")
    )
    monkeypatch.setattr(speech_commands, "_CHECKSUM", checksums.get("speech_commands_v0", ""))
    source = build(str(tmp_path / "root"))
    download(source, server.url)
    assert len(list(source.utterances(tmp_path))) == count
    assert len(server.requests) == len(files)
    download(source, server.url)
    assert len(server.requests) == len(files)


def test_the_tool(
    server: Server, tmp_path: Path, repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """fsdd has no published checksum, so that any archive of its form will do."""
    spec = importlib.util.spec_from_file_location(
        "download_corpus", repository / "tools/download_corpus.py"
    )
    assert spec is not None
    assert spec.loader is not None
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    server.files["v1.0.10.tar.gz"] = PUBLISHED["fsdd"][1]["v1.0.10.tar.gz"]
    assert tool.main(["fsdd", "--to", str(tmp_path / "fsdd"), "--mirror", server.url]) == 0
    assert "unverified" in capsys.readouterr().out
    assert (tmp_path / "fsdd/free-spoken-digit-dataset-1.0.10/recordings/0_a_0.wav").is_file()
    assert tool.main(["timit", "--to", str(tmp_path)]) == 2
    assert "Linguistic Data Consortium" in capsys.readouterr().err
    assert tool.main(["librispeech", "--subset", "dev-claen", "--to", str(tmp_path)]) == 2
    assert "did you mean 'dev-clean'" in capsys.readouterr().err
    for words in (["librispeech"], ["fsdd", "--subset", "x"]):
        with pytest.raises(SystemExit):
            tool.main([*words, "--to", str(tmp_path)])
