"""One file over HTTP, however often the line breaks: resumed where it stopped, never mixed from two
versions, whole or not there.
"""

from __future__ import annotations

import http.client
import shutil
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hubert_pretrain.errors import DataError
from hubert_pretrain.files import disk_room, publish, read_json, write_json
from hubert_pretrain.progress import LOG_EVERY_SECONDS

_BLOCK = 1 << 16
"""Bytes that are waited for before they are written: what a kill may lose."""
_TIMEOUT_SECONDS = 60.0
_LONGEST_PAUSE_SECONDS = 60.0
_TRY_AGAIN = {408, 425, 429}
"""Answers below 500 that a later attempt may not get."""

Advance = Callable[[int], None]
"""Told after each block how many bytes there are so far."""


class _Broken(Exception):
    """An attempt failed, another may not."""


def fetch_file(
    url: str,
    target: Path,
    *,
    unpacked_ratio: float = 0.0,
    attempts: int = 8,
    pause_seconds: float = 1.0,
) -> None:
    """Fetches a URL into `target`, which appears when it is whole; until then `<target>.part`
    grows, over any number of runs.

    A part is continued (`Range`, `If-Range`) only when the server says by its ETag or date that the
    file is still the same, and fetched anew otherwise.

    Args:
        url: http or https. target: where the file is to lie; its folder exists. unpacked_ratio:
        bytes that will be unpacked from it per byte of it; the disk must have room for both.
        attempts: how many in a row may fail without a single new byte. pause_seconds: after the
        first failure; doubled after each further one, up to a minute.

    Raises:
        DataError: the server refuses or keeps failing, or the disk has no room. What was fetched so
        far is kept.
    """
    if not url.startswith(("http://", "https://")):
        raise DataError(
            f"{url}: not an http(s) URL; give one, or put the file at {target} yourself"
        )
    part = _Part(url, target)
    failures = 0
    farthest = part.size()
    while True:
        try:
            part.extend(unpacked_ratio)
            break
        except _Broken as error:
            failures = 1 if part.size() > farthest else failures + 1
            farthest = max(farthest, part.size())
            if failures >= attempts:
                raise DataError(
                    f"{url}: {error}, {failures} times in a row; run again later, it goes on where it stopped"
                ) from error
            time.sleep(min(pause_seconds * 2 ** (failures - 1), _LONGEST_PAUSE_SECONDS))
    publish(part.path, target)
    part.note_path.unlink(missing_ok=True)


class _Part:
    """The file that grows, and the note beside it that says what it is a part of."""

    def __init__(self, url: str, target: Path) -> None:
        self.url = url
        self.target = target
        self.path = target.with_name(f"{target.name}.part")
        self.note_path = target.with_name(f"{target.name}.part.json")

    def size(self) -> int:
        return self.path.stat().st_size if self.path.exists() else 0

    def extend(self, unpacked_ratio: float) -> None:
        """One attempt to fetch what is missing. Raises _Broken when it does not get to the end."""
        note = read_json(self.note_path) or {}
        have = self.size() if note.get("url") == self.url and note.get("validator") else 0
        if have and have == note.get("total"):
            return
        headers = {"User-Agent": "hubert-pretrain", "Accept-Encoding": "identity"}
        if have:
            headers |= {"Range": f"bytes={have}-", "If-Range": note["validator"]}
        with _answer(self.url, headers) as response:
            start, total = _place(response)
            if start not in (0, have):
                raise _Broken(f"sent bytes from {start}, {have} was asked for")
            _refuse_full_disk(self.target, start, total, unpacked_ratio)
            write_json(
                self.note_path, {"url": self.url, "validator": _validator(response), "total": total}
            )
            with byte_progress(total, self.target.name) as advance:
                self._append(response, start, advance)
        if total is not None and self.size() != total:
            raise _Broken(f"the connection ended after {self.size()} of {total} bytes")

    def _append(self, response: http.client.HTTPResponse, start: int, advance: Advance) -> None:
        fix = "make room and run again, it goes on where it stopped"
        with open(self.path, "r+b" if self.path.exists() else "wb") as file:
            file.truncate(start)
            file.seek(start)
            while block := _read(response):
                with disk_room(self.path, fix=fix):
                    file.write(block)
                advance(file.tell())


def _answer(url: str, headers: dict[str, str]) -> Any:
    """The open response. Raises _Broken for what may pass, DataError for what will not."""
    try:
        return urllib.request.urlopen(
            urllib.request.Request(url, headers=headers), timeout=_TIMEOUT_SECONDS
        )
    except urllib.error.HTTPError as error:
        if error.code == 416:  # the part is longer than the file: it is of another version
            raise _Broken("the file has changed there") from error
        if error.code in _TRY_AGAIN or error.code >= 500:
            raise _Broken(f"the server says {error.code} {error.reason}") from error
        raise DataError(
            f"{url}: the server says {error.code} {error.reason}; the file may have moved: give another place with data.mirror"
        ) from error
    except (OSError, http.client.HTTPException) as error:
        raise _Broken(
            f"no connection ({getattr(error, 'reason', error) or type(error).__name__})"
        ) from error


def _read(response: http.client.HTTPResponse) -> bytes:
    try:
        return response.read(_BLOCK)
    except (OSError, http.client.HTTPException) as error:
        raise _Broken(f"the connection broke ({error or type(error).__name__})") from error


def _place(response: http.client.HTTPResponse) -> tuple[int, int | None]:
    """First byte of what is sent, and the length of the whole file, None when the server does not
    say.
    """
    if response.status != 206:
        length = response.headers.get("Content-Length")
        return 0, int(length) if length else None
    unit, _, span = response.headers.get("Content-Range", "").partition(" ")
    first, _, rest = span.partition("-")
    length = rest.partition("/")[2]
    if unit != "bytes" or not first.isdigit():
        raise _Broken(f"the server sent Content-Range {response.headers.get('Content-Range')!r}")
    return int(first), int(length) if length.isdigit() else None


def _validator(response: http.client.HTTPResponse) -> str:
    """What a later `If-Range` compares: a strong ETag, or the date; "" when there is neither, and
    the part cannot be continued.
    """
    tag = str(response.headers.get("ETag", ""))
    return (
        tag if tag and not tag.startswith("W/") else str(response.headers.get("Last-Modified", ""))
    )


def _refuse_full_disk(target: Path, start: int, total: int | None, unpacked_ratio: float) -> None:
    if total is None:
        return
    needed = total - start + int(total * unpacked_ratio)
    free = shutil.disk_usage(target.parent).free
    if needed > free:
        raise DataError(
            f"{target.parent}: {needed / 1e9:.1f} GB are needed for {target.name} ({total / 1e9:.1f} GB, and what is unpacked from it), "
            f"{free / 1e9:.1f} GB are free; make room or choose another folder"
        )


@contextmanager
def byte_progress(total: int | None, what: str) -> Iterator[Advance]:
    """Gives a function to tell the number of bytes so far: a bar on a terminal, a line now and then
    in a log.
    """
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task(what, total=total)
            yield lambda count: bar.update(task, completed=count)
    else:
        yield _log_lines(total, what)


def _log_lines(total: int | None, what: str) -> Advance:
    next_line = time.monotonic() + LOG_EVERY_SECONDS

    def advance(count: int) -> None:
        nonlocal next_line
        if time.monotonic() >= next_line:
            next_line = time.monotonic() + LOG_EVERY_SECONDS
            whole = f" of {total / 1e6:.0f}" if total else ""
            print(f"{what}: {count / 1e6:.0f}{whole} MB", file=sys.stderr, flush=True)

    return advance
