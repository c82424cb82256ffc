"""VoxPopuli (Wang et al. 2021): speeches in the European Parliament, 400,000 hours in 23 languages,
1,800 of them transcribed in 16.

Its own scripts cut the raw recordings into `unlabelled_data/<language>/<year>/*.ogg` and
`transcribed_data/<language>/` (`asr_*.tsv` and `<year>/*.ogg`). Without them its table of segments
does it: pieces are then places in the raw recordings. CC0.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from hubert_pretrain.corpora import common
from hubert_pretrain.corpora.download.archives import Archive, fetch_all
from hubert_pretrain.data.source import SourceUtterance
from hubert_pretrain.errors import ConfigError
from hubert_pretrain.formats.text import number_of, seconds_to_samples

_CUT = "<root>/unlabelled_data/<language>/<year>/*.ogg"
_RAW = "<root>/raw_audios/<language>/<year>/<event>.ogg and <root>/unlabelled_v2.tsv.gz"
_TRANSCRIBED = "<root>/transcribed_data/<language>/asr_{train,dev,test}.tsv and <year>/<id>.ogg"
_URL = "https://dl.fbaipublicfiles.com/voxpopuli"
LANGUAGES = (
    *("en", "de", "fr", "es", "pl", "it", "ro", "hu", "cs", "nl", "fi", "hr"),
    *("sk", "sl", "et", "lt", "pt", "bg", "el", "lv", "mt", "sv", "da"),
)
YEARS = tuple(range(2009, 2021))
SEGMENTS = "unlabelled_v2.tsv.gz"
"""The publisher's table of all segments."""
_SEGMENT = ("event_id", "segment_no", "start", "end")
"""Its columns; times in seconds."""


class VoxPopuli:
    """Unlabelled or transcribed speech of any languages. The label of an utterance is its
    language.
    """

    OBTAIN = "github.com/facebookresearch/voxpopuli; data.download=true fetches raw recordings, for data.corpus.part=raw"
    PARTS = ("raw", "unlabelled", "transcribed")

    def __init__(
        self,
        *,
        root: str,
        languages: Sequence[str],
        part: str = "unlabelled",
        years: Sequence[int] = YEARS,
        text: str = "normalized_text",
    ) -> None:
        """Nothing is read until `utterances`.

        Args:
            root: the folder that holds `raw_audios`, `unlabelled_data` or `transcribed_data`.
            languages: e.g. ["en", "de"]. part: "unlabelled": what the publisher's
            get_unlabelled_data cut; "raw": the recordings as they are published, cut by its table
                of segments without copying (Ogg cannot be sought exactly: write shards of it before
                training); "transcribed": what its get_asr_data cut.
            years: of the recordings, for raw and unlabelled; also what is downloaded.
            text: column of asr_*.tsv with the transcript, normalized_text or raw_text.
        """
        common.check_choice("part", part, self.PARTS)
        for language in languages:
            common.check_choice("languages", language, LANGUAGES)
        self.root = Path(root).expanduser().absolute()
        self.languages = list(languages)
        self.part = part
        self.years = list(years)
        self.text = text

    def download(self, mirror: str | None = None) -> None:
        """Fetches raw recordings and the table of segments. Raises ConfigError for the parts that
        need the publisher's scripts.
        """
        if self.part != "raw":
            raise ConfigError(
                f"data.corpus.part={self.part}: only raw is downloaded, the publisher's scripts cut the others: {self.OBTAIN}"
            )
        wanted = [Archive(url=f"{_URL}/annotations/{SEGMENTS}", brings=SEGMENTS)]
        wanted += [
            Archive(
                url=f"{_URL}/audios/{language}_{year}.tar",
                brings=f"raw_audios/{language}/{year}",
                into="raw_audios",
            )
            for language in self.languages
            for year in self.years
        ]
        fetch_all(wanted, self.root, mirror)

    def utterances(self, folder: Path) -> Iterator[SourceUtterance]:
        """Every segment. Raises DataError for missing folders, tables, columns and audio."""
        layout = {"raw": _RAW, "unlabelled": _CUT, "transcribed": _TRANSCRIBED}[self.part]
        common.existing_root(self.root, layout, self.OBTAIN)
        if self.part == "raw":
            yield from self._raw()
            return
        for language in self.languages:
            yield from (
                self._transcribed(language)
                if self.part == "transcribed"
                else self._unlabelled(language)
            )

    def _unlabelled(self, language: str) -> Iterator[SourceUtterance]:
        home = common.existing(self.root / "unlabelled_data" / language, _CUT)
        for year in common.folders_in(home):
            if year.name[:4] in {str(each) for each in self.years}:
                for path in common.audio_in(year):
                    yield SourceUtterance(id=path.stem, path=path, split="train", label=language)

    def _transcribed(self, language: str) -> Iterator[SourceUtterance]:
        home = common.existing(self.root / "transcribed_data" / language, _TRANSCRIBED)
        for name, split in (("train", "train"), ("dev", "valid"), ("test", "test")):
            table = common.existing(home / f"asr_{name}.tsv", _TRANSCRIBED)
            for place, row in common.read_table(table, ["id", self.text, "speaker_id"]):
                path = common.existing_audio(home / row["id"][:4] / f"{row['id']}.ogg", place)
                yield SourceUtterance(
                    id=row["id"],
                    path=path,
                    split=split,
                    speaker=row["speaker_id"],
                    text=row[self.text],
                    label=language,
                )

    def _raw(self) -> Iterator[SourceUtterance]:
        table = common.existing(self.root / SEGMENTS, _RAW)
        wanted = {(language, str(year)) for language in self.languages for year in self.years}
        for language, year in sorted(wanted):
            common.existing(self.root / "raw_audios" / language / year, _RAW)
        for place, row in common.read_table(table, _SEGMENT):
            language = row["event_id"].rpartition("_")[2]
            year = row["event_id"][:4]
            if (language, year) not in wanted:
                continue
            path = common.existing_audio(
                self.root / "raw_audios" / language / year / f"{row['event_id']}.ogg", place
            )
            first, last = (
                seconds_to_samples(number_of(row[name], place, name)) for name in ("start", "end")
            )
            yield SourceUtterance(
                id=f"{row['event_id']}_{row['segment_no']}",
                path=path,
                split="train",
                label=language,
                start=first,
                num_samples=last - first,
            )
