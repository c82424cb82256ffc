"""Speech Commands v0.02 (Warden 2018): 105,829 recordings of one of 35 words each,
`<word>/<speaker>_nohash_<n>.wav`. CC BY 4.0.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from hubert_pretrain.corpora import common
from hubert_pretrain.corpora.download.archives import Archive, fetch_all
from hubert_pretrain.data.audio import open_audio, resampled_length
from hubert_pretrain.data.source import SourceUtterance
from hubert_pretrain.errors import ConfigError, DataError
from hubert_pretrain.frames import SAMPLE_RATE

_NAME = "speech_commands_v0.02"
_TEST_NAME = "speech_commands_test_set_v0.02"
_LAYOUT = "<root>/{validation_list.txt,testing_list.txt} and <root>/<word>/<speaker>_nohash_<n>.wav"
_URL = "https://storage.googleapis.com/download.tensorflow.org/data"
_CHECKSUM = (
    "sha256:af14739ee7dc311471de98f5f9d2c9191b18aedfe957f4a6ff791c709868ff58"  # torchaudio's
)

TEN_WORDS = ("yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go")
SILENCE = "_silence_"
UNKNOWN = "_unknown_"
_NOISE = "_background_noise_"
_NOISE_SPLITS = (("train", 0.8), ("valid", 0.9), ("test", 1.0))
"""Where in a recording of noise each split ends: seconds of one split touch those of another, but
never overlap.
"""


class SpeechCommands:
    """The 35 words, or the 12 classes of SUPERB and of the paper: ten words, `_unknown_` for the
    others, `_silence_` from the noises.
    """

    OBTAIN = "download.tensorflow.org, or data.download=true (2.4 GB)"

    def __init__(self, *, root: str, classes: int = 35, official_test: bool = False) -> None:
        """Nothing is read until `utterances`.

        Args:
            root: the folder that holds the words, or the one above with `speech_commands_v0.02/` in
            it. classes: 35 or 12. official_test: test on `speech_commands_test_set_v0.02` beside
            that folder, the balanced test set of 12 classes, in place of
                testing_list.txt (which is left out of train all the same).
        """
        if classes not in (35, 12):
            raise ConfigError(f"data.corpus.classes={classes}: expected 35 or 12")
        if official_test and classes != 12:
            raise ConfigError(
                "data.corpus.official_test=true: that test set has 12 classes; add data.corpus.classes=12"
            )
        self.root = Path(root).expanduser().absolute()
        self.classes = classes
        self.official_test = official_test

    def download(self, mirror: str | None = None) -> None:
        """Fetches the recordings, and the official test set when it is used."""
        is_home = self.root.name == _NAME or (self.root / "testing_list.txt").is_file()
        wanted = []
        if not (self.root / "testing_list.txt").is_file():
            wanted.append(
                Archive(
                    url=f"{_URL}/{_NAME}.tar.gz",
                    brings=f"{_NAME}/testing_list.txt",
                    into=_NAME,
                    checksum=_CHECKSUM,
                )
            )
        if self.official_test:
            wanted.append(
                Archive(
                    url=f"{_URL}/{_TEST_NAME}.tar.gz",
                    brings=f"{_TEST_NAME}/{SILENCE}",
                    into=_TEST_NAME,
                )
            )
        fetch_all(wanted, self.root.parent if is_home else self.root, mirror)

    def utterances(self, folder: Path) -> Iterator[SourceUtterance]:
        """Every recording. Raises DataError for missing lists and folders."""
        home = common.existing_root(self.root, _LAYOUT, self.OBTAIN, inside=[_NAME])
        splits = {
            line: split
            for split, name in (("valid", "validation_list.txt"), ("test", "testing_list.txt"))
            for _, line in common.read_lines(common.existing(home / name, _LAYOUT))
        }
        words = [word for word in common.folders_in(home) if not word.name.startswith("_")]
        if not words:
            raise DataError(
                f"{home}: no folders of words in it; expected {_LAYOUT}, unpack the corpus again"
            )
        for word in words:
            for path in common.audio_in(word):
                split = splits.get(f"{word.name}/{path.name}", "train")
                if not (split == "test" and self.official_test):
                    yield _utterance(path, split, self._label(word.name), word.name)
        if self.classes == 12:
            for noise in common.audio_in(common.existing(home / _NOISE, _LAYOUT)):
                yield from (
                    utterance
                    for utterance in _silence(noise)
                    if not (utterance.split == "test" and self.official_test)
                )
        if self.official_test:
            yield from _official_test(home.parent / _TEST_NAME)

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
    """Seconds of a recording of noise, as places in it."""
    with open_audio(path) as file:
        count = resampled_length(file.frames, file.samplerate) // SAMPLE_RATE
    for second in range(count):
        split = next(name for name, end in _NOISE_SPLITS if second < count * end)
        start = second * SAMPLE_RATE
        id = f"{_NOISE}/{path.stem}_{second:03d}"
        yield SourceUtterance(
            id=id, path=path, split=split, label=SILENCE, start=start, num_samples=SAMPLE_RATE
        )


def _official_test(folder: Path) -> Iterator[SourceUtterance]:
    layout = f"{_TEST_NAME}/{{{','.join((*TEN_WORDS, UNKNOWN, SILENCE))}}}/*.wav beside {_NAME}"
    for label in (*TEN_WORDS, UNKNOWN, SILENCE):
        for path in common.audio_in(common.existing(folder / label, layout)):
            yield _utterance(
                path, "test", label, "" if label.startswith("_") else label, prefix="test/"
            )
