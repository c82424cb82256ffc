"""VoxCeleb1 (Nagrani et al. 2017): 153,516 utterances of 1,251 celebrities from videos.

Layout: `wav/<speaker>/<video>/<n>.wav`, and `iden_split.txt` with the splits of speaker
identification (`1 id10003/na8-QEFmj44/00003.wav`). Its publisher asks for a form.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from hubert_pretrain.corpora import common
from hubert_pretrain.data.source import SourceUtterance
from hubert_pretrain.errors import DataError

_LAYOUT = (
    "<root>/wav/<speaker>/<video>/<n>.wav (dev and test archives in one folder) "
    "and <root>/iden_split.txt"
)
_SPLITS = {"1": "train", "2": "valid", "3": "test"}
"""Number in iden_split.txt -> split."""


class VoxCeleb1:
    """All utterances in the splits of speaker identification: every speaker is in each split. The
    label is the speaker.
    """

    AVAILABLE_FROM = "the Visual Geometry Group, robots.ox.ac.uk/~vgg/data/voxceleb"

    def __init__(self, *, root: str) -> None:
        """No file is read before `utterances` is called.

        Args:
            root: folder with `wav` and `iden_split.txt`.
        """
        self.root = Path(root).expanduser().absolute()

    def utterances(self, folder: Path) -> Iterator[SourceUtterance]:
        """Every utterance of the list. Raises DataError for a missing list, and for a line of
        another form.
        """
        common.find_root(self.root, _LAYOUT, self.AVAILABLE_FROM)
        wavs = common.require(self.root / "wav", _LAYOUT)
        table = common.require(self.root / "iden_split.txt", _LAYOUT)
        for number, line in common.read_lines(table):
            split, _, name = line.partition(" ")
            speaker, _, recording = name.strip().partition("/")
            if split not in _SPLITS or "/" not in recording:
                raise DataError(
                    f"{table}: line {number} is {line!r}, "
                    "expected '1, 2 or 3 <speaker>/<video>/<n>.wav'; fetch the list again"
                )
            yield SourceUtterance(
                id=f"{speaker}/{Path(recording).with_suffix('').as_posix()}",
                path=wavs / speaker / recording,
                split=_SPLITS[split],
                speaker=speaker,
                label=speaker,
            )
