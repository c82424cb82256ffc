"""FSDD, the Free Spoken Digit Dataset (Jackson et al.): 3,000 spoken digits, six speakers, 8 kHz.
CC BY-SA 4.0.

`recordings/{digit}_{speaker}_{number}.wav`; numbers 0 to 4 of each digit and speaker are the test
set.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from hubert_pretrain.corpora import common
from hubert_pretrain.corpora.download.archives import Archive, fetch_all
from hubert_pretrain.data.source import SourceUtterance
from hubert_pretrain.errors import DataError

_LAYOUT = "<root>/recordings/{digit}_{speaker}_{number}.wav"
_VERSION = "1.0.10"
_FOLDER = f"free-spoken-digit-dataset-{_VERSION}"
_URL = (
    f"https://github.com/Jakobovski/free-spoken-digit-dataset/archive/refs/tags/v{_VERSION}.tar.gz"
)
_FILE = re.compile(r"(\d)_([^_]+)_(\d+)")
WORDS = ("ZERO", "ONE", "TWO", "THREE", "FOUR", "FIVE", "SIX", "SEVEN", "EIGHT", "NINE")
TEST_NUMBERS = 5
"""Recordings of each digit and speaker below this number are the test set."""


class Fsdd:
    """All digits. The label is the digit, the text its name."""

    OBTAIN = "github.com/Jakobovski/free-spoken-digit-dataset, or data.download=true (16 MB)"

    def __init__(self, *, root: str) -> None:
        """Nothing is read until `utterances`.

        Args:
            root: the folder with the recordings, or one above it (`recordings`,
            `free-spoken-digit-dataset-*`).
        """
        self.root = Path(root).expanduser().absolute()

    def download(self, mirror: str | None = None) -> None:
        """Fetches the published version, unless there are recordings."""
        if not (self.root / "recordings").is_dir():
            fetch_all([Archive(url=_URL, brings=f"{_FOLDER}/recordings")], self.root, mirror)

    def utterances(self, folder: Path) -> Iterator[SourceUtterance]:
        """Every recording. Raises DataError when there are none, or for a name that says no
        digit.
        """
        home = common.existing_root(
            self.root, _LAYOUT, self.OBTAIN, inside=[f"{_FOLDER}/recordings", "recordings"]
        )
        paths = common.audio_in(home)
        if not paths:
            raise DataError(
                f"{home}: no recordings in it; expected {_LAYOUT}, set data.root to the folder of the corpus"
            )
        for path in paths:
            match = _FILE.fullmatch(path.stem)
            if match is None:
                raise DataError(
                    f"{path}: its name says no digit, speaker and number; expected {_LAYOUT}, remove the file"
                )
            digit, speaker, number = match.groups()
            split = "test" if int(number) < TEST_NUMBERS else "train"
            yield SourceUtterance(
                id=path.stem,
                path=path,
                split=split,
                speaker=speaker,
                text=WORDS[int(digit)],
                label=digit,
            )
