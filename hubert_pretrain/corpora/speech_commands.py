"""Speech Commands (Warden 2018): 105,829 recordings of one of 35 words each (v0.02), or 64,727 of
one of 30 (v0.01). CC BY 4.0.

Layout: `<word>/<speaker>_nohash_<n>.wav`, and lists of the recordings for validation and testing.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal, get_args

from hubert_pretrain.corpora import common
from hubert_pretrain.corpora.download.archives import Archive, fetch_all
from hubert_pretrain.data import audio
from hubert_pretrain.data.audio_files import audio_in
from hubert_pretrain.data.source import SourceUtterance
from hubert_pretrain.errors import ConfigError, DataError
from hubert_pretrain.frames import SAMPLE_RATE

_LAYOUT = "<root>/{validation_list.txt,testing_list.txt} and <root>/<word>/<speaker>_nohash_<n>.wav"
_URL = "https://storage.googleapis.com/download.tensorflow.org/data"
Version = Literal["v0.02", "v0.01"]
_CHECKSUMS = {  # torchaudio's
    "v0.02": "sha256:af14739ee7dc311471de98f5f9d2c9191b18aedfe957f4a6ff791c709868ff58",
    "v0.01": "sha256:743935421bb51cccdb6bdd152e04c5c70274e935c82119ad7faeec31780d811d",
}

TEN_WORDS = ("yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go")
SILENCE = "_silence_"
UNKNOWN = "_unknown_"
_NOISE = "_background_noise_"
_NOISE_SPLITS = (("train", 0.8), ("valid", 0.9), ("test", 1.0))
"""Split -> the share of a noise recording at which it ends. Splits are adjacent and do not
overlap.
"""


class SpeechCommands:
    """All words, or the 12 classes of SUPERB and of the paper: ten words, `_unknown_` for the
    others, and `_silence_` from the background noises.
    """

    AVAILABLE_FROM = "download.tensorflow.org, or data.download=true (2.4 GB)"

    def __init__(
        self,
        *,
        root: str,
        classes: int = 35,
        official_test: bool = False,
        version: Version = "v0.02",
    ) -> None:
        """No file is read before `utterances` is called.

        Args:
            root: folder of the words, or the folder above, with `speech_commands_v0.02/` in it.
            classes: 35 (all words: 30 in v0.01) or 12.
            official_test: test on `speech_commands_test_set_v0.02` beside that folder, the balanced
                test set of 12 classes, instead of testing_list.txt (which stays out of train).
            version: of the corpus and of that test set; SUPERB has v0.01.
        """
        common.check_choice("version", version, get_args(Version))
        if classes not in (35, 12):
            raise ConfigError(f"data.corpus.classes={classes}: expected 35 or 12")
        if official_test and classes != 12:
            raise ConfigError(
                "data.corpus.official_test=true: that test set has 12 classes; "
                "add data.corpus.classes=12"
            )
        self.root = Path(root).expanduser().absolute()
        self.checksum = _CHECKSUMS[version]
        self.home = f"speech_commands_{version}"
        self.test_home = f"speech_commands_test_set_{version}"
        self.classes = classes
        self.official_test = official_test
        self.splits = ("train", "valid") if official_test else common.SPLITS

    def download(self, mirror: str | None = None) -> None:
        """Fetches the recordings, and the official test set when it is used."""
        has_recordings = (self.root / "testing_list.txt").is_file()
        archives = []
        if not has_recordings:
            recordings = Archive(
                url=f"{_URL}/{self.home}.tar.gz",
                provides=f"{self.home}/testing_list.txt",
                into=self.home,
                checksum=self.checksum,
            )
            archives.append(recordings)
        if self.official_test:
            test_set = Archive(
                url=f"{_URL}/{self.test_home}.tar.gz",
                provides=f"{self.test_home}/{SILENCE}",
                into=self.test_home,
            )
            archives.append(test_set)
        is_home = has_recordings or self.root.name == self.home
        fetch_all(archives, self.root.parent if is_home else self.root, mirror)

    def utterances(self, folder: Path) -> Iterator[SourceUtterance]:
        """Every recording. Raises DataError for missing lists and folders."""
        home = common.find_root(self.root, _LAYOUT, self.AVAILABLE_FROM, inside=[self.home])
        splits = {
            line: split
            for split, name in (("valid", "validation_list.txt"), ("test", "testing_list.txt"))
            for _, line in common.read_lines(common.require(home / name, _LAYOUT))
        }
        words = [word for word in common.subfolders(home) if not word.name.startswith("_")]
        if not words:
            raise DataError(
                f"{home}: no folders of words in it; expected {_LAYOUT}, unpack the corpus again"
            )
        for word in words:
            for path in audio_in(word):
                split = splits.get(f"{word.name}/{path.name}", "train")
                if split in self.splits:
                    yield _utterance(path, split, self._label(word.name), word.name)
        if self.classes == 12:
            for noise in audio_in(common.require(home / _NOISE, _LAYOUT)):
                for utterance in _silence(noise):
                    if utterance.split in self.splits:
                        yield utterance
        if self.official_test:
            yield from _official_test(home.parent / self.test_home)

    def _label(self, word: str) -> str:
        return word if self.classes == 35 or word in TEN_WORDS else UNKNOWN


def _utterance(path: Path, split: str, label: str, text: str, prefix: str = "") -> SourceUtterance:
    speaker = path.name.partition("_nohash_")[0]
    return SourceUtterance(
        id=f"{prefix}{path.parent.name}/{path.stem}",
        path=path,
        split=split,
        speaker=speaker,
        label=label,
        text=text,
    )


def _silence(path: Path) -> Iterator[SourceUtterance]:
    """One-second segments of a noise recording."""
    count = audio.length(path) // SAMPLE_RATE
    for second in range(count):
        split = next(name for name, end in _NOISE_SPLITS if second < count * end)
        start = second * SAMPLE_RATE
        yield SourceUtterance(
            id=f"{_NOISE}/{path.stem}_{second:03d}",
            path=path,
            split=split,
            label=SILENCE,
            start=start,
            num_samples=SAMPLE_RATE,
        )


def _official_test(folder: Path) -> Iterator[SourceUtterance]:
    labels = (*TEN_WORDS, UNKNOWN, SILENCE)
    layout = f"{folder.name}/{{{','.join(labels)}}}/*.wav beside the folder of the words"
    for label in labels:
        text = label if label in TEN_WORDS else ""
        for path in audio_in(common.require(folder / label, layout)):
            yield _utterance(path, "test", label, text, prefix="test/")
