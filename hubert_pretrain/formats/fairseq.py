"""fairseq's manifests: `train.tsv` (the root, then `relative path <tab> samples`), and line by line
beside it `train.wrd`, `train.ltr`.

What they cannot hold is lost or refused: ids (made from the paths), speakers, labels; parts of
longer recordings are refused. A path may be `shard:offset:bytes`, as in fairseq: the bytes of an
audio file inside another.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import zip_longest
from pathlib import Path
from typing import IO

from hubert_pretrain.data.audio import SUFFIXES, resampled_length
from hubert_pretrain.data.source import SourceUtterance
from hubert_pretrain.errors import DataError
from hubert_pretrain.formats.record import Header, Reading, Record, header_of, read_header
from hubert_pretrain.formats.text import filled_lines, lines, whole_number_of, writing

_LOOKED_AT = 128
"""So many rows at the beginning, and then every so many-th, are compared with the header of their
file.
"""
_SLICE = re.compile(r"(?P<path>.+):(?P<offset>[0-9]+):(?P<num_bytes>[0-9]+)")


def is_manifest(path: Path) -> bool:
    """Whether a file looks like one: a line without a tab, then a path with a number of samples, or
    one with an audio file's name alone.
    """
    found = [line for (_, line), _ in zip(filled_lines(path), range(2), strict=False)]
    if not found or "\t" in found[0] or path.suffix == ".jsonl":
        return False
    if len(found) == 1:
        return path.suffix == ".tsv" and (found[0] in (".", "/") or "/" in found[0])
    name, *samples = found[1].split("\t")
    return (
        samples[0].strip().isdigit() or path.suffix == ".tsv"
        if samples
        else name.strip().lower().endswith(SUFFIXES)
    )


def read(path: Path, reading: Reading) -> Iterator[Record]:
    """Every row, with its text from `.wrd`, or else from `.ltr`, when there is one beside.

    Rows without a number of samples are taken as they are: `prepare` measures every file anyway.

    Raises:
        DataError: no root line or no rows, a line with other fields, other line counts in the
        texts, samples counted at another
            rate (a sample of the rows is compared with the headers; `prepare` compares the lengths
            of all files).
    """
    rows = filled_lines(path)
    _, root = next(rows, (0, ""))
    if not root:
        raise DataError(
            f"{path}: is empty; expected the root folder in its first line, then 'relative path <tab> samples'"
        )
    home = Path(os.path.normpath(path.parent.absolute() / root.strip()))
    count = 0
    for (number, line), text in _with_texts(path, rows):
        count += 1
        utterance = _utterance(line, f"{path}: line {number}", text, reading, home)
        if count <= _LOOKED_AT or count % _LOOKED_AT == 0:
            _refuse_other_rate(utterance, line, f"{path}: line {number}", reading)
        yield f"{path}: line {number}", utterance
    if not count:
        raise DataError(f"{path}: has no lines below its root; add one for each utterance")


def _utterance(line: str, place: str, text: str, reading: Reading, home: Path) -> SourceUtterance:
    name, *rest = line.rstrip().split("\t")
    if not name or len(rest) > 1:
        raise DataError(
            f"{place} has {1 + len(rest)} fields, expected 'relative path <tab> samples' (no tab in a path); mend the line"
        )
    samples = whole_number_of(rest[0], place, "number of samples") if rest else None
    if samples == 0:
        raise DataError(f"{place}: has no samples; remove the line")
    shard = _SLICE.fullmatch(name)
    return SourceUtterance(
        id=reading.id_of(name),
        path=reading.locate(shard["path"] if shard else name, home),
        offset=int(shard["offset"]) if shard else -1,
        num_bytes=int(shard["num_bytes"]) if shard else -1,
        expected_samples=None if samples is None else resampled_length(samples, reading.rate),
        split=reading.split,
        text=text,
    )


def _refuse_other_rate(utterance: SourceUtterance, line: str, place: str, reading: Reading) -> None:
    """The one mistake of which every length is a sign: samples counted at the rate of the files,
    which nobody has named.
    """
    if utterance.expected_samples is None or "://" in str(utterance.path):
        return
    try:
        header = read_header(utterance)
    except DataError:
        return  # `prepare` puts it aside with the reason
    if header.rate != reading.rate and header.num_samples == int(line.rpartition("\t")[2]):
        raise DataError(
            f"{place}: counts samples at the {header.rate} Hz of the file; say so with data.corpus.rate={header.rate}"
        )


def _with_texts(
    path: Path, rows: Iterator[tuple[int, str]]
) -> Iterator[tuple[tuple[int, str], str]]:
    """Each row with its text; "" for all when there is no file of texts."""
    source = next(
        (
            path.with_suffix(suffix)
            for suffix in (".wrd", ".ltr")
            if path.with_suffix(suffix).is_file()
        ),
        None,
    )
    if source is None:
        yield from ((row, "") for row in rows)
        return
    understand = words_of_letters if source.suffix == ".ltr" else _words
    count = 0
    for row, text in zip_longest(rows, lines(source)):
        if text is None or (row is None and text[1].strip()):
            more, fewer = (path, source) if text is None else (source, path)
            raise DataError(
                f"{fewer}: ends after {count} utterances, {more} goes on; they are joined by line, make both anew"
            )
        if row is None:
            continue  # blank lines at the end
        count += 1
        yield row, understand(text[1])


def _words(line: str) -> str:
    return " ".join(line.split())


def words_of_letters(line: str) -> str:
    """`"H I | Y O U |"` -> `"HI YOU"`."""
    return " ".join("".join(line.split()).replace("|", " ").split())


def letters_of_words(text: str) -> str:
    """`"HI YOU"` -> `"H I | Y O U |"`, as fairseq's libri_labels.py writes it."""
    return " ".join("|".join(text.split())) + " |" if text.strip() else ""


