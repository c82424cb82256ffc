"""fairseq's targets: `<split>.tsv` names files and their samples, `<split>.km` has a line of labels
for each, `dict.km.txt` every label.

Reading runs no code and keeps only where each line begins, so labels of any size fit into memory.
Of several codebooks there are `<split>.km1`, `<split>.km2`, ... T frames, K clusters.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import count, takewhile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hubert_pretrain.data.corpus import Corpus
from hubert_pretrain.data.manifest import Manifest
from hubert_pretrain.errors import DataError
from hubert_pretrain.files import sha256
from hubert_pretrain.frames import MFCC_GRID, SAMPLE_RATE, FrameGrid
from hubert_pretrain.targets.store import TargetStore, check_ids, frames_of, length_message

DOUBLE_RATE = 0.1
"""How far from 2 the labels per frame of a whole file may be for it to be taken for one of 100 Hz
(edges cost a frame per utterance).
"""


def is_km_folder(folder: Path) -> bool:
    """Whether a folder holds labels of fairseq."""
    return any(folder.glob("*.tsv")) and any(folder.glob("*.km*"))


# -- out
# --------------------------------------------------------------------------------------------------------------------------


def write_km(folder: Path, corpus: Corpus, store: TargetStore) -> list[Path]:
    """Writes what `fairseq-hydra-train ... task.labels=["km"] task.label_rate=50` reads; returns
    the files.

    Raises DataError for an utterance that fairseq could not read: a part of a file, or of a shard,
    or of another rate than 16 kHz.
    """
    store.check(corpus.manifest)
    folder.mkdir(parents=True, exist_ok=True)
    names = label_names(len(store.sizes))
    written = []
    for name, size in zip(names, store.sizes, strict=True):
        written.append(folder / f"dict.{name}.txt")
        written[-1].write_text("".join(f"{unit} 1\n" for unit in range(size)))
    for split in corpus.manifest.splits:
        rows = corpus.manifest.split_range(split)
        written.append(folder / f"{split}.tsv")
        with open(written[-1], "w", encoding="utf-8") as table:
            table.write("/\n")
            table.writelines(
                f"{_tsv_path(corpus.manifest, row)}\t{int(corpus.manifest.num_samples[row])}\n"
                for row in rows
            )
        for number, name in enumerate(names):
            written.append(folder / f"{split}.{name}")
            with open(written[-1], "w", encoding="ascii") as lines:
                lines.writelines(
                    " ".join(map(str, store.frames(row)[:, number].tolist())) + "\n" for row in rows
                )
    return written


def _tsv_path(manifest: Manifest, row: int) -> str:
    utterance = manifest[row]
    reasons = {
        "lies in a shard": utterance.offset >= 0 or "://" in utterance.path,
        "begins inside a file": utterance.start > 0,
        f"is stored at {utterance.source_rate} Hz": utterance.source_rate != SAMPLE_RATE,
    }
    for reason, holds in reasons.items():
        if holds:
            raise DataError(
                f"{utterance.path}: utterance {utterance.id!r} {reason}, which fairseq cannot read; it wants one file of {SAMPLE_RATE} Hz "
                "for each utterance: write such files, prepare them and label them"
            )
    return utterance.path.removeprefix("/")


def label_names(codebooks: int) -> list[str]:
    """`km`, or `km1`, `km2`, ... for several codebooks."""
    return ["km"] if codebooks == 1 else [f"km{number}" for number in range(1, codebooks + 1)]


# -- in
# ---------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class KmLine:
    """Where the labels of a manifest row are."""

    split: str
    number: int
    """From 0, in the `.km` file."""


@dataclass(frozen=True)
class _Entry:
    """A line of a `.tsv`."""

    line: KmLine
    path: str
    name: Path
    """Below the root, without suffix."""
    num_samples: int


@dataclass
class KmTargets:
    """Labels of fairseq for the rows of a manifest, found by path or by utterance id, whatever
    their order and their splits.

    Everything is checked when it is opened but the labels themselves, which are checked when they
    are read (`ids`).
    """

    folder: Path
    manifest: Manifest
    grid: FrameGrid
    """The model's: what labels are brought to."""
    tolerance: int = 0
    """Frames that an utterance's labels may be too many (cut at the end) or too few (the last one
    repeated).
    """
    n_clusters: Sequence[int] | None = None
    """K of each codebook, when there is no `dict.km.txt`."""
    trimmed: int = field(default=0, init=False)
    padded: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        splits = sorted(path.stem for path in self.folder.glob("*.tsv"))
        if not splits:
            raise DataError(
                f"{self.folder}: has no .tsv file; expected fairseq's <split>.tsv beside each <split>.km"
            )
        self.names = self._label_names(splits)
        self.sizes = [self._size(number, name) for number, name in enumerate(self.names)]
        tables = {split: self._table(split) for split in splits}
        self._lines = self._match([entry for table in tables.values() for entry in table])
        self._files = {
            (split, name): _Lines(self.folder / f"{split}.{name}", len(tables[split]))
            for split in splits
            for name in self.names
        }
        self.unused = sum(map(len, tables.values())) - len(self.manifest)
        self.step = self._rate()

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the label files, in order."""
        return sha256(*(lines.path for lines in self._files.values()))

    @property
    def features(self) -> dict[str, Any]:
        """Nothing is known of what was clustered."""
        return {
            "kind": "imported labels",
            "tolerance_frames": self.tolerance,
            "label_step": self.step,
        }

    def ids(self, row: int) -> NDArray[np.int64]:
        """The labels of a manifest row on the model's grid, (T,) or (T, N).

        Raises DataError naming the file, line and utterance when a label is no whole number or not
        below K, or the lengths differ by
        more than the tolerance.
        """
        columns = [
            self._column(row, name, size) for name, size in zip(self.names, self.sizes, strict=True)
        ]
        return columns[0] if len(columns) == 1 else np.stack(columns, axis=1)

    def report(self) -> str:
        """What was done, to be said aloud."""
        parts = [
            f"targets of {len(self.manifest)} utterances from {self.folder} (K={', '.join(map(str, self.sizes))})"
        ]
        parts += [f"100 Hz, every second label taken ([::{self.step}])"] if self.step > 1 else []
        parts += (
            [
                f"{self.trimmed} utterances cut and {self.padded} filled by up to {self.tolerance} frames"
            ]
            if self.tolerance
            else []
        )
        parts += [f"{self.unused} lines of other utterances left out"] if self.unused else []
        return "; ".join(parts)

    def _column(self, row: int, name: str, size: int) -> NDArray[np.int64]:
        line = self._lines[row]
        lines = self._files[line.split, name]
        utterance = self.manifest[row].id
        ids = lines.ids(line.number, utterance)[:: self.step]
        expected = int(self.grid.num_frames(int(self.manifest.num_samples[row])))
        try:
            if expected < len(ids) <= expected + self.tolerance:
                ids, self.trimmed = ids[:expected], self.trimmed + 1
            elif expected - self.tolerance <= len(ids) < expected and len(ids):
                ids, self.padded = (
                    np.append(ids, np.full(expected - len(ids), ids[-1])),
                    self.padded + 1,
                )
            elif len(ids) != expected:
                raise DataError(
                    f"{length_message(utterance, len(ids), expected)}, or allow so many with --tolerance"
                )
            check_ids(ids, num_frames=expected, n_clusters=size, utterance=utterance)
        except DataError as error:
            raise DataError(f"{lines.path}, line {line.number + 1}: {error}") from None
        return ids

    def _label_names(self, splits: list[str]) -> list[str]:
        if (self.folder / f"{splits[0]}.km").is_file():
            return ["km"]
        several = list(
            takewhile(
                lambda name: (self.folder / f"{splits[0]}.{name}").is_file(),
                (f"km{number}" for number in count(1)),
            )
        )
        if not several:
            raise DataError(
                f"{self.folder}: has {splits[0]}.tsv but neither {splits[0]}.km nor {splits[0]}.km1; put the labels beside it"
            )
        return several

    def _size(self, number: int, name: str) -> int:
        path = self.folder / f"dict.{name}.txt"
        if not path.is_file():
            if self.n_clusters is None or len(self.n_clusters) != len(self.names):
                raise DataError(
                    f"{path}: missing, so K is not known; add it, or give --n-clusters, one number for each of {', '.join(self.names)}"
                )
            return int(self.n_clusters[number])
        symbols = [
            line.split()[0]
            for line in path.read_text(encoding="utf-8-sig").splitlines()
            if line.strip()
        ]
        wrong = sorted(set(symbols) ^ set(map(str, range(len(symbols)))))
        if not symbols or wrong:
            found = (
                f"{wrong[0]!r} where 0 to {len(symbols) - 1} are expected"
                if symbols
                else "no label"
            )
            raise DataError(
                f"{path}: lists {len(symbols)} labels with {found}; write one line '<id> 1' for each id from 0 to K - 1"
            )
        return len(symbols)

    def _table(self, split: str) -> list[_Entry]:
        """The lines of a `.tsv`."""
        path = self.folder / f"{split}.tsv"
        root, *lines = path.read_text(encoding="utf-8-sig").splitlines() or [""]
        rows = []
        for number, line in enumerate(lines, start=2):
            name, _, samples = line.rpartition("\t")
            if not name or not samples.strip().isdigit():
                raise DataError(
                    f"{path}, line {number}: found {line!r}, expected <path><TAB><samples>; is this a fairseq manifest?"
                )
            rows.append(
                _Entry(
                    KmLine(split, number - 2),
                    str(Path(root) / name),
                    Path(name).with_suffix(""),
                    int(samples),
                )
            )
        return rows

    def _match(self, entries: list[_Entry]) -> list[KmLine]:
        """The line of every manifest row: by its path, else by its id, which is the path below the
        root or the name, without suffix.
        """
        names = Counter(entry.name.name for entry in entries)
        by_id = {entry.name.name: entry for entry in entries if names[entry.name.name] == 1}
        by_id |= {str(entry.name): entry for entry in entries}
        by_path = {entry.path: entry for entry in entries}
        found = []
        for row in range(len(self.manifest)):
            utterance = self.manifest[row]
            entry = by_path.get(utterance.path) or by_id.get(utterance.id)
            if entry is None:
                raise DataError(
                    f"{self.folder}: no line for utterance {utterance.id!r} ({utterance.path}) among {len(entries)}; every utterance of "
                    "the manifest needs labels: label the missing ones, or prepare only those that have them"
                )
            if entry.num_samples != utterance.num_samples:
                raise DataError(
                    f"{self.folder / entry.line.split}.tsv, line {entry.line.number + 2}: {entry.num_samples} samples for utterance "
                    f"{utterance.id!r}, the manifest has {utterance.num_samples}; the labels are of other audio"
                )
            found.append(entry.line)
        return found

    def _rate(self) -> int:
        """1, or 2 when the labels of the whole corpus are twice as many as its frames, as of
        Kaldi's 100 Hz.
        """
        if self.grid.hop != 2 * MFCC_GRID.hop:
            return 1
        expected = int(frames_of(self.manifest, self.grid).sum())
        found = sum(
            self._files[line.split, self.names[0]].length(line.number) for line in self._lines
        )
        return 2 if abs(found / max(1, expected) - 2) < DOUBLE_RATE else 1


class _Lines:
    """A text file of whole numbers, read line by line in any order."""

    def __init__(self, path: Path, expected: int) -> None:
        self.path = path
        if not path.is_file():
            raise DataError(f"{path}: missing; put the labels of {path.stem}.tsv there")
        self._lengths = []
        ends = [0]
        with open(path, "rb") as file:
            for line in file:
                self._lengths.append(len(line.split()))
                ends.append(ends[-1] + len(line))
        self._starts = np.array(ends, dtype=np.int64)
        if len(self._lengths) != expected:
            raise DataError(
                f"{path}: has {len(self._lengths)} lines, {path.stem}.tsv names {expected} files; both must be of the same run"
            )

    def length(self, number: int) -> int:
        """Labels of a line."""
        return self._lengths[number]

    def ids(self, number: int, utterance: str) -> NDArray[np.int64]:
        """The labels of a line (T,)."""
        with open(self.path, "rb") as file:
            file.seek(int(self._starts[number]))
            words = file.read(int(self._starts[number + 1] - self._starts[number])).split()
        try:
            return np.array([int(word) for word in words], dtype=np.int64)
        except ValueError:
            place, word = next(
                (place, word) for place, word in enumerate(words) if not _is_whole(word)
            )
            raise DataError(
                f"{self.path}, line {number + 1}: label {word.decode(errors='replace')!r} at place {place} of {utterance!r} is no whole "
                "number; expected ids from 0 to K - 1, separated by blanks"
            ) from None


def _is_whole(word: bytes) -> bool:
    try:
        int(word)
    except ValueError:
        return False
    return True
