"""VoxCeleb1 (Nagrani et al. 2017): 153,516 utterances of 1,251 celebrities from videos,
`wav/<speaker>/<video>/<n>.wav`.

`iden_split.txt` says which is for what in speaker identification: `1
id10003/na8-QEFmj44/00003.wav`. Its publisher asks for a form.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from hubert_pretrain.corpora import common
from hubert_pretrain.data.source import SourceUtterance
from hubert_pretrain.errors import DataError

_LAYOUT = "<root>/wav/<speaker>/<video>/<n>.wav (dev and test archives in one folder) and <root>/iden_split.txt"
_SPLITS = {"1": "train", "2": "valid", "3": "test"}


class VoxCeleb1:
    """All utterances in the splits of speaker identification: every speaker is in each of them, and
    is the label.
    """

    OBTAIN = "the Visual Geometry Group, robots.ox.ac.uk/~vgg/data/voxceleb"

    def __init__(self, *, root: str) -> None:
        """Nothing is read until `utterances`.

        Args:
            root: the folder that holds `wav` and `iden_split.txt`.
        """
        self.root = Path(root).expanduser().absolute()

    def utterances(self, folder: Path) -> Iterator[SourceUtterance]:
        """Every utterance that the list names. Raises DataError for a missing list or audio, and
        for a line that is none.
        """
        common.existing_root(self.root, _LAYOUT, self.OBTAIN)
        wavs = common.existing(self.root / "wav", _LAYOUT)
        table = common.existing(self.root / "iden_split.txt", _LAYOUT)
        for number, line in common.read_lines(table):
            kind, _, name = line.partition(" ")
            speaker, _, rest = name.strip().partition("/")
            if kind not in _SPLITS or "/" not in rest:
                raise DataError(
                    f"{table}: line {number} is {line!r}, expected '1, 2 or 3 <speaker>/<video>/<n>.wav'; fetch the list again"
                )
            path = common.existing_audio(wavs / speaker / rest, f"{table}, line {number},")
            id = f"{speaker}/{Path(rest).with_suffix('').as_posix()}"
            yield SourceUtterance(
                id=id, path=path, split=_SPLITS[kind], speaker=speaker, label=speaker
            )
