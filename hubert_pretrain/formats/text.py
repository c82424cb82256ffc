"""Text files line by line, numbers and names in them. Every error names the file and the line."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO, cast

from hubert_pretrain.errors import DataError
from hubert_pretrain.files import replacing
from hubert_pretrain.frames import SAMPLE_RATE, samples

_BOM = b"\xef\xbb\xbf"
_GZIP = b"\x1f\x8b"
_UTF16_BOMS = (b"\xff\xfe", b"\xfe\xff")
_LONGEST_NAME = 80
"""Letters of a file name made from an id."""
DECODER_TOLERANCE = samples(0.025)
"""Samples by which the length of a file may differ from a stated one: decoders and frame counts
differ (lhotse has the same tolerance).
"""


def lines(path: str | Path) -> Iterator[tuple[int, str]]:
    """(line number from 1, line without its end) of a UTF-8 text file, gzipped or not, with or
    without byte order mark and CR. Memory holds one line at a time.

    Lines end at LF only, because transcripts may contain the other line breaks of Unicode.

    Raises DataError for a missing file, text that is not UTF-8 (naming line and byte) and a
    damaged gzip.
    """
    path = Path(path)
    before = 0
    try:
        with _open_bytes(path) as file:
            for number, raw in enumerate(file, start=1):
                start = 3 if number == 1 and raw.startswith(_BOM) else 0
                if number == 1 and raw.startswith(_UTF16_BOMS):
                    raise DataError(f"{path}: is UTF-16 text, expected UTF-8; save it as UTF-8")
                try:
                    yield number, raw[start:].decode().removesuffix("\n").removesuffix("\r")
                except UnicodeDecodeError as error:
                    place = f"line {number}, byte {before + start + error.start}"
                    found = f"0x{error.object[error.start]:02x}"
                    raise DataError(
                        f"{path}: {place} is not UTF-8 text ({found}); save the file as UTF-8"
                    ) from error
                before += len(raw)
    except (EOFError, gzip.BadGzipFile) as error:
        raise DataError(
            f"{path}: damaged gzip after {before} bytes of text ({error}); copy the file again"
        ) from error
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror or error}); name a text file"
        ) from error


def _open_bytes(path: Path) -> IO[bytes]:
    file = open(path, "rb")  # noqa: SIM115 (closed by the caller)
    magic = file.read(2)
    file.seek(0)
    return cast("IO[bytes]", gzip.GzipFile(fileobj=file)) if magic == _GZIP else file


def nonblank_lines(path: str | Path) -> Iterator[tuple[int, str]]:
    """`lines`, without blank ones."""
    return ((number, line) for number, line in lines(path) if line.strip())


@contextlib.contextmanager
def writing(path: str | Path) -> Iterator[IO[str]]:
    """A text file to write, UTF-8 with LF, gzipped when the name ends in .gz. The file gets its
    name only after everything was written.
    """
    path = Path(path).absolute()
    with replacing(path) as temporary, open(temporary, "wb") as raw:
        # No name and no time in the gzip, so that equal content gives equal files.
        packed = (
            gzip.GzipFile(filename="", fileobj=raw, mode="wb", mtime=0)
            if path.suffix == ".gz"
            else None
        )
        file = io.TextIOWrapper(packed or raw, encoding="utf-8", newline="", write_through=True)
        yield file
        file.flush()
        file.detach()
        if packed is not None:
            packed.close()


def length_tolerance(seconds: object) -> int:
    """Samples by which a length stated in seconds may differ from the audio: half of its last
    digit, at least 25 ms.

    >>> length_tolerance("12.34"), length_tolerance("12.3"), length_tolerance("12")
    (400, 800, 8000)
    """
    decimals = len(str(seconds).partition(".")[2])
    half_a_digit = math.ceil(0.5 * SAMPLE_RATE / 10**decimals)
    return max(DECODER_TOLERANCE, half_a_digit)


def parse_number(value: object, place: str, name: str) -> float:
    """A finite number from 0 up. Raises DataError with the place, the column `name` and the value
    found.
    """
    try:
        number = math.nan if isinstance(value, bool) else float(str(value))
    except ValueError:
        number = math.nan
    if not (math.isfinite(number) and number >= 0):
        raise DataError(f"{place}: {name} is {value!r}, expected a number from 0 up; fix the line")
    return number


def parse_whole_number(value: object, place: str, name: str) -> int:
    """A whole number from 0 up; "3.0" is one. Raises DataError with the place, the column `name`
    and the value found.
    """
    text = str(value).strip()
    if text.isascii() and text.isdigit():
        return int(text)
    if isinstance(value, bool) or not re.fullmatch(r"[0-9]+(\.0+)?", text):
        raise DataError(
            f"{place}: {name} is {value!r}, expected a whole number from 0 up; fix the line"
        )
    return int(text.partition(".")[0])


def safe_name(id: str) -> str:
    """A file name for any id: no folders, no leading dots, not too long. Different ids give
    different names.

    >>> safe_name("84-121123-0001")
    '84-121123-0001'
    >>> safe_name("../../etc/passwd")
    'etc_passwd-eb1a7f8d'
    """
    clean = re.sub(r"[^\w.-]+", "_", id).lstrip("._-")[:_LONGEST_NAME]
    # File systems allow 255 bytes, and a letter may take several.
    if clean == id != "" and len(id.encode()) <= 2 * _LONGEST_NAME:
        return id
    while len(clean.encode()) > 2 * _LONGEST_NAME:
        clean = clean[:-1]
    return f"{clean or 'id'}-{hashlib.blake2b(id.encode(), digest_size=8).hexdigest()}"