def count_symbols(paths: Iterable[Path]) -> Counter[str]:
    """How often each symbol stands in files of letters or targets: what a dict.ltr.txt or
    dict.km.txt lists.
    """
    counts: Counter[str] = Counter()
    for path in paths:
        for _, line in lines(path):
            counts.update(line.split())
    return counts


def write(target: Path, utterances: Callable[[], Iterator[SourceUtterance]]) -> None:
    """Writes `<split>.tsv`, and `<split>.wrd` and `<split>.ltr` where a split has texts, into a
    folder.

    Lengths are counted at the files' own rate, as fairseq does.

    Raises DataError for what fairseq cannot hold: parts of longer recordings, several rates, URLs,
    tabs in paths, "|" in texts.
    """
    root = _common_root(utterances())
    rates = dict[int, str]()
    with contextlib.ExitStack() as stack:
        files: dict[str, list[IO[str]]] = {}
        for utterance in utterances():
            if utterance.split not in files:
                names = [
                    target / f"{utterance.split}{suffix}" for suffix in (".tsv", ".wrd", ".ltr")
                ]
                files[utterance.split] = [stack.enter_context(writing(name)) for name in names]
                files[utterance.split][0].write(f"{root}\n")
            header = header_of(utterance)
            rates.setdefault(header.rate, utterance.id)
            if len(rates) > 1:
                (one, first), (other, second) = rates.items()
                raise DataError(
                    f"{first!r} has {one} Hz, {second!r} {other}; fairseq wants one rate for all: resample the audio"
                )
            for file, line in zip(
                files[utterance.split], _lines_of(utterance, header, root), strict=True
            ):
                file.write(f"{line}\n")
    for split in files:
        if not any(line.strip() for _, line in lines(target / f"{split}.wrd")):
            for suffix in (".wrd", ".ltr"):
                (target / f"{split}{suffix}").unlink()


def _common_root(utterances: Iterator[SourceUtterance]) -> str:
    root: str | None = None
    for utterance in utterances:
        folder = os.path.dirname(_local(utterance))
        root = (
            folder
            if root is None
            else root
            if f"{folder}/".startswith(f"{root}/")
            else os.path.commonpath([root, folder])
        )
    if root is None:
        raise DataError("there are no utterances to write")
    return root


def _lines_of(utterance: SourceUtterance, header: Header, root: str) -> tuple[str, str, str]:
    path = os.path.relpath(_local(utterance), root)
    if re.search(r"[\t\n\r]", path) or path != path.strip():
        raise DataError(
            f"{path!r}: a tsv of fairseq cannot hold a path with tabs, line breaks or blanks around it; rename the file"
        )
    if "|" in utterance.text:
        raise DataError(
            f"utterance {utterance.id!r}: its text holds '|', which separates words in .ltr; take it out of the text"
        )
    if not header.is_whole(utterance):
        raise DataError(
            f"utterance {utterance.id!r} is a part of {utterance.path}, and fairseq knows whole files only; "
            "write --to huggingface first, which cuts the audio, and convert that"
        )
    name = path if utterance.offset < 0 else f"{path}:{utterance.offset}:{utterance.num_bytes}"
    return f"{name}\t{header.num_samples}", _words(utterance.text), letters_of_words(utterance.text)


def _local(utterance: SourceUtterance) -> str:
    if "://" in str(utterance.path):
        raise DataError(
            f"{utterance.path}: is a URL, which a tsv of fairseq cannot hold; copy the audio to a disk"
        )
    return str(utterance.path)
