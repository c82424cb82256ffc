"""Resumable download of one file over HTTP. The target appears only when it is complete, and is
never mixed from two versions of the file.

Corpora are tens of gigabytes, so a download must go on where it stopped, and only if the file is
still the same (If-Range). pooch 1.9 and fsspec begin again.
"""

from __future__ import annotations

import http.client
import shutil
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from hubert_pretrain.errors import DataError
from hubert_pretrain.files import disk_room, publish, read_json, write_json
from hubert_pretrain.progress import Advance, progress

_BLOCK_BYTES = 1 << 16
"""Bytes per write: a kill loses at most this much."""
_TIMEOUT_SECONDS = 60.0
_LONGEST_PAUSE_SECONDS = 60.0
_RETRY_STATUS = {408, 425, 429}
"""Client errors that a later attempt may not get, besides all of 500 and above."""


class _AttemptFailed(Exception):
    """A failure that another attempt may not have."""


def fetch_file(
    url: str,
    target: Path,
    *,
    unpacked_ratio: float = 0.0,
    attempts: int = 8,
    pause_seconds: float = 1.0,
) -> None:
    """Fetches a URL into `target`, which appears when it is complete; until then `<target>.part`
    grows, over any number of runs.

    A part is continued (`Range`, `If-Range`) only while the ETag or date of the file stays the
    same; otherwise the download starts again.

    Args:
        url: http or https.
        target: path of the file; its folder exists.
        unpacked_ratio: bytes that unpacking will add per byte of the file; the disk must have room
            for both.
        attempts: failures in a row, without a single new byte, before giving up.
        pause_seconds: pause after the first failure; doubled after each further one, up to a
            minute.

    Raises:
        DataError: the server refuses or keeps failing, or the disk has no room. The part stays.
    """
    if not url.startswith(("http://", "https://")):
        raise DataError(
            f"{url}: not an http(s) URL; give one, or put the file at {target} yourself"
        )
    part = _PartialFile(url, target)
    failures = 0
    farthest = part.size()
    while True:
        try:
            part.extend(unpacked_ratio)
            break
        except _AttemptFailed as error:
            failures = 1 if part.size() > farthest else failures + 1
            farthest = max(farthest, part.size())
            if failures >= attempts:
                raise DataError(
                    f"{url}: {error}, {failures} times in a row; "
                    "run again later, it goes on where it stopped"
                ) from error
            time.sleep(min(pause_seconds * 2 ** (failures - 1), _LONGEST_PAUSE_SECONDS))
    publish(part.path, target)
    part.note_path.unlink(missing_ok=True)


class _PartialFile:
    """The growing file, and a note beside it with the URL and version that it is a part of."""

    def __init__(self, url: str, target: Path) -> None:
        self.url = url
        self.target = target
        self.path = target.with_name(f"{target.name}.part")
        self.note_path = target.with_name(f"{target.name}.part.json")

    def size(self) -> int:
        return self.path.stat().st_size if self.path.exists() else 0

    def extend(self, unpacked_ratio: float) -> None:
        """One attempt to fetch the rest. Raises _AttemptFailed unless the file is complete."""
        note = read_json(self.note_path) or {}
        have = self.size() if note.get("url") == self.url and note.get("validator") else 0
        if have and have == note.get("total"):
            return
        headers = {"User-Agent": "hubert-pretrain", "Accept-Encoding": "identity"}
        if have:
            headers |= {"Range": f"bytes={have}-", "If-Range": note["validator"]}
        with _open(self.url, headers) as response:
            start, total = _content_range(response)
            if start not in (0, have):
                raise _AttemptFailed(f"sent bytes from {start}, expected from {have}")
            _refuse_full_disk(self.target, start, total, unpacked_ratio)
            write_json(
                self.note_path, {"url": self.url, "validator": _validator(response), "total": total}
            )
            with progress(total, self.target.name, in_bytes=True) as advance:
                self._append(response, start, advance)
        if total is not None and self.size() != total:
            raise _AttemptFailed(f"the connection ended after {self.size()} of {total} bytes")

    def _append(self, response: http.client.HTTPResponse, start: int, advance: Advance) -> None:
        fix = "make room and run again, it goes on where it stopped"
        with open(self.path, "r+b" if self.path.exists() else "wb") as file:
            file.truncate(start)
            file.seek(start)
            while block := _read(response):
                with disk_room(self.path, fix=fix):
                    file.write(block)
                advance(file.tell())


def _open(url: str, headers: dict[str, str]) -> Any:
    """The open response. Raises _AttemptFailed for temporary errors, DataError for others."""
    try:
        return urllib.request.urlopen(
            urllib.request.Request(url, headers=headers), timeout=_TIMEOUT_SECONDS
        )
    except urllib.error.HTTPError as error:
        if error.code == 416:  # the part is longer than the file: it is from another version
            raise _AttemptFailed("the file has changed there") from error
        if error.code in _RETRY_STATUS or error.code >= 500:
            raise _AttemptFailed(f"the server says {error.code} {error.reason}") from error
        raise DataError(
            f"{url}: the server says {error.code} {error.reason}; "
            "the file may have moved: give another place with data.mirror"
        ) from error
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error) or type(error).__name__
        raise _AttemptFailed(f"no connection ({reason})") from error


def _read(response: http.client.HTTPResponse) -> bytes:
    try:
        return response.read(_BLOCK_BYTES)
    except (OSError, http.client.HTTPException) as error:
        raise _AttemptFailed(f"the connection broke ({error or type(error).__name__})") from error


def _content_range(response: http.client.HTTPResponse) -> tuple[int, int | None]:
    """(first byte of the response, length of the whole file or None when the server does not
    say).
    """
    if response.status != 206:  # not a partial response
        length = response.headers.get("Content-Length")
        return 0, int(length) if length else None
    unit, _, span = response.headers.get("Content-Range", "").partition(" ")
    first, _, rest = span.partition("-")
    length = rest.partition("/")[2]
    if unit != "bytes" or not first.isdigit():
        raise _AttemptFailed(
            f"the server sent Content-Range {response.headers.get('Content-Range')!r}"
        )
    return int(first), int(length) if length.isdigit() else None


def _validator(response: http.client.HTTPResponse) -> str:
    """Value for a later `If-Range`: a strong ETag, or the date; "" without either: the part cannot
    be continued.
    """
    tag = str(response.headers.get("ETag", ""))
    if tag and not tag.startswith("W/"):
        return tag
    return str(response.headers.get("Last-Modified", ""))


def _refuse_full_disk(target: Path, start: int, total: int | None, unpacked_ratio: float) -> None:
    if total is None:
        return
    needed = total - start + int(total * unpacked_ratio)
    free = shutil.disk_usage(target.parent).free
    if needed > free:
        raise DataError(
            f"{target.parent}: {needed / 1e9:.1f} GB are needed for {target.name} "
            f"({total / 1e9:.1f} GB, and its unpacked content), "
            f"{free / 1e9:.1f} GB are free; make room or choose another folder"
        )
