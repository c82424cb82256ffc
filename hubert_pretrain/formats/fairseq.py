"""fairseq manifests: `train.tsv` (root folder, then `relative path <tab> samples`) and, with equal
line numbers, `train.wrd` and `train.ltr`.

A path may be `shard:offset:bytes`, as in fairseq: an audio file inside another file. The format has
no ids (they are made from paths), speakers or labels; segments of longer recordings are refused.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import islice, zip_longest
from pathlib import Path
from typing import IO

from hubert_pretrain.data.audio import resampled_length
from hubert_pretrain.data.source import SourceUtterance
from hubert_pretrain.errors import DataError
from hubert_pretrain.formats.path_list import is_audio_path
from hubert_pretrain.formats.record import Header, ReadOptions, Record, header_of, read_header
from hubert_pretrain.formats.text import lines, nonblank_lines, parse_whole_number, writing

_RATE_CHECKS = 128
"""This many rows at the beginning, and every row at a multiple of it, are compared with the header
of their file.
"""
_SLICE = re.compile(r"(?P<path>.+):(?P<offset>[0-9]+):(?P<num_bytes>[0-9]+)")

_Line = tuple[int, str]
"""(line number, text)."""


# -- reading


def is_manifest(path: Path) -> bool:
    """True for a file that looks like a fairseq manifest: a line without tabs, then a path with a
    number of samples, or the name of an audio file alone.
    """
    found = [line for _, line in islice(nonblank_lines(path), 2)]
    if not found or "\t" in found[0] or path.suffix == ".jsonl":
        return False
    if len(found) == 1:
        return path.suffix == ".tsv" and (found[0] in (".", "/") or "/" in found[0])
    _, *samples = found[1].split("\t")
    if samples:
        return samples[0].strip().isdigit() or path.suffix == ".tsv"
    return is_audio_path(found[1])


def read(path: Path, options: ReadOptions) -> Iterator[Record]:
    """Every row, with its text from `.wrd` (else `.ltr`) if there is one. Rows may lack the number
    of samples.

    Raises:
        DataError: no root line, no rows, a line with other fields, texts with another number of
            lines, or samples counted at another rate. The rate is compared with the headers of some
            files; `prepare` compares the lengths of all.
    """
    rows = nonblank_lines(path)
    _, root = next(rows, (0, ""))
    if not root:
        raise DataError(
            f"{path}: is empty; expected the root folder in its first line, "
            "then 'relative path <tab> samples'"
        )
    if is_audio_path(root):
        raise DataError(
            f"{path}: begins with the audio file {root.strip()!r}, expected the root folder in its "
            "first line; add it, or read a list of paths with data.corpus.format=list"
        )
    home = Path(os.path.normpath(path.parent.absolute() / root.strip()))
    count = 0
    for (number, line), text in _with_texts(path, rows):
        count += 1
        place = f"{path}: line {number}"
        utterance = _utterance(line, place, text, options, home)
        if count <= _RATE_CHECKS or count % _RATE_CHECKS == 0:
            _refuse_other_rate(utterance, line, place, options)
        yield place, utterance
    if not count:
        raise DataError(f"{path}: has no lines below its root; add one for each utterance")


def _utterance(
    line: str, place: str, text: str, options: ReadOptions, home: Path
) -> SourceUtterance:
    name, *rest = line.rstrip().split("\t")
    if not name or len(rest) > 1:
        raise DataError(
            f"{place} has {1 + len(rest)} fields, expected 'relative path <tab> samples' "
            "(no tab in a path); fix the line"
        )
    num_samples = parse_whole_number(rest[0], place, "number of samples") if rest else None
    if num_samples == 0:
        raise DataError(f"{place}: has no samples; remove the line")
    expected = None if num_samples is None else resampled_length(num_samples, options.rate)
    shard = _SLICE.fullmatch(name)
    return SourceUtterance(
        id=options.id_of(name),
        path=options.locate(shard["path"] if shard else name, home),
        offset=int(shard["offset"]) if shard else -1,
        num_bytes=int(shard["num_bytes"]) if shard else -1,
        expected_samples=expected,
        split=options.split,
        text=text,
    )


def _refuse_other_rate(
    utterance: SourceUtterance, line: str, place: str, options: ReadOptions
) -> None:
    """Raises DataError when the manifest counts samples at the rate of the file and
    data.corpus.rate does not say so. Without this, every length would look wrong.
    """
    if utterance.expected_samples is None or "://" in str(utterance.path):
        return
    try:
        header = read_header(utterance)
    except DataError:
        return  # `prepare` excludes the file and records the reason
    if header.rate != options.rate and header.num_samples == int(line.rpartition("\t")[2]):
        raise DataError(
            f"{place}: counts samples at the {header.rate} Hz of the file; "
            f"say so with data.corpus.rate={header.rate}"
        )


def _with_texts(path: Path, rows: Iterator[_Line]) -> Iterator[tuple[_Line, str]]:
    """Each row with its text; "" for all without a file of texts."""
    candidates = (path.with_suffix(suffix) for suffix in (".wrd", ".ltr"))
    source = next((candidate for candidate in candidates if candidate.is_file()), None)
    if source is None:
        yield from ((row, "") for row in rows)
        return
    to_text = letters_to_words if source.suffix == ".ltr" else _single_spaced
    count = 0
    for row, text in zip_longest(rows, lines(source)):
        if text is None or (row is None and text[1].strip()):
            shorter, longer = (source, path) if text is None else (path, source)
            raise DataError(
                f"{shorter}: ends after {count} utterances, {longer} goes on; "
                "they are joined by line, make both again"
            )
        if row is None:
            continue  # blank lines at the end of the texts
        count += 1
        yield row, to_text(text[1])


# -- writing


def write(target: Path, utterances: Callable[[], Iterator[SourceUtterance]]) -> None:
    """Writes `<split>.tsv` into a folder, with `<split>.wrd` and `<split>.ltr` for splits with
    texts. Lengths are in samples at the files' own rate, as in fairseq.

    Raises DataError for content that fairseq has no place for: segments of longer recordings,
    several rates, URLs, tabs in paths, "|" in texts.
    """
    root = _common_root(utterances())
    rates = dict[int, str]()  # rate -> the first utterance with it
    with contextlib.ExitStack() as stack:
        files: dict[str, list[IO[str]]] = {}
        for utterance in utterances():
            split = utterance.split
            if split not in files:
                names = [target / f"{split}{suffix}" for suffix in (".tsv", ".wrd", ".ltr")]
                files[split] = [stack.enter_context(writing(name)) for name in names]
                files[split][0].write(f"{root}\n")
            header = header_of(utterance)
            rates.setdefault(header.rate, utterance.id)
            if len(rates) > 1:
                (rate, first), (other_rate, second) = rates.items()
                raise DataError(
                    f"{first!r} has {rate} Hz, {second!r} {other_rate}; "
                    "fairseq wants one rate for all: resample the audio"
                )
            for file, line in zip(files[split], _lines_of(utterance, header, root), strict=True):
                file.write(f"{line}\n")
    for split in files:
        if not any(line.strip() for _, line in lines(target / f"{split}.wrd")):
            for suffix in (".wrd", ".ltr"):
                (target / f"{split}{suffix}").unlink()


def _common_root(utterances: Iterator[SourceUtterance]) -> str:
    """The deepest folder above all audio files."""
    root: str | None = None
    for utterance in utterances:
        folder = os.path.dirname(_local_path(utterance))
        if root is None:
            root = folder
        elif not f"{folder}/".startswith(f"{root}/"):
            root = os.path.commonpath([root, folder])
    if root is None:
        raise DataError("there are no utterances to write; choose other splits or another manifest")
    return root


def _lines_of(utterance: SourceUtterance, header: Header, root: str) -> tuple[str, str, str]:
    """The lines of an utterance in .tsv, .wrd and .ltr."""
    path = os.path.relpath(_local_path(utterance), root)
    if re.search(r"[\t\n\r]", path) or path != path.strip():
        raise DataError(
            f"{path!r}: a tsv of fairseq cannot hold a path with tabs, line breaks or blanks "
            "around it; rename the file"
        )
    if "|" in utterance.text:
        raise DataError(
            f"utterance {utterance.id!r}: its text holds '|', which separates words in .ltr; "
            "take it out of the text"
        )
    if not header.is_whole(utterance):
        raise DataError(
            f"utterance {utterance.id!r} is a part of {utterance.path}, and fairseq knows whole "
            "files only; write --to huggingface first, which cuts the audio, and convert that"
        )
    if utterance.offset >= 0:
        path = f"{path}:{utterance.offset}:{utterance.num_bytes}"
    return (
        f"{path}\t{header.num_samples}",
        _single_spaced(utterance.text),
        words_to_letters(utterance.text),
    )


def _local_path(utterance: SourceUtterance) -> str:
    if "://" in str(utterance.path):
        raise DataError(
            f"{utterance.path}: is a URL, which a tsv of fairseq cannot hold; "
            "copy the audio to a disk"
        )
    return str(utterance.path)


# -- texts


def letters_to_words(line: str) -> str:
    """`"H I | Y O U |"` -> `"HI YOU"`."""
    return " ".join("".join(line.split()).replace("|", " ").split())


def words_to_letters(text: str) -> str:
    """`"HI YOU"` -> `"H I | Y O U |"`, as fairseq's libri_labels.py writes it."""
    return " ".join("|".join(text.split())) + " |" if text.strip() else ""


def _single_spaced(line: str) -> str:
    return " ".join(line.split())


def count_symbols(paths: Iterable[Path]) -> Counter[str]:
    """Occurrences of each symbol in .ltr or .km files, for dict.ltr.txt or dict.km.txt."""
    counts: Counter[str] = Counter()
    for path in paths:
        for _, line in lines(path):
            counts.update(line.split())
    return counts
