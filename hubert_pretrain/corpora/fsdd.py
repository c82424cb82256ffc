"""FSDD, the Free Spoken Digit Dataset (Jackson et al.): 3,000 spoken digits, six speakers, 8 kHz.
CC BY-SA 4.0.

Layout: `recordings/{digit}_{speaker}_{number}.wav`; numbers 0 to 4 of each digit and speaker are
the test set.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from hubert_pretrain.corpora import common
from hubert_pretrain.corpora.download.archives import Archive, fetch_all
from hubert_pretrain.data.audio_files import audio_in
from hubert_pretrain.data.source import SourceUtterance
from hubert_pretrain.errors import DataError

_LAYOUT = "<root>/recordings/{digit}_{speaker}_{number}.wav"
_VERSION = "1.0.10"
_FOLDER = f"free-spoken-digit-dataset-{_VERSION}"
_URL = (
    f"https://github.com/Jakobovski/free-spoken-digit-dataset/archive/refs/tags/v{_VERSION}.tar.gz"
)
_FILE_NAME = re.compile(r"(\d)_([^_]+)_(\d+)")
WORDS = ("ZERO", "ONE", "TWO", "THREE", "FOUR", "FIVE", "SIX", "SEVEN", "EIGHT", "NINE")
TEST_NUMBERS = 5
"""Recordings of each digit and speaker with a number below this are the test set."""


class Fsdd:
    """All digits. The label is the digit, the text its name."""

    AVAILABLE_FROM = (
        "github.com/Jakobovski/free-spoken-digit-dataset, or data.download=true (16 MB)"
    )

    def __init__(self, *, root: str) -> None:
        """No file is read before `utterances` is called.

        Args:
            root: folder with the recordings, or a folder above (`recordings`,
                `free-spoken-digit-dataset-*`).
        """
        self.root = Path(root).expanduser().absolute()

    def download(self, mirror: str | None = None) -> None:
        """Fetches the published version, unless there are recordings."""
        if not (self.root / "recordings").is_dir():
            archive = Archive(url=_URL, provides=f"{_FOLDER}/recordings")
            fetch_all([archive], self.root, mirror)

    def utterances(self, folder: Path) -> Iterator[SourceUtterance]:
        """Every recording. Raises DataError without recordings, and for file names of another
        form.
        """
        home = common.find_root(
            self.root,
            _LAYOUT,
            self.AVAILABLE_FROM,
            inside=[f"{_FOLDER}/recordings", "recordings"],
        )
        paths = audio_in(home)
        if not paths:
            raise DataError(
                f"{home}: no recordings in it; expected {_LAYOUT}, "
                "set data.root to the folder of the corpus"
            )
        for path in paths:
            match = _FILE_NAME.fullmatch(path.stem)
            if match is None:
                raise DataError(
                    f"{path}: its name has no digit, speaker and number; "
                    f"expected {_LAYOUT}, remove the file"
                )
            digit, speaker, number = match.groups()
            yield SourceUtterance(
                id=path.stem,
                path=path,
                split="test" if int(number) < TEST_NUMBERS else "train",
                speaker=speaker,
                text=WORDS[int(digit)],
                label=digit,
            )
