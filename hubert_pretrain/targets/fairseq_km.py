"""fairseq's targets: `<split>.tsv` lists files and their samples, `<split>.km` has a line of labels
for each, `dict.km.txt` lists all labels.

Reading runs no code and keeps only the start of each line, so labels of any size fit into memory.
Several codebooks are `<split>.km1`, `<split>.km2`, ...

Letters: T frames, N codebooks, K clusters.
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
"""Labels have 100 Hz if their number per frame, over the whole corpus, is within this distance of 2
(the edges of an utterance cost a frame)."""


def is_km_folder(folder: Path) -> bool:
    """True if a folder holds labels of fairseq."""
    return any(folder.glob("*.tsv")) and any(folder.glob("*.km*"))


# -- export


def write_km(folder: Path, corpus: Corpus, store: TargetStore) -> list[Path]:
    """Writes the input of `fairseq-hydra-train ... task.labels=["km"] task.label_rate=50`; returns
    the files.

    Raises DataError for an utterance that fairseq cannot read: a part of a file or of a shard, or
    audio of another rate than 16 kHz.
    """
    store.check(corpus.manifest)
    folder.mkdir(parents=True, exist_ok=True)
    names = label_names(len(store.sizes))
    written = []
    for name, size in zip(names, store.sizes, strict=True):
        dictionary = folder / f"dict.{name}.txt"
        dictionary.write_text("".join(f"{label} 1\n" for label in range(size)))
        written.append(dictionary)
    for split in corpus.manifest.splits:
        rows = corpus.manifest.split_range(split)
        table = folder / f"{split}.tsv"
        with open(table, "w", encoding="utf-8") as file:
            file.write("/\n")
            for row in rows:
                num_samples = int(corpus.manifest.num_samples[row])
                file.write(f"{_tsv_path(corpus.manifest, row)}\t{num_samples}\n")
        written.append(table)
        for codebook, name in enumerate(names):
            labels = folder / f"{split}.{name}"
            with open(labels, "w", encoding="ascii") as file:
                for row in rows:
                    ids = store.target_matrix(row)[:, codebook].tolist()
                    file.write(" ".join(map(str, ids)) + "\n")
            written.append(labels)
    return written


def _tsv_path(manifest: Manifest, row: int) -> str:
    """Path of an utterance's file relative to the root directory."""
    utterance = manifest[row]
    reason = ""
    if utterance.offset >= 0 or "://" in utterance.path:
        reason = "lies in a shard"
    elif utterance.start > 0:
        reason = "begins inside a file"
    elif utterance.source_rate != SAMPLE_RATE:
        reason = f"is stored at {utterance.source_rate} Hz"
    if reason:
        raise DataError(
            f"{utterance.path}: utterance {utterance.id!r} {reason}, which fairseq cannot read; it "
            f"needs one file of {SAMPLE_RATE} Hz for each utterance: write such files, prepare "
            "them and label them"
        )
    return utterance.path.removeprefix("/")


def label_names(num_codebooks: int) -> list[str]:
    """`km`, or `km1`, `km2`, ... for several codebooks."""
    if num_codebooks == 1:
        return ["km"]
    return [f"km{number}" for number in range(1, num_codebooks + 1)]


# -- import


@dataclass(frozen=True)
class KmLine:
    """Position of the labels of a manifest row."""

    split: str
    number: int
    """Line of the `.km` file, from 0."""


@dataclass(frozen=True)
class _Entry:
    """A line of a `.tsv` file."""

    line: KmLine
    path: str
    name: Path
    """Path below the root, without suffix."""
    num_samples: int


