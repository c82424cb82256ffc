"""Phone alignments in any supported format, looked up by utterance id."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path

from hubert_pretrain.data.alignment import Phones
from hubert_pretrain.data.audio_files import files_below
from hubert_pretrain.errors import ConfigError, DataError, did_you_mean
from hubert_pretrain.formats import ctm, textgrid
from hubert_pretrain.formats.intervals import Interval, phones_of, read_phn

FORMATS = {
    "textgrid": (".textgrid",),
    "ctm": (".ctm",),
    "timit": (".phn", ".wrd"),
    "librispeech": (".alignment.txt",),
}
"""Format -> suffixes of its files, in lower case."""
_LISTS = ("ctm", "librispeech")
"""Formats with many utterances in a file."""

_Span = tuple[int, int, int]
"""Position of an alignment: number of the file, first byte, number of bytes."""


@dataclass(frozen=True)
class AlignmentOptions:
    """Location and reading options of alignments (`data.alignments`)."""

    path: str
    """A file, or a folder with files at any depth."""
    format: str = "auto"
    """textgrid (Praat, MFA), ctm (words or phones, also Kaldi's), timit (.phn, .wrd), librispeech
    (.alignment.txt) or auto.
    """
    tier: str = "auto"
    """phones, words, or the name of a TextGrid tier; auto: phones if there are any, else words."""
    silence: str = "gap"
    """Result for labels such as sil, sp, spn, <eps>: gap (no phone), keep (their label), or one
    label for all.
    """
    symbols: str | None = None
    """Kaldi's phones.txt for a ctm with numbers; None: the one beside the ctm, if any."""

    def __post_init__(self) -> None:
        if self.format != "auto" and self.format not in FORMATS:
            raise ConfigError(
                f"data.alignments.format={self.format!r}: expected auto or one of "
                f"{', '.join(FORMATS)}{did_you_mean(self.format, list(FORMATS))}"
            )

    @classmethod
    def of(cls, value: str | Mapping[str, str]) -> AlignmentOptions:
        """Options from a path, or from a mapping with `path` and any other field. Raises
        ConfigError for other keys.
        """
        if isinstance(value, str):
            return cls(value)
        names = [field.name for field in fields(cls)]
        wrong = [name for name in value if name not in names]
        if "path" not in value:
            wrong.append("path")
        if wrong:
            raise ConfigError(
                f"data.alignments: expected a path, or path and any of {', '.join(names[1:])}, "
                f"found {wrong[0]!r} wrong or missing"
            )
        return cls(**value)


class AlignmentFiles:
    """Alignments by utterance id. Memory holds their positions in the files, not their content."""

    def __init__(self, options: AlignmentOptions) -> None:
        """Finds the files, and reads lists once to index them.

        Raises DataError: no alignments at the path, several formats, or two alignments of one
        utterance.
        """
        self.path = Path(options.path).expanduser().absolute()
        self.options = options
        self.format, self._files = _find(self.path, options.format, options.tier)
        self._spans: dict[str, _Span] = {}
        self._by_name: dict[str, list[str]] = defaultdict(list)
        for key, span in self._index():
            if key in self._spans:
                first = self._files[self._spans[key][0]]
                second = self._files[span[0]]
                raise DataError(f"{second}: aligns {key!r}, as {first} does; remove one")
            self._spans[key] = span
            self._by_name[key.rpartition("/")[2]].append(key)

    def __len__(self) -> int:
        return len(self._spans)

    def example(self) -> str:
        """One of the aligned names."""
        return next(iter(self._spans), "")

    def key_of(self, id: str) -> str | None:
        """Name of an utterance in the alignments, or None. Names match when they are equal, or when
        one is the end of the other in whole path parts.

        Raises DataError when several match.
        """
        if id in self._spans:
            return id
        name = id.rpartition("/")[2]
        found = [
            key
            for key in self._by_name.get(name, ())
            if f"/{key}".endswith(f"/{id}") or f"/{id}".endswith(f"/{key}")
        ]
        if len(found) > 1:
            raise DataError(
                f"{self.path}: {id!r} may be {found[0]!r} or {found[1]!r}; "
                "name the utterances or the alignments in full"
            )
        return found[0] if found else None

    def find(self, id: str) -> Phones | None:
        """The alignment of an utterance, or None. Raises DataError when it is malformed."""
        key = self.key_of(id)
        if key is None:
            return None
        place, intervals = self._read(key)
        return phones_of(intervals, self.options.silence, place)

    def _index(self) -> Iterator[tuple[str, _Span]]:
        for number, path in enumerate(self._files):
            if self.format in _LISTS:
                for key, start, length in ctm.spans(path):
                    yield key, (number, start, length)
            else:
                name = path.relative_to(self.path).as_posix() if path != self.path else path.name
                yield os.path.splitext(name)[0], (number, 0, -1)

    def _read(self, key: str) -> tuple[str, list[Interval]]:
        """(place for messages, intervals) of an aligned name."""
        number, start, length = self._spans[key]
        path = self._files[number]
        if self.format == "textgrid":
            return str(path), textgrid.read(path, self.options.tier)
        if self.format == "timit":
            return str(path), read_phn(path)
        lines = ctm.read_span(path, start, length)
        place = f"{path}: utterance {key!r}"
        if self.format == "librispeech":
            return place, ctm.quoted_intervals(lines, place)
        names = self._symbols(path)
        return place, ctm.ctm_intervals(lines, place, lambda label: names.get(label, label))

    def _symbols(self, path: Path) -> dict[str, str]:
        """Number -> phone for a ctm file."""
        if self.options.symbols:
            return ctm.read_symbols(Path(self.options.symbols).expanduser())
        beside = path.parent / "phones.txt"
        return ctm.read_symbols(beside) if beside.is_file() else {}


def _find(path: Path, format: str, tier: str) -> tuple[str, list[Path]]:
    """The format, and its files in order."""
    if not path.exists():
        raise DataError(f"{path}: no such file or folder; name the alignments with data.alignments")
    if path.is_file() and format != "auto":
        return format, [path]
    found = _files_by_format(path)
    if format == "auto" and len(found) > 1:
        raise DataError(
            f"{path}: has alignments of {' and '.join(sorted(found))}; "
            "choose one with data.alignments.format"
        )
    if format == "auto":
        format = next(iter(found), "")
    if not found.get(format):
        suffixes = FORMATS.get(format) or [each for some in FORMATS.values() for each in some]
        expected = ", ".join(f"*{suffix}" for suffix in suffixes)
        raise DataError(
            f"{path}: no alignments there; expected files {expected} (in any case), "
            "fix data.alignments"
        )
    return format, _of_tier(found[format], tier) if format == "timit" else found[format]


def _files_by_format(path: Path) -> dict[str, list[Path]]:
    """Format -> its files at or below a path, in order."""
    files = [path] if path.is_file() else list(files_below(path))
    found: dict[str, list[Path]] = defaultdict(list)
    for file in files:
        for name, suffixes in FORMATS.items():
            if file.name.lower().endswith(suffixes) and not file.name.startswith("."):
                found[name].append(file)
    return found


def _of_tier(files: list[Path], tier: str) -> list[Path]:
    """TIMIT's files of phones, or of words."""
    suffixes = {"phones": (".phn",), "words": (".wrd",)}.get(tier, (".phn", ".wrd"))
    for suffix in suffixes:
        chosen = [path for path in files if path.suffix.lower() == suffix]
        if chosen:
            return chosen
    return []
