"""VoxCeleb1 (Nagrani et al. 2017): 153,516 utterances of 1,251 celebrities from videos.

Layout: `wav/<speaker>/<video>/<n>.wav`, and `iden_split.txt` with the splits of speaker
identification (`1 id10003/na8-QEFmj44/00003.wav`), or `veri_test.txt` with the trials of speaker
verification (`1 id10270/x6uYqmx31kE/00001.wav id10270/8jEAjG6SegY/00008.wav`). Its publisher asks
for a form.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal, get_args

from hubert_pretrain.corpora import common
from hubert_pretrain.data.audio_files import all_audio_below
from hubert_pretrain.data.source import SourceUtterance
from hubert_pretrain.errors import DataError
from hubert_pretrain.formats.trials import read_trials

_LAYOUT = (
    "<root>/wav/<speaker>/<video>/<n>.wav (dev and test archives in one folder) "
    "and <root>/iden_split.txt"
)
Splits = Literal["identification", "verification"]
_TRIALS_LAYOUT = (
    "<root>/wav/<speaker>/<video>/<n>.wav (dev and test archives in one folder) "
    "and <root>/veri_test.txt"
)
_SPLITS = {"1": "train", "2": "valid", "3": "test"}
"""Number in iden_split.txt -> split."""


class VoxCeleb1:
    """All utterances in the splits of speaker identification, with every speaker in each split; or
    those of verification: test has the utterances of the trials, train all utterances of the other
    speakers. The label is the speaker.
    """

    AVAILABLE_FROM = "the Visual Geometry Group, robots.ox.ac.uk/~vgg/data/voxceleb"

    def __init__(self, *, root: str, splits: Splits = "identification") -> None:
        """No file is read before `utterances` is called.

        Args:
            root: folder with `wav`, and `iden_split.txt` or `veri_test.txt`.
            splits: identification or verification.
        """
        common.check_choice("splits", splits, get_args(Splits))
        self.root = Path(root).expanduser().absolute()
        self.splits = splits

    def utterances(self, folder: Path) -> Iterator[SourceUtterance]:
        """Every utterance of the splits. Raises DataError for a missing list, and for a line of
        another form.
        """
        if self.splits == "verification":
            yield from self._verification()
        else:
            yield from self._identification()

    def _verification(self) -> Iterator[SourceUtterance]:
        common.find_root(self.root, _TRIALS_LAYOUT, self.AVAILABLE_FROM)
        wavs = common.require(self.root / "wav", _TRIALS_LAYOUT)
        trials = read_trials(common.require(self.root / "veri_test.txt", _TRIALS_LAYOUT))
        tested = sorted({name for trial in trials for name in (trial.first, trial.second)})
        of_test = {name.partition("/")[0] for name in tested}
        for name in tested:
            yield _utterance(wavs, name, "test")
        for speaker in common.subfolders(wavs):
            if speaker.name not in of_test:
                for path in all_audio_below(speaker):
                    yield _utterance(wavs, path.relative_to(wavs).as_posix(), "train")

    def _identification(self) -> Iterator[SourceUtterance]:
        common.find_root(self.root, _LAYOUT, self.AVAILABLE_FROM)
        wavs = common.require(self.root / "wav", _LAYOUT)
        table = common.require(self.root / "iden_split.txt", _LAYOUT)
        for number, line in common.read_lines(table):
            split, _, name = line.partition(" ")
            _, _, recording = name.strip().partition("/")
            if split not in _SPLITS or "/" not in recording:
                raise DataError(
                    f"{table}: line {number} is {line!r}, "
                    "expected '1, 2 or 3 <speaker>/<video>/<n>.wav'; fetch the list again"
                )
            yield _utterance(wavs, name.strip(), _SPLITS[split])


def _utterance(wavs: Path, name: str, split: str) -> SourceUtterance:
    """`name`: <speaker>/<video>/<n>.wav."""
    speaker = name.partition("/")[0]
    return SourceUtterance(
        id=Path(name).with_suffix("").as_posix(),
        path=wavs / name,
        split=split,
        speaker=speaker,
        label=speaker,
    )
