"""Common Voice (Ardila et al. 2020): read sentences in over a hundred languages.

Layout: `<language>/{train,dev,test,...}.tsv` and `<language>/clips/*.mp3`. Speakers are the tables'
`client_id`, already a hash. CC0; not downloaded, because Mozilla wants its terms accepted first.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from hubert_pretrain.corpora import common
from hubert_pretrain.data.audio_files import is_audio
from hubert_pretrain.data.source import SourceUtterance
from hubert_pretrain.errors import ConfigError, DataError

_LAYOUT = (
    "<root>/<language>/{train,dev,test,validated,other,...}.tsv and <root>/<language>/clips/*.mp3"
)
_OVERLAPPING = {"validated", "other", "invalidated"}
"""Tables that contain, or may contain, clips and speakers of dev and test."""
_COLUMNS = ("client_id", "path", "sentence")
_SPEAKER_LENGTH = 32
"""Digits taken from `client_id` (128 hexadecimal digits): 128 bits identify a speaker."""


class CommonVoice:
    """Any tables of any languages of a Common Voice release."""

    AVAILABLE_FROM = "commonvoice.mozilla.org, after accepting its terms"

    def __init__(
        self,
        *,
        root: str,
        languages: Sequence[str],
        train: Sequence[str] = ("train",),
        valid: Sequence[str] = ("dev",),
        test: Sequence[str] = ("test",),
        label: str | None = None,
    ) -> None:
        """No file is read before `utterances` is called.

        Args:
            root: folder of a release (`cv-corpus-*`) with a folder for each language, or the folder
                above it.
            languages: e.g. ["de", "en"].
            train: tables for training. Clips and speakers of `valid` and `test` are left out of
                `validated`, `other` and `invalidated`; `validated` contains `train`.
            valid: tables for validation.
            test: tables for testing.
            label: column with the class label, e.g. "locale" (the language), "accents" or "gender";
                None: no labels.
        """
        self.root = Path(root).expanduser().absolute()
        self.languages = list(languages)
        self.tables = {"train": list(train), "valid": list(valid), "test": list(test)}
        self.label = label
        if {"train", "validated"} <= set(train):
            raise ConfigError(
                f"data.corpus.train={list(train)}: 'validated' holds 'train' already; "
                "name one of them"
            )

    def utterances(self, folder: Path) -> Iterator[SourceUtterance]:
        """Every clip of the chosen tables. Raises DataError for a missing table or column."""
        common.find_root(self.root, _LAYOUT, self.AVAILABLE_FROM)
        for language in self.languages:
            home = self._find_language(language)
            held_out: set[str] = set()  # clips and speakers of valid and test
            for split in ("valid", "test", "train"):
                for table in self.tables[split]:
                    for utterance in self._read_table(home, table, split):
                        names = {utterance.id, utterance.speaker} - {""}
                        if split != "train":
                            held_out |= names
                        elif table in _OVERLAPPING and names & held_out:
                            continue
                        yield utterance

    def _find_language(self, language: str) -> Path:
        places = [self.root / language]
        for release in common.subfolders(self.root):
            if "cv-corpus" in release.name:
                places.append(release / language)
        if self.root.name == language:
            places.append(self.root)
        found = [place for place in places if (place / "clips").is_dir()]
        if len(found) > 1:
            raise DataError(
                f"{self.root}: holds {found[0]} and {found[1]}; "
                "set data.root to the folder of one release"
            )
        return found[0] if found else common.require(self.root / language, _LAYOUT)

    def _read_table(self, home: Path, table: str, split: str) -> Iterator[SourceUtterance]:
        path = common.require(home / f"{table}.tsv", _LAYOUT)
        columns = [*_COLUMNS, self.label] if self.label else _COLUMNS
        for _, row in common.read_table(path, columns):
            name = row["path"]
            if not is_audio(name):
                name = f"{name}.mp3"  # releases of 2019 leave the suffix out
            clip = home / "clips" / name
            yield SourceUtterance(
                id=f"{home.name}/{clip.stem}",
                path=clip,
                split=split,
                speaker=row["client_id"][:_SPEAKER_LENGTH],
                text=row["sentence"],
                label=row[self.label] if self.label else "",
            )
