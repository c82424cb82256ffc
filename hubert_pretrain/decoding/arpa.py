"""ARPA files of n-gram models (SRILM, KenLM), also gzipped."""

from __future__ import annotations

import gzip
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from hubert_pretrain.decoding.ngram import Entry, Ngram, NgramModel, model_of
from hubert_pretrain.errors import DataError
from hubert_pretrain.files import replacing

_GZIP = b"\x1f\x8b"
_FIX = "name an ARPA file, as estimate, KenLM and SRILM write them"


def read_arpa(path: str | Path) -> NgramModel:
    """The model of an ARPA file; probabilities above 1 and n-grams of unknown orders are refused.

    Raises DataError for a file that is missing, incomplete or of another form.
    """
    return model_of(read_entries(Path(path)), str(path))


def read_entries(path: Path) -> list[dict[Ngram, Entry]]:
    """The n-grams of each order of an ARPA file. Raises DataError as `read_arpa`."""
    lines = _lines(path)
    counts = _header(path, lines)
    entries: list[dict[Ngram, Entry]] = [{} for _ in counts]
    order = 1
    for number, line in lines:
        if line == "\\end\\":
            break
        if match := re.fullmatch(r"\\(\d+)-grams:", line):
            order = int(match[1])
            if not 1 <= order <= len(counts):
                raise DataError(f"{path}: line {number} is {line!r} beyond \\data\\; {_FIX}")
            continue
        ngram, entry = _entry(path, number, line, order)
        entries[order - 1][ngram] = entry
    else:
        raise DataError(f"{path}: ends without \\end\\; the file is incomplete, copy it again")
    for order, (count, found) in enumerate(zip(counts, entries, strict=True), start=1):
        if count != len(found):
            raise DataError(
                f"{path}: has {len(found)} different {order}-grams, its header says {count}; "
                "the file is damaged, copy it again"
            )
    return entries


def write_arpa(path: Path, entries: Sequence[Mapping[Ngram, Entry]]) -> None:
    """Write n-grams of each order from 1, sorted; gzipped when the name ends in .gz."""
    with replacing(path) as temporary, open(temporary, "wb") as raw:
        # No time and no name in the header of gzip: equal models are equal files.
        packed = gzip.GzipFile("", "wb", fileobj=raw, mtime=0) if path.suffix == ".gz" else raw
        with io.TextIOWrapper(packed, encoding="utf-8", newline="\n") as file:
            file.write("\\data\\\n")
            file.writelines(
                f"ngram {order}={len(each)}\n" for order, each in enumerate(entries, start=1)
            )
            for order, of_order in enumerate(entries, start=1):
                file.write(f"\n\\{order}-grams:\n")
                for ngram in sorted(of_order):
                    probability, backoff = of_order[ngram]
                    end = f"\t{backoff:.7g}" if order < len(entries) and backoff else ""
                    file.write(f"{probability:.7g}\t{' '.join(ngram)}{end}\n")
            file.write("\n\\end\\\n")


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines that are not blank, with their numbers."""
    if not path.is_file():
        raise DataError(f"{path}: no such file; {_FIX}")
    with open(path, "rb") as raw:
        packed = raw.read(2) == _GZIP
        raw.seek(0)
        try:
            with io.TextIOWrapper(gzip.open(raw) if packed else raw, encoding="utf-8") as file:
                for number, line in enumerate(file, start=1):
                    if text := line.strip(" \t\r\n"):
                        yield number, text
        except (UnicodeDecodeError, EOFError, gzip.BadGzipFile) as error:
            raise DataError(f"{path}: not readable as text ({error}); {_FIX}") from error


def _header(path: Path, lines: Iterator[tuple[int, str]]) -> list[int]:
    """The number of n-grams of each order; reads up to the line \\1-grams:."""
    counts: list[int] = []
    started = False
    for number, line in lines:
        if line == "\\data\\":
            started = True
        elif started and (match := re.fullmatch(r"ngram\s+(\d+)\s*=\s*(\d+)", line)):
            if int(match[1]) != len(counts) + 1:
                raise DataError(f"{path}: line {number} is {line!r} out of order; {_FIX}")
            counts.append(int(match[2]))
        elif counts and line == "\\1-grams:":
            return counts
        elif started:
            raise DataError(f"{path}: line {number} is {line[:40]!r} in the header; {_FIX}")
    raise DataError(f"{path}: has no \\data\\ with n-grams; {_FIX}")


def _entry(path: Path, number: int, line: str, order: int) -> tuple[Ngram, Entry]:
    fields = line.split()
    try:
        if len(fields) not in (order + 1, order + 2):
            raise ValueError
        probability = float(fields[0])
        backoff = float(fields[-1]) if len(fields) == order + 2 else 0.0
    except ValueError:
        raise DataError(
            f"{path}: line {number} is {line[:40]!r}, expected log10 of a probability, {order} "
            f"words and at most a back-off weight; {_FIX}"
        ) from None
    if not probability <= 0.0:
        raise DataError(
            f"{path}: line {number} has {fields[0]} as log10 of a probability, expected 0 or less; "
            f"{_FIX}"
        )
    return tuple(fields[1 : order + 1]), (probability, backoff)
