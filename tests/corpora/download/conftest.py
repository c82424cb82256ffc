"""A faulty HTTP server on localhost, and archives made in memory."""

from __future__ import annotations

import hashlib
import io
import tarfile
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from hubert_pretrain.corpora.download import http
from hubert_pretrain.corpora.download.archives import Archive


class Server(ThreadingHTTPServer):
    """Serves `files` with Range, ETag and the faults that a test switches on."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.tags = True
        self.ranges = True
        self.lengths = True
        # For each answer in turn, how many bytes are sent before the connection breaks.
        self.drop_after: list[int] = []
        # For each request in turn, the error status that answers it.
        self.errors: list[int] = []
        # An answer stops after so many bytes until `stalled` is set.
        self.stall_after: int | None = None
        self.stalled = threading.Event()
        self.requests: list[dict[str, str]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def requested_ranges(self) -> list[str | None]:
        """The `Range` header of every request so far."""
        return [headers.get("Range") for headers in self.requests]


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


def _tar_of(files: dict[str, bytes], *members: tarfile.TarInfo, mode: str = "w:gz") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as tar:  # type: ignore[call-overload]
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
        for member in members:
            tar.addfile(member)
    return buffer.getvalue()


@pytest.fixture
def tar_of() -> Callable[..., bytes]:
    """Makes a tar of files (name -> content) and of other members, in memory."""
    return _tar_of


def librispeech_tar(name: str) -> bytes:
    """`<subset>.tar.gz` as LibriSpeech publishes it: one chapter, and files that every archive
    has.
    """
    chapter = f"LibriSpeech/{name}/19/198/19-198"
    return _tar_of(
        {
            "LibriSpeech/README.TXT": b"readme",
            "LibriSpeech/SPEAKERS.TXT": name.encode(),
            f"{chapter}-0000.flac": b"",
            f"{chapter}.trans.txt": b"19-198-0000 A TEXT\n",
        }
    )


@pytest.fixture
def archive(server: Server) -> Callable[..., Archive]:
    """Puts one subset of LibriSpeech on the server and returns its Archive."""

    def publish(name: str = "dev-clean", checksum: str | None = None) -> Archive:
        content = server.files.setdefault(f"{name}.tar.gz", librispeech_tar(name))
        if checksum is None:
            checksum = f"sha256:{hashlib.sha256(content).hexdigest()}"
        return Archive(
            url=f"{server.url}/{name}.tar.gz", provides=f"LibriSpeech/{name}", checksum=checksum
        )

    return publish
