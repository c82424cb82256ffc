"""Text files line by line, in and out: whatever else is wrong with a manifest, its line is
named.
"""

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
from hubert_pretrain.frames import SAMPLE_RATE

_BOM = b"\xef\xbb\xbf"
_GZIP = b"\x1f\x8b"
_OTHER_UTF = (b"\xff\xfe", b"\xfe\xff")
_LONGEST_NAME = 80


def lines(path: str | Path) -> Iterator[tuple[int, str]]:
    """(line number from 1, line without its end) of a text file in UTF-8, gzipped or not, with or
    without a byte order mark or CR.

    Lines end at LF only, so that a text may hold whatever else Unicode calls a line break. Nothing
    but the line is held in memory.

    Raises DataError when the file is missing, is not UTF-8 (naming line and byte) or is a damaged
    gzip.
    """
    path = Path(path)
    before = 0
    try:
        with _open_bytes(path) as file:
            for number, raw in enumerate(file, start=1):
                start = 3 if number == 1 and raw.startswith(_BOM) else 0
                if number == 1 and raw.startswith(_OTHER_UTF):
                    raise DataError(f"{path}: is UTF-16 text, expected UTF-8; save it as UTF-8")
                try:
                    yield number, raw[start:].decode().removesuffix("\n").removesuffix("\r")
                except UnicodeDecodeError as error:
                    place = f"line {number}, byte {before + start + error.start}"
                    raise DataError(
                        f"{path}: {place} is not UTF-8 text (0x{error.object[error.start]:02x}); save the file as UTF-8"
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


def filled_lines(path: str | Path) -> Iterator[tuple[int, str]]:
    """`lines` without those that are blank."""
    return ((number, line) for number, line in lines(path) if line.strip())


@contextlib.contextmanager
def writing(path: str | Path) -> Iterator[IO[str]]:
    """A text file to write, UTF-8 with LF, gzipped when the name ends in .gz. It stands under its
    name only when all was written.
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


def seconds_to_samples(seconds: float) -> int:
    """The nearest sample at 16 kHz."""
    return round(seconds * SAMPLE_RATE)


def rounding_of(seconds: object) -> int:
    """By how many samples at 16 kHz a stated length in seconds may be off: half its last digit, and
    25 ms in any case.

    Other decoders and counts of frames differ by as much (lhotse tolerates the same).
    """
    decimals = len(str(seconds).partition(".")[2])
    return max(SAMPLE_RATE // 40, math.ceil(0.5 * SAMPLE_RATE / 10**decimals))


def number_of(value: object, place: str, name: str) -> float:
    """A finite number that is not negative. Raises DataError naming the place, the column and what
    stands there.
    """
    try:
        number = math.nan if isinstance(value, bool) else float(str(value))
    except ValueError:
        number = math.nan
    if not (math.isfinite(number) and number >= 0):
        raise DataError(f"{place}: {name} is {value!r}, expected a number from 0 up; mend the line")
    return number


def whole_number_of(value: object, place: str, name: str) -> int:
    """A whole number that is not negative, exactly. Raises DataError naming the place, the column
    and what stands there.
    """
    text = str(value).strip()
    if text.isascii() and text.isdigit():
        return int(text)
    if isinstance(value, bool) or not re.fullmatch(r"[0-9]+(\.0+)?", text):
        raise DataError(
            f"{place}: {name} is {value!r}, expected a whole number from 0 up; mend the line"
        )
    return int(text.partition(".")[0])


def safe_name(id: str) -> str:
    """A file name for an id, whatever the id holds: no folders, no dots in front, not too long;
    different ids give different names.

    >>> safe_name("84-121123-0001")
    '84-121123-0001'
    >>> safe_name("../../etc/passwd")
    'etc_passwd-eb1a7f8d'
    """
    clean = re.sub(r"[^\w.-]+", "_", id).lstrip("._-")[:_LONGEST_NAME]
    # The bytes count, not the letters: file systems allow 255 of them.
    if clean == id != "" and len(id.encode()) <= 2 * _LONGEST_NAME:
        return id
    while len(clean.encode()) > 2 * _LONGEST_NAME:
        clean = clean[:-1]
    return f"{clean or 'id'}-{hashlib.blake2b(id.encode(), digest_size=8).hexdigest()}"
