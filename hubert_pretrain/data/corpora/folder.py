"""Any folder tree of audio files, with speakers, labels and splits from folder names or from a csv."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from hubert_pretrain.data.audio import SUFFIXES
from hubert_pretrain.data.corpus import Claim
from hubert_pretrain.data.prepare import share_of
from hubert_pretrain.errors import ConfigError, DataError, nearest

SPLIT_FOLDERS = {
    "train": "train",
    "training": "train",
    "valid": "valid",
    "validation": "valid",
    "val": "valid",
    "dev": "valid",
    "test": "test",
    "testing": "test",
    "eval": "test",
}
"""Names of folders directly below the root, or values of a csv's split column -> split."""

_LINE = "line"
COLUMNS = ("path", "id", "speaker", "text", "label", "split")


class _Tsv(csv.excel_tab):
    """Tab-separated, and a quotation mark is part of the text (as in Common Voice)."""

    quoting = csv.QUOTE_NONE


class Folder:
    """Every wav, flac, ogg, opus and mp3 file below a folder, or those that a csv names."""

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
        """Nothing is read until `utterances`.

        Args:
            root: the folder.
            table: a csv (or tab-separated .tsv) with a header line and a `path` column, and as it likes `id`, `speaker`, `text`,
                `label`, `split`; it lies below `root` or anywhere else, its paths are relative to `root`. None: every audio file counts.
            columns: our name -> the table's name of a column, e.g. {"text": "sentence"}.
            speaker_level: which folder above a file is the speaker: 1 its own folder, 2 the one above; None: no speakers.
            label_level: the same for the class label.
            split_by: "folders": folders below `root` are named train, valid (or dev), test; "hash": by a hash of the id; "auto": by
                folders when their names are such. A table's split column comes first.
            test_fraction: share of all that "hash" gives to test. (`valid` is then held out of train by the stage.)
        """
        if split_by not in ("auto", "folders", "hash"):
            raise ConfigError(
                f"data.corpus.split_by={split_by!r}: expected auto, folders or hash{nearest(split_by, ['auto', 'folders', 'hash'])}"
            )
        if unknown := sorted(set(columns or {}) - set(COLUMNS)):
            raise ConfigError(f"data.corpus.columns: {unknown[0]!r} is not one of {', '.join(COLUMNS)}{nearest(unknown[0], list(COLUMNS))}")
        self.root = Path(root).expanduser().absolute()
        self.table = table
        self.columns = dict(columns or {})
        self.speaker_level = speaker_level
        self.label_level = label_level
        self.split_by = split_by
        self.test_fraction = test_fraction

    def utterances(self, folder: Path) -> Iterator[Claim]:
        """Every utterance. Raises DataError when the folder or table is missing, empty, or names audio that is not there."""
        if not self.root.is_dir():
            raise DataError(f"{self.root}: no such folder; expected a folder with audio files ({', '.join(SUFFIXES)}), set data.root")
        rows = self._table_rows() if self.table else self._tree_rows()
        by_folders = self._splits_by_folders([row["path"] for row in rows])
        for row in rows:
            yield self._claim(row, by_folders)

    def _tree_rows(self) -> list[dict[str, str]]:
        """Paths below the root, relative to it and ordered."""
        paths = sorted(path.relative_to(self.root).as_posix() for path in audio_below(self.root))
        if not paths:
            raise DataError(f"{self.root}: no audio files below it; expected {', '.join(SUFFIXES)}, set data.root to another folder")
        return [{"path": path} for path in paths]

    def _table_rows(self) -> list[dict[str, str]]:
        table = self._find_table()
        try:
            with open(table, encoding="utf-8-sig", newline="") as file:
                reader = csv.DictReader(file, dialect=_Tsv if table.suffix == ".tsv" else csv.excel)
                names = self._column_names(table, list(reader.fieldnames or []))
                rows = [_values(row, names) | {_LINE: str(reader.line_num)} for row in reader]
        except (UnicodeDecodeError, csv.Error) as error:
            raise DataError(f"{table}: not a csv in UTF-8 ({error}); save it as one") from error
        if not rows:
            raise DataError(f"{table}: has no lines below its header; add one for each utterance")
        self._refuse_missing(table, rows)
        return rows

    def _find_table(self) -> Path:
        given = Path(str(self.table)).expanduser()
        for path in (self.root / given, given.absolute()):
            if path.is_file():
                return path
        raise DataError(f"{self.root / given}: no such file; data.corpus.table names a csv below data.root or anywhere else")

    def _column_names(self, table: Path, header: list[str]) -> dict[str, str]:
        """Our name -> the header's name of every column that is there."""
        names = {ours: self.columns.get(ours, ours) for ours in COLUMNS}
        for ours, theirs in names.items():
            if theirs not in header and (ours == "path" or ours in self.columns):
                raise DataError(
                    f"{table}: no column {theirs!r}{nearest(theirs, header)}, it has {', '.join(header) or 'no header'}; "
                    f"add it, or name another with data.corpus.columns.{ours}"
                )
        return {ours: theirs for ours, theirs in names.items() if theirs in header}

    def _refuse_missing(self, table: Path, rows: list[dict[str, str]]) -> None:
        missing = [row for row in rows if not row["path"] or not (self.root / row["path"]).is_file()]
        if missing:
            more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
            raise DataError(
                f"{table}: line {missing[0][_LINE]} names {str(self.root / missing[0]['path'])!r}, which is not there{more}; "
                "paths are relative to data.root: restore the audio or remove the lines"
            )

    def _splits_by_folders(self, paths: list[str]) -> bool:
        if self.split_by == "hash":
            return False
        known = [first_folder(path) in SPLIT_FOLDERS for path in paths]
        if all(known) or (self.split_by == "auto" and not any(known)):
            return all(known)
        other = paths[known.index(False)]
        raise DataError(
            f"{self.root / other}: its first folder below {self.root} names no split ({', '.join(SPLIT_FOLDERS)})"
            f"{', but that of other files does' if any(known) else ''}; move it, or split by data.corpus.split_by=hash"
        )

    def _claim(self, row: dict[str, str], by_folders: bool) -> Claim:
        path = row["path"]
        id = row.get("id") or str(Path(path).with_suffix("").as_posix())
        return Claim(
            id=id,
            path=self.root / path,
            split=self._split(row, id, by_folders),
            speaker=row["speaker"] if "speaker" in row else self._folder_name(path, self.speaker_level),
            text=row.get("text", ""),
            label=row["label"] if "label" in row else self._folder_name(path, self.label_level),
        )

    def _split(self, row: dict[str, str], id: str, by_folders: bool) -> str:
        if named := row.get("split"):
            return SPLIT_FOLDERS.get(named.lower(), named)
        if by_folders:
            return SPLIT_FOLDERS[str(first_folder(row["path"]))]
        return "test" if share_of(id, "test") < self.test_fraction else "train"

    def _folder_name(self, path: str, level: int | None) -> str:
        if level is None:
            return ""
        parents = Path(path).parts[:-1]
        if not 1 <= level <= len(parents):
            raise DataError(
                f"{self.root / path}: has {len(parents)} folders between it and {self.root}, level {level} was asked for; "
                "mend data.corpus.speaker_level / label_level, or give a table"
            )
        return parents[-level]


def audio_below(root: Path) -> Iterator[Path]:
    """Audio files below a folder, without hidden ones. Links to folders are followed, once each."""
    seen: set[tuple[int, int]] = set()
    for folder, below, names in os.walk(root, followlinks=True):
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in seen:
            below.clear()
            continue
        below.sort()  # so that of two links to one folder the same is followed everywhere
        seen.add((status.st_dev, status.st_ino))
        yield from (Path(folder, name) for name in names if name.lower().endswith(SUFFIXES) and not name.startswith("."))


def _values(row: Mapping[str, str | None], names: Mapping[str, str]) -> dict[str, str]:
    return {ours: (row[theirs] or "").strip() for ours, theirs in names.items()}


def first_folder(path: str) -> str | None:
    """The first folder of a relative path, in lower case; None for a file directly below the root."""
    first, slash, _ = path.partition("/")
    return first.lower() if slash else None
