"""Any folder tree of audio files. Speakers, labels and splits come from folder names or a csv."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from hubert_pretrain.corpora import common
from hubert_pretrain.data.audio_files import (
    USUAL,
    PassedOver,
    audio_below,
    audio_in,
    describe,
    with_faults,
)
from hubert_pretrain.data.source import SourceUtterance
from hubert_pretrain.errors import DataError
from hubert_pretrain.formats.record import SPLIT_NAMES, split_named
from hubert_pretrain.formats.table import parse_text, rows
from hubert_pretrain.seeds import share_of

COLUMNS = ("path", "id", "speaker", "text", "label", "split")
"""Our names of the columns that a table may have."""


class Folder:
    """Every audio file below a folder (docs/corpora.md lists the suffixes), or those that a csv
    names.
    """

    def __init__(
        self,
        *,
        root: str,
        table: str | None = None,
        columns: Mapping[str, str] | None = None,
        speaker_level: int | None = None,
        label_level: int | None = None,
        split_by: str = "auto",
        test_fraction: float = 0.0,
    ) -> None:
        """No file is read before `utterances` is called.

        Args:
            root: the folder.
            table: a csv (or tab-separated .tsv) with a header, a column `path` and optional columns
                `id`, `speaker`, `text`, `label`, `split`. It lies below `root` or anywhere else;
                its paths are relative to `root`. None: every audio file below `root`.
            columns: our name -> the table's name of a column, e.g. {"text": "sentence"}.
            speaker_level: folder above a file that names the speaker: 1 its own folder, 2 the one
                above it, ...; None: no speakers.
            label_level: the same for the class label.
            split_by: "folders": folders directly below `root` are named train, valid (or dev) and
                test; "hash": by a hash of the id; "auto": by folders if they have such names, else
                by hash. A split column of the table takes precedence.
            test_fraction: share of the utterances that "hash" assigns to test. (Stage `prepare`
                holds `valid` out of train.)
        """
        common.check_choice("split_by", split_by, ("auto", "folders", "hash"))
        common.check_columns(columns or {}, COLUMNS)
        self.root = Path(root).expanduser().absolute()
        self.table = table
        self.columns = dict(columns or {})
        self.speaker_level = speaker_level
        self.label_level = label_level
        self.split_by = split_by
        self.test_fraction = test_fraction
        self.passed_over = PassedOver()

    def utterances(self, folder: Path) -> Iterator[SourceUtterance]:
        """Every utterance; other files below the root are counted in `passed_over`. Raises
        DataError when the folder or table is missing or empty.
        """
        if not self.root.is_dir():
            raise DataError(
                f"{self.root}: no such folder; expected a folder with audio files "
                f"({USUAL}), set data.root"
            )
        if self.table:
            table = self._find_table(self.table)
            by_folders = self._split_by_folders(
                row["path"] for _, row in self._rows(table) if not row.get("split")
            )
            for _, row in self._rows(table):
                yield self._utterance(row, by_folders)
        else:
            by_folders = self._split_by_folders(self._sample_paths())
            self.passed_over = PassedOver()
            for path, fault in with_faults(audio_below(self.root, self.passed_over)):
                row = {"path": path.relative_to(self.root).as_posix()}
                if fault:
                    row["id"] = row["path"]
                utterance = self._utterance(row, by_folders)
                yield replace(utterance, fault=fault) if fault else utterance

    def _utterance(self, row: dict[str, str], by_folders: bool) -> SourceUtterance:
        path = row["path"]
        id = row.get("id") or Path(path).with_suffix("").as_posix()
        speaker = row.get("speaker")
        if speaker is None:
            speaker = self._folder_name(path, self.speaker_level)
        label = row.get("label")
        if label is None:
            label = self._folder_name(path, self.label_level)
        return SourceUtterance(
            id=id,
            path=self.root / path,
            split=self._split(row, id, by_folders),
            speaker=speaker,
            text=row.get("text", ""),
            label=label,
        )

    def _folder_name(self, path: str, level: int | None) -> str:
        if level is None:
            return ""
        parents = Path(path).parts[:-1]
        if not 1 <= level <= len(parents):
            raise DataError(
                f"{self.root / path}: has {len(parents)} folders between it and {self.root}, "
                f"expected level {level}; fix data.corpus.speaker_level / label_level, "
                "or give a table"
            )
        return parents[-level]

    # -- the table

    def _rows(self, table: Path) -> Iterator[tuple[str, dict[str, str]]]:
        """(place, row) under our names of columns. The table is read again each time, because it
        may be larger than memory.
        """
        for place, row in rows(table, self.columns, COLUMNS):
            yield place, {name: parse_text(value, place, name) for name, value in row.items()}

    def _find_table(self, table: str) -> Path:
        given = Path(table).expanduser()
        for path in (self.root / given, given.absolute()):
            if path.is_file():
                return path
        raise DataError(
            f"{self.root / given}: no such file; "
            "data.corpus.table names a csv below data.root or anywhere else"
        )

    # -- splits

    def _split(self, row: dict[str, str], id: str, by_folders: bool) -> str:
        if row.get("split"):
            return split_named(row["split"])
        if by_folders:
            return SPLIT_NAMES[str(first_folder(row["path"]))]
        return "test" if share_of(id, "test") < self.test_fraction else "train"

    def _split_by_folders(self, paths: Iterable[str]) -> bool:
        """Decides from relative paths whether the first folders name the splits. Raises DataError
        when some do and others do not.
        """
        if self.split_by == "hash":
            return False
        some_do = False
        unnamed = None  # the first path whose folder names no split
        for path in paths:
            if first_folder(path) in SPLIT_NAMES:
                some_do = True
            else:
                unnamed = unnamed or path
        if unnamed is None:
            return True
        if self.split_by == "auto" and not some_do:
            return False
        contrast = ", but that of other files does" if some_do else ""
        raise DataError(
            f"{self.root / unnamed}: its first folder below {self.root} names no split "
            f"({', '.join(SPLIT_NAMES)}){contrast}; move it, or split by data.corpus.split_by=hash"
        )

    def _sample_paths(self) -> Iterator[str]:
        """Relative path of one audio file directly below the root and of one in each folder there:
        enough to see the layout without listing everything. Raises DataError without audio.
        """
        places = [iter(audio_in(self.root))]
        places += [audio_below(folder, PassedOver()) for folder in common.subfolders(self.root)]
        found = [path for path in (next(place, None) for place in places) if path is not None]
        if not found:
            raise DataError(
                f"{self.root}: no audio files below it{self._kinds_found()}; expected {USUAL}, "
                "set data.root to another folder"
            )
        for path in found:
            yield path.relative_to(self.root).as_posix()

    def _kinds_found(self) -> str:
        passed_over = PassedOver()
        list(audio_below(self.root, passed_over))
        lines = describe(passed_over.card())
        return f", {'; '.join(lines)}" if lines else ""


def first_folder(path: str) -> str | None:
    """The first folder of a relative path, in lower case; None for a file directly below the
    root.
    """
    first, slash, _ = path.partition("/")
    return first.lower() if slash else None