@dataclass
class KmTargets:
    """Labels of fairseq for the rows of a manifest, as a TargetSource.

    Rows are matched by path or by utterance id, in any order and from any split. Opening checks
    everything but the labels themselves, which are checked when they are read (`ids`).
    """

    folder: Path
    manifest: Manifest
    grid: FrameGrid
    """The model's grid, to which labels are converted."""
    tolerance: int = 0
    """Most frames by which an utterance's labels may be too long (cut at the end) or too short (the
    last one is repeated)."""
    n_clusters: Sequence[int] | None = None
    """K of each codebook, when there is no `dict.km.txt`."""
    trimmed: int = field(default=0, init=False)
    padded: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        splits = sorted(path.stem for path in self.folder.glob("*.tsv"))
        if not splits:
            raise DataError(
                f"{self.folder}: has no .tsv file; expected fairseq's <split>.tsv beside each "
                "<split>.km"
            )
        self.names = self._label_names(splits)
        self.sizes = [self._size(number, name) for number, name in enumerate(self.names)]
        tables = {split: self._read_table(split) for split in splits}
        self._lines = self._match([entry for table in tables.values() for entry in table])
        self._files = {
            (split, name): _LabelFile(self.folder / f"{split}.{name}", len(tables[split]))
            for split in splits
            for name in self.names
        }
        self.unused = sum(map(len, tables.values())) - len(self.manifest)
        self.step = self._find_step()

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the label files, in order."""
        return sha256(*(file.path for file in self._files.values()))

    @property
    def features(self) -> dict[str, Any]:
        """The conversion of the labels; the clustered features are unknown."""
        return {
            "kind": "imported labels",
            "tolerance_frames": self.tolerance,
            "label_step": self.step,
        }

    def ids(self, row: int) -> NDArray[np.int64]:
        """The labels of a manifest row on the model's grid: (T,) or (T, N).

        Raises DataError, naming file, line and utterance, when a label is no integer or not below
        K, or the lengths differ by more than the tolerance.
        """
        columns = [
            self._column(row, name, size) for name, size in zip(self.names, self.sizes, strict=True)
        ]
        return columns[0] if len(columns) == 1 else np.stack(columns, axis=1)

    def report(self) -> str:
        """One line that describes the import."""
        sizes = ", ".join(map(str, self.sizes))
        parts = [f"targets of {len(self.manifest)} utterances from {self.folder} (K={sizes})"]
        if self.step > 1:
            parts.append(f"100 Hz, every second label taken ([::{self.step}])")
        if self.tolerance:
            parts.append(
                f"{self.trimmed} utterances cut and {self.padded} filled by up to {self.tolerance} "
                "frames"
            )
        if self.unused:
            parts.append(f"{self.unused} lines of other utterances left out")
        return "; ".join(parts)

    def _column(self, row: int, name: str, size: int) -> NDArray[np.int64]:
        """The labels (T,) of one codebook."""
        line = self._lines[row]
        file = self._files[line.split, name]
        utterance = self.manifest[row].id
        ids = file.ids(line.number, utterance)[:: self.step]
        expected = int(self.grid.num_frames(int(self.manifest.num_samples[row])))
        excess = len(ids) - expected
        try:
            if 0 < excess <= self.tolerance:
                ids = ids[:expected]
                self.trimmed += 1
            elif 0 < -excess <= self.tolerance and len(ids):
                ids = np.append(ids, np.full(-excess, ids[-1]))
                self.padded += 1
            elif excess:
                message = length_message(utterance, len(ids), expected)
                raise DataError(f"{message}, or allow so many with --tolerance")
            check_ids(ids, num_frames=expected, n_clusters=size, utterance=utterance)
        except DataError as error:
            raise DataError(f"{file.path}, line {line.number + 1}: {error}") from None
        return ids

    def _label_names(self, splits: list[str]) -> list[str]:
        """`km`, or `km1`, `km2`, ... as far as the files of the first split go."""
        split = splits[0]
        if (self.folder / f"{split}.km").is_file():
            return ["km"]
        numbered = (f"km{number}" for number in count(1))
        names = list(takewhile(lambda name: (self.folder / f"{split}.{name}").is_file(), numbered))
        if not names:
            raise DataError(
                f"{self.folder}: has {split}.tsv but neither {split}.km nor {split}.km1; put the "
                "labels beside it"
            )
        return names

    def _size(self, number: int, name: str) -> int:
        """K of a codebook, from its dictionary or `n_clusters`."""
        path = self.folder / f"dict.{name}.txt"
        if not path.is_file():
            if self.n_clusters is None or len(self.n_clusters) != len(self.names):
                raise DataError(
                    f"{path}: missing, so K is not known; add it, or give --n-clusters, one number "
                    f"for each of {', '.join(self.names)}"
                )
            return int(self.n_clusters[number])
        lines = path.read_text(encoding="utf-8-sig").splitlines()
        labels = [line.split()[0] for line in lines if line.strip()]
        wrong = sorted(set(labels) ^ set(map(str, range(len(labels)))))
        if not labels or wrong:
            found = "no label"
            if labels:
                found = f"{wrong[0]!r} where 0 to {len(labels) - 1} are expected"
            raise DataError(
                f"{path}: lists {len(labels)} labels with {found}; write one line '<id> 1' for "
                "each id from 0 to K - 1"
            )
        return len(labels)

    def _read_table(self, split: str) -> list[_Entry]:
        """The lines of a `.tsv` file."""
        path = self.folder / f"{split}.tsv"
        root, *lines = path.read_text(encoding="utf-8-sig").splitlines() or [""]
        entries = []
        for number, line in enumerate(lines):
            name, _, samples = line.rpartition("\t")
            if not name or not samples.strip().isdigit():
                raise DataError(
                    f"{path}, line {number + 2}: found {line!r}, expected <path><TAB><samples>; is "
                    "this a fairseq manifest?"
                )
            entries.append(
                _Entry(
                    line=KmLine(split, number),
                    path=str(Path(root) / name),
                    name=Path(name).with_suffix(""),
                    num_samples=int(samples),
                )
            )
        return entries

    def _match(self, entries: list[_Entry]) -> list[KmLine]:
        """The line of every manifest row: by its path, else by its id, which is the path below the
        root or a unique file name, without suffix.
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
                    f"{self.folder}: no line for utterance {utterance.id!r} ({utterance.path}) "
                    f"among {len(entries)}; every utterance of the manifest needs labels: label "
                    "the missing ones, or prepare only those that have them"
                )
            if entry.num_samples != utterance.num_samples:
                raise DataError(
                    f"{self.folder / entry.line.split}.tsv, line {entry.line.number + 2}: "
                    f"{entry.num_samples} samples for utterance {utterance.id!r}, the manifest has "
                    f"{utterance.num_samples}; the labels are of other audio"
                )
            found.append(entry.line)
        return found

    def _find_step(self) -> int:
        """2 when the corpus has twice as many labels as frames, as at Kaldi's 100 Hz; else 1."""
        if self.grid.hop != 2 * MFCC_GRID.hop:
            return 1
        num_frames = int(frames_of(self.manifest, self.grid).sum())
        num_labels = sum(
            self._files[line.split, self.names[0]].length(line.number) for line in self._lines
        )
        return 2 if abs(num_labels / max(1, num_frames) - 2) < DOUBLE_RATE else 1


