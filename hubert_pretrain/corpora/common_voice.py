"""Common Voice (Ardila et al. 2020): read sentences in over a hundred languages,
`<language>/{train,dev,test,...}.tsv` and `clips/*.mp3`.

Speakers are the tables' `client_id`, which is a hash already. CC0, but Mozilla wants its terms
accepted first, so nothing is downloaded.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from hubert_pretrain.corpora import common
from hubert_pretrain.data.audio import is_audio
from hubert_pretrain.data.source import SourceUtterance
from hubert_pretrain.errors import ConfigError, DataError

_LAYOUT = (
    "<root>/<language>/{train,dev,test,validated,other,...}.tsv and <root>/<language>/clips/*.mp3"
)
_WIDE = {"validated", "other", "invalidated"}
"""Tables that hold, or may hold, clips and speakers of the others."""
_COLUMNS = ("client_id", "path", "sentence")
_SPEAKER_LENGTH = 32
"""Hexadecimal digits kept of `client_id` (128 of them): 128 bits tell all speakers apart."""


class CommonVoice:
    """Any tables of any languages of a Common Voice release."""

    OBTAIN = "commonvoice.mozilla.org, after accepting its terms"

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
        """Nothing is read until `utterances`.

        Args:
            root: the folder of a release (`cv-corpus-*`), which holds a folder for each language,
            or the one above it. languages: e.g. ["de", "en"]. train: tables for training. Of
            `validated`, `other` and `invalidated`, clips and speakers that `valid` and `test` hold
            are left
                out, so that nothing leaks; `validated` holds `train` already.
            valid: tables for validation. test: tables for testing. label: a column for the class
            label, e.g. "locale" (the language), "accents", "gender"; None: no labels.
        """
        self.root = Path(root).expanduser().absolute()
        self.languages = list(languages)
        self.tables = {"train": list(train), "valid": list(valid), "test": list(test)}
        self.label = label
        if {"train", "validated"} <= set(train):
            raise ConfigError(
                f"data.corpus.train={list(train)}: 'validated' holds 'train' already; name one of them"
            )

    def utterances(self, folder: Path) -> Iterator[SourceUtterance]:
        """Every clip of the chosen tables. Raises DataError for a missing table, column or clip."""
        common.existing_root(self.root, _LAYOUT, self.OBTAIN)
        for language in self.languages:
            home = self._home(language)
            held_out: set[str] = set()
            for split in (
                "valid",
                "test",
                "train",
            ):  # what is held out is known before the training tables are read
                for table in self.tables[split]:
                    for utterance in self._table(home, table, split):
                        if (
                            split == "train"
                            and table in _WIDE
                            and {utterance.id, utterance.speaker} & held_out
                        ):
                            continue
                        if split != "train":
                            held_out |= {utterance.id, utterance.speaker} - {""}
                        yield utterance

    def _home(self, language: str) -> Path:
        places = [
            self.root / language,
            *(
                release / language
                for release in common.folders_in(self.root)
                if "cv-corpus" in release.name
            ),
        ]
        if self.root.name == language:
            places.append(self.root)
        found = [place for place in places if (place / "clips").is_dir()]
        if len(found) > 1:
            raise DataError(
                f"{self.root}: holds {found[0]} and {found[1]}; set data.root to the folder of one release"
            )
        return found[0] if found else common.existing(self.root / language, _LAYOUT)

    def _table(self, home: Path, table: str, split: str) -> Iterator[SourceUtterance]:
        path = common.existing(home / f"{table}.tsv", _LAYOUT)
        for place, row in common.read_table(
            path, [*_COLUMNS, *([self.label] if self.label else [])]
        ):
            name = (
                row["path"] if is_audio(row["path"]) else f"{row['path']}.mp3"
            )  # releases of 2019 leave the suffix out
            clip = common.existing_audio(home / "clips" / name, place)
            yield SourceUtterance(
                id=f"{home.name}/{clip.stem}",
                path=clip,
                split=split,
                speaker=row["client_id"][:_SPEAKER_LENGTH],
                text=row["sentence"],
                label=row[self.label] if self.label else "",
            )
