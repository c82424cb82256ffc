"""VoxPopuli (Wang et al. 2021): speeches in the European Parliament, 400,000 hours in 23 languages,
1,800 of them transcribed in 16. CC0.

Layout: `unlabelled_data/<language>/<year>/*.ogg` and `transcribed_data/<language>/` (`asr_*.tsv`
and `<year>/*.ogg`), which the publisher's scripts cut from the raw recordings. Raw recordings can
also be used without the scripts: the publisher's table of segments cuts them in the manifest, and
no audio is copied.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from hubert_pretrain.corpora import common
from hubert_pretrain.corpora.download.archives import Archive, fetch_all
from hubert_pretrain.data.audio_files import audio_in
from hubert_pretrain.data.source import SourceUtterance
from hubert_pretrain.errors import ConfigError
from hubert_pretrain.formats.text import parse_number
from hubert_pretrain.frames import samples

_LAYOUTS = {
    "raw": "<root>/raw_audios/<language>/<year>/<event>.ogg and <root>/unlabelled_v2.tsv.gz",
    "unlabelled": "<root>/unlabelled_data/<language>/<year>/*.ogg",
    "transcribed": (
        "<root>/transcribed_data/<language>/asr_{train,dev,test}.tsv and <year>/<id>.ogg"
    ),
}
"""Part of the corpus -> its layout."""
_URL = "https://dl.fbaipublicfiles.com/voxpopuli"
# fmt: off
LANGUAGES = (
    "en", "de", "fr", "es", "pl", "it", "ro", "hu", "cs", "nl", "fi", "hr",
    "sk", "sl", "et", "lt", "pt", "bg", "el", "lv", "mt", "sv", "da",
)
# fmt: on
YEARS = tuple(range(2009, 2021))
SEGMENTS = "unlabelled_v2.tsv.gz"
"""The publisher's table of all segments."""
_SEGMENT_COLUMNS = ("event_id", "segment_no", "start", "end")
"""Columns of that table; times in seconds."""
_TABLES = {"train": "asr_train.tsv", "valid": "asr_dev.tsv", "test": "asr_test.tsv"}
"""Split -> table of its transcribed utterances."""


class VoxPopuli:
    """Unlabelled or transcribed speech of any languages. The label is the language."""

    AVAILABLE_FROM = (
        "github.com/facebookresearch/voxpopuli; "
        "data.download=true fetches raw recordings, for data.corpus.part=raw"
    )

    def __init__(
        self,
        *,
        root: str,
        languages: Sequence[str],
        part: str = "unlabelled",
        years: Sequence[int] = YEARS,
        text: str = "normalized_text",
    ) -> None:
        """No file is read before `utterances` is called.

        Args:
            root: folder with `raw_audios`, `unlabelled_data` or `transcribed_data`.
            languages: e.g. ["en", "de"].
            part: "unlabelled": cut by the publisher's get_unlabelled_data; "raw": the published
                recordings, cut by the table of segments without copying (Ogg cannot seek to an
                exact sample: write shards before training); "transcribed": cut by the publisher's
                get_asr_data.
            years: years of the recordings, for raw and unlabelled; also those to download.
            text: column of asr_*.tsv with the transcript, normalized_text or raw_text.
        """
        common.check_choice("part", part, tuple(_LAYOUTS))
        for language in languages:
            common.check_choice("languages", language, LANGUAGES)
        self.root = Path(root).expanduser().absolute()
        self.languages = list(languages)
        self.part = part
        self.years = [str(year) for year in years]
        self.text = text

    def download(self, mirror: str | None = None) -> None:
        """Fetches raw recordings and the table of segments. Raises ConfigError for the parts that
        need the publisher's scripts.
        """
        if self.part != "raw":
            raise ConfigError(
                f"data.corpus.part={self.part}: only raw is downloaded, "
                f"the publisher's scripts cut the others: {self.AVAILABLE_FROM}"
            )
        archives = [Archive(url=f"{_URL}/annotations/{SEGMENTS}", provides=SEGMENTS)]
        for language in self.languages:
            for year in self.years:
                recordings = Archive(
                    url=f"{_URL}/audios/{language}_{year}.tar",
                    provides=f"raw_audios/{language}/{year}",
                    into="raw_audios",
                )
                archives.append(recordings)
        fetch_all(archives, self.root, mirror)

    def utterances(self, folder: Path) -> Iterator[SourceUtterance]:
        """Every segment. Raises DataError for missing folders, tables and columns."""
        layout = _LAYOUTS[self.part]
        common.find_root(self.root, layout, self.AVAILABLE_FROM)
        if self.part == "raw":
            yield from self._raw(layout)
            return
        for language in self.languages:
            if self.part == "transcribed":
                yield from self._transcribed(language, layout)
            else:
                yield from self._unlabelled(language, layout)

    def _unlabelled(self, language: str, layout: str) -> Iterator[SourceUtterance]:
        home = common.require(self.root / "unlabelled_data" / language, layout)
        for folder in common.subfolders(home):
            if folder.name[:4] in self.years:
                for path in audio_in(folder):
                    yield SourceUtterance(id=path.stem, path=path, split="train", label=language)

    def _transcribed(self, language: str, layout: str) -> Iterator[SourceUtterance]:
        home = common.require(self.root / "transcribed_data" / language, layout)
        for split, name in _TABLES.items():
            table = common.require(home / name, layout)
            for _, row in common.read_table(table, ["id", self.text, "speaker_id"]):
                year = row["id"][:4]
                yield SourceUtterance(
                    id=row["id"],
                    path=home / year / f"{row['id']}.ogg",
                    split=split,
                    speaker=row["speaker_id"],
                    text=row[self.text],
                    label=language,
                )

    def _raw(self, layout: str) -> Iterator[SourceUtterance]:
        table = common.require(self.root / SEGMENTS, layout)
        recordings = self.root / "raw_audios"
        for language in sorted(self.languages):
            for year in sorted(self.years):
                common.require(recordings / language / year, layout)
        for place, row in common.read_table(table, _SEGMENT_COLUMNS):
            event = row["event_id"]  # e.g. 20190401-0900-PLENARY-3_en
            year = event[:4]
            language = event.rpartition("_")[2]
            if language not in self.languages or year not in self.years:
                continue
            start = samples(parse_number(row["start"], place, "start"))
            end = samples(parse_number(row["end"], place, "end"))
            yield SourceUtterance(
                id=f"{event}_{row['segment_no']}",
                path=recordings / language / year / f"{event}.ogg",
                split="train",
                label=language,
                start=start,
                num_samples=end - start,
            )
