"""Any folder tree of audio files, with speakers, labels and splits from folder names or from a
csv.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from hubert_pretrain.corpora import common
from hubert_pretrain.data.audio import SUFFIXES, audio_below
from hubert_pretrain.data.source import SourceUtterance
from hubert_pretrain.errors import ConfigError, DataError, did_you_mean
from hubert_pretrain.formats.record import SPLIT_NAMES
from hubert_pretrain.formats.table import rows, text_of
from hubert_pretrain.seeds import share_of

_PLACE = "place"
COLUMNS = ("path", "id", "speaker", "text", "label", "split")


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
            root: the folder. table: a csv (or tab-separated .tsv) with a header line and a `path`
            column, and as it likes `id`, `speaker`, `text`,
                `label`, `split`; it lies below `root` or anywhere else, its paths are relative to
                `root`. None: every audio file counts.
            columns: our name -> the table's name of a column, e.g. {"text": "sentence"}.
            speaker_level: which folder above a file is the speaker: 1 its own folder, 2 the one
            above; None: no speakers. label_level: the same for the class label. split_by:
            "folders": folders below `root` are named train, valid (or dev), test; "hash": by a hash
            of the id; "auto": by
                folders when their names are such. A table's split column comes first.
            test_fraction: share of all that "hash" gives to test. (`valid` is then held out of
            train by the stage.)
        """
        common.check_choice("split_by", split_by, ("auto", "folders", "hash"))
        if unknown := sorted(set(columns or {}) - set(COLUMNS)):
            raise ConfigError(
                f"data.corpus.columns: {unknown[0]!r} is not one of {', '.join(COLUMNS)}{did_you_mean(unknown[0], list(COLUMNS))}"
            )
        self.root = Path(root).expanduser().absolute()
        self.table = table
        self.columns = dict(columns or {})
        self.speaker_level = speaker_level
        self.label_level = label_level
        self.split_by = split_by
        self.test_fraction = test_fraction

    def utterances(self, folder: Path) -> Iterator[SourceUtterance]:
        """Every utterance. Raises DataError when the folder or table is missing, empty, or names
        audio that is not there.
        """
        if not self.root.is_dir():
            raise DataError(
                f"{self.root}: no such folder; expected a folder with audio files ({', '.join(SUFFIXES)}), set data.root"
            )
        if self.table:
            table = self._find_table()
            self._refuse_missing(table)
            by_folders = self._splits_by_folders(row["path"] for row in self._table_rows(table))
            found = self._table_rows(table)
        else:
            by_folders = self._splits_by_folders(self._first_paths())
            found = (
                {"path": path.relative_to(self.root).as_posix()} for path in audio_below(self.root)
            )
        for row in found:
            yield self._utterance(row, by_folders)

    def _first_paths(self) -> Iterator[str]:
        """The path of one audio file directly below the root, and of one in each folder there: they
        tell how the tree is laid out.
        """
        places = [
            iter(common.audio_in(self.root)),
            *(audio_below(folder) for folder in common.folders_in(self.root)),
        ]
        found = [
            path.relative_to(self.root).as_posix()
            for path in (next(place, None) for place in places)
            if path is not None
        ]
        if not found:
            raise DataError(
                f"{self.root}: no audio files below it; expected {', '.join(SUFFIXES)}, set data.root to another folder"
            )
        yield from found

    def _table_rows(self, table: Path) -> Iterator[dict[str, str]]:
        """The table's rows under our names of columns. It is read again each time: it may be larger
        than memory.
        """
        for place, row in rows(table, self.columns, COLUMNS):
            yield {name: text_of(value, place, name) for name, value in row.items()} | {
                _PLACE: place
            }

    def _find_table(self) -> Path:
        given = Path(str(self.table)).expanduser()
        for path in (self.root / given, given.absolute()):
            if path.is_file():
                return path
        raise DataError(
            f"{self.root / given}: no such file; data.corpus.table names a csv below data.root or anywhere else"
        )

    def _refuse_missing(self, table: Path) -> None:
        first = None
        count = 0
        for row in self._table_rows(table):
            if not row["path"] or not (self.root / row["path"]).is_file():
                first = first or row
                count = count + 1
        if first is not None:
            more = f" (and {count - 1} more)" if count > 1 else ""
            raise DataError(
                f"{first[_PLACE]} names {str(self.root / first['path'])!r}, which is not there{more}; "
                "paths are relative to data.root: restore the audio or remove the lines"
            )

    def _splits_by_folders(self, paths: Iterable[str]) -> bool:
        if self.split_by == "hash":
            return False
        known = False
        other = None
        for path in paths:
            if first_folder(path) in SPLIT_NAMES:
                known = True
            else:
                other = other or path
        if other is None or (self.split_by == "auto" and not known):
            return other is None
        raise DataError(
            f"{self.root / other}: its first folder below {self.root} names no split ({', '.join(SPLIT_NAMES)})"
            f"{', but that of other files does' if known else ''}; move it, or split by data.corpus.split_by=hash"
        )

    def _utterance(self, row: dict[str, str], by_folders: bool) -> SourceUtterance:
        path = row["path"]
        id = row.get("id") or str(Path(path).with_suffix("").as_posix())
        return SourceUtterance(
            id=id,
            path=self.root / path,
            split=self._split(row, id, by_folders),
            speaker=row["speaker"]
            if "speaker" in row
            else self._folder_name(path, self.speaker_level),
            text=row.get("text", ""),
            label=row["label"] if "label" in row else self._folder_name(path, self.label_level),
        )

    def _split(self, row: dict[str, str], id: str, by_folders: bool) -> str:
        if named := row.get("split"):
            return SPLIT_NAMES.get(named.lower(), named)
        if by_folders:
            return SPLIT_NAMES[str(first_folder(row["path"]))]
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


def first_folder(path: str) -> str | None:
    """The first folder of a relative path, in lower case; None for a file directly below the
    root.
    """
    first, slash, _ = path.partition("/")
    return first.lower() if slash else None
