"""Alignments of a corpus, in whatever format, found by the ids of its utterances."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from hubert_pretrain.data.alignment import Phones
from hubert_pretrain.errors import ConfigError, DataError, did_you_mean
from hubert_pretrain.formats import ctm, textgrid
from hubert_pretrain.formats import intervals as timit
from hubert_pretrain.formats.intervals import Interval, phones_of

FORMATS = {
    "textgrid": (".textgrid",),
    "ctm": (".ctm",),
    "timit": (".phn", ".wrd"),
    "librispeech": (".alignment.txt",),
}
"""Format -> what names of its files end in, in lower case."""
_LISTS = ("ctm", "librispeech")

_Span = tuple[int, int, int]
"""(number of the file, first byte, number of bytes): where an alignment stands."""


class AlignmentFiles:
    """Finds the alignment of an utterance. Holds where each stands, not what it says."""

    def __init__(
        self,
        path: str | Path,
        *,
        format: str = "auto",
        tier: str = "auto",
        silence: str = "gap",
        symbols: str | None = None,
    ) -> None:
        """Looks what is there; reads lists once.

        Args:
            path: a folder with files below it, or a file. format: textgrid (Praat, MFA), ctm (words
            or phones, of Kaldi too), timit (.phn, .wrd), librispeech (.alignment.txt) or auto.
            tier: phones, words, or the name of a TextGrid's tier; auto: phones where there are any,
            else words. silence: what sil, sp, spn, <eps> and the like become: gap (nothing is said
            there), keep (their label), or one label for all. symbols: Kaldi's phones.txt, for a ctm
            of numbers; None: the one beside the ctm, if any.

        Raises:
            ConfigError: no such format.
            DataError: no alignments there, of two formats, or two of one utterance.
        """
        if format != "auto" and format not in FORMATS:
            raise ConfigError(
                f"data.alignments.format={format!r}: expected auto or one of {', '.join(FORMATS)}{did_you_mean(format, list(FORMATS))}"
            )
        self.path = Path(path).expanduser().absolute()
        self.tier = tier
        self.silence = silence
        self._symbols = Path(symbols).expanduser() if symbols else None
        self.format, self._files = _find(self.path, format, tier)
        self._spans: dict[str, _Span] = {}
        self._by_name: dict[str, list[str]] = defaultdict(list)
        for key, span in self._index():
            if key in self._spans:
                one = self._files[self._spans[key][0]]
                other = self._files[span[0]]
                raise DataError(f"{other}: aligns {key!r}, as {one} does; remove one")
            self._spans[key] = span
            self._by_name[key.rpartition("/")[2]].append(key)

    def __len__(self) -> int:
        return len(self._spans)

    def example(self) -> str:
        """One of the names that are aligned."""
        return next(iter(self._spans), "")

    def key_of(self, id: str) -> str | None:
        """The name under which an utterance is aligned: its id, or one of which the other is the
        end, in whole parts between slashes.

        Raises DataError when several are.
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
                f"{self.path}: {id!r} may be {found[0]!r} or {found[1]!r}; name the utterances or the alignments in full"
            )
        return found[0] if found else None

    def find(self, id: str) -> Phones | None:
        """The alignment of an utterance, or None. Raises DataError when what stands there is
        none.
        """
        key = self.key_of(id)
        if key is None:
            return None
        place, intervals = self._read(key)
        return phones_of(intervals, self.silence, place)

    def _index(self) -> Iterator[tuple[str, _Span]]:
        for number, path in enumerate(self._files):
            if self.format in _LISTS:
                yield from (
                    (key, (number, start, length)) for key, start, length in ctm.spans(path)
                )
            else:
                name = path.relative_to(self.path).as_posix() if path != self.path else path.name
                yield os.path.splitext(name)[0], (number, 0, -1)

    def _read(self, key: str) -> tuple[str, list[Interval]]:
        number, start, length = self._spans[key]
        path = self._files[number]
        if self.format == "textgrid":
            return str(path), textgrid.read(path, self.tier)
        if self.format == "timit":
            return str(path), timit.read_phn(path)
        lines = ctm.read_span(path, start, length)
        place = f"{path}: utterance {key!r}"
        if self.format == "librispeech":
            return place, ctm.quoted_intervals(lines, place)
        symbols = self._symbols or path.parent / "phones.txt"
        names = ctm.read_symbols(symbols) if self._symbols or symbols.is_file() else {}
        return place, ctm.ctm_intervals(lines, place, lambda label: names.get(label, label))


def _find(path: Path, format: str, tier: str) -> tuple[str, list[Path]]:
    """The format, and the files of it, ordered."""
    if not path.exists():
        raise DataError(f"{path}: no such file or folder; name the alignments with data.alignments")
    files = (
        [path]
        if path.is_file()
        else sorted(Path(folder, name) for folder, _, names in os.walk(path) for name in names)
    )
    found: dict[str, list[Path]] = defaultdict(list)
    for each in files:
        for name, suffixes in FORMATS.items():
            if each.name.lower().endswith(suffixes) and not each.name.startswith("."):
                found[name].append(each)
    if path.is_file() and format != "auto":
        return format, [path]
    if format == "auto" and len(found) > 1:
        raise DataError(
            f"{path}: has alignments of {' and '.join(sorted(found))}; choose one with data.alignments.format"
        )
    format = next(iter(found), "") if format == "auto" else format
    if not found.get(format):
        expected = ", ".join(
            f"*{suffix}"
            for name, suffixes in FORMATS.items()
            for suffix in suffixes
            if format in ("", name)
        )
        raise DataError(
            f"{path}: no alignments there; expected files {expected} (in any case), mend data.alignments"
        )
    return format, _of_tier(found[format], tier) if format == "timit" else found[format]


def _of_tier(files: list[Path], tier: str) -> list[Path]:
    """TIMIT's files of phones, or of words."""
    for suffix in (
        (".wrd",) if tier == "words" else (".phn",) if tier == "phones" else (".phn", ".wrd")
    ):
        if chosen := [path for path in files if path.suffix.lower() == suffix]:
            return chosen
    return []