class _LabelFile:
    """A text file of integers, read line by line in any order."""

    def __init__(self, path: Path, num_lines: int) -> None:
        self.path = path
        if not path.is_file():
            raise DataError(f"{path}: missing; put the labels of {path.stem}.tsv there")
        self._lengths = []
        starts = [0]
        with open(path, "rb") as file:
            for line in file:
                self._lengths.append(len(line.split()))
                starts.append(starts[-1] + len(line))
        self._starts = np.array(starts, dtype=np.int64)
        if len(self._lengths) != num_lines:
            raise DataError(
                f"{path}: has {len(self._lengths)} lines, {path.stem}.tsv names {num_lines} files; "
                "both must be of the same run"
            )

    def length(self, number: int) -> int:
        """Number of labels of a line."""
        return self._lengths[number]

    def ids(self, number: int, utterance: str) -> NDArray[np.int64]:
        """The labels of a line (T,)."""
        with open(self.path, "rb") as file:
            file.seek(int(self._starts[number]))
            words = file.read(int(self._starts[number + 1] - self._starts[number])).split()
        try:
            return np.array([int(word) for word in words], dtype=np.int64)
        except ValueError:
            position = [_is_integer(word) for word in words].index(False)
            word = words[position].decode(errors="replace")
            raise DataError(
                f"{self.path}, line {number + 1}: label {word!r} at place {position} of "
                f"{utterance!r} is no integer; expected ids from 0 to K - 1, separated by blanks"
            ) from None


def _is_integer(word: bytes) -> bool:
    try:
        int(word)
    except ValueError:
        return False
    return True
