"""TIMIT (Garofolo et al. 1993): 630 speakers of American English, ten sentences each, with
hand-made phone alignments.

`TRAIN/DR1/FCJF0/SA1.WAV` with `.PHN` and `.TXT` beside it, in capitals or not; .WAV is NIST SPHERE
or RIFF. Sold by the LDC.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from hubert_pretrain.corpora import common
from hubert_pretrain.data.alignment import Phones
from hubert_pretrain.data.audio import is_audio
from hubert_pretrain.data.source import SourceUtterance
from hubert_pretrain.errors import ConfigError, DataError
from hubert_pretrain.formats import intervals
from hubert_pretrain.formats.intervals import phones_of

_LAYOUT = "<root>/{TRAIN,TEST}/DR{1..8}/<speaker>/<sentence>.{WAV,PHN,TXT}, in capitals or not"


def _speakers(names: str) -> frozenset[str]:
    return frozenset(names.split())


CORE_TEST_SPEAKERS = _speakers(
    "mdab0 mwbt0 felc0 mtas1 mwew0 fpas0 mjmp0 mlnt0 fpkt0 mlll0 mtls0 fjlm0 "
    "mbpm0 mklt0 fnlp0 mcmj0 mjdh0 fmgd0 mgrt0 mnjm0 fdhc0 mjln0 mpam0 fmld0"
)
"""The core test set: two men and a woman of each dialect region (TIMIT's testset.doc)."""

VALID_SPEAKERS = _speakers(
    "faks0 fdac1 fjem0 mgwt0 mjar0 mmdb1 mmdm2 mpdf0 fcmh0 fkms0 mbdg0 mbwm0 mcsh0 fadg0 fdms0 fedw0 mgjf0 mglb0 mrtk0 mtaa0 mtdt0 mthc0 "
    "mwjg0 fnmr0 frew0 fsem0 mbns0 mmjr0 mdls0 mdlf0 mdvc0 mers0 fmah0 fdrw0 mrcs0 mrjm4 fcal1 mmwh0 fjsj0 majc0 mjsw0 mreb0 fgjd0 fjmg0 "
    "mroa0 mteb0 mjfc0 mrjr0 fmml0 mrws1"
)
"""50 of the other test speakers, which phone recognition holds out for validation (Halberstadt
1998; Kaldi's dev_spk.list).
"""

_FOLDED = {
    "aa": "ao",
    "ah": "ax ax-h",
    "er": "axr",
    "hh": "hv",
    "ih": "ix",
    "l": "el",
    "m": "em",
    "n": "en nx",
    "ng": "eng",
    "sh": "zh",
    "uw": "ux",
    "sil": "pcl tcl kcl bcl dcl gcl h# pau epi",
    "": "q",
}
FOLD_39 = {phone: folded for folded, phones in _FOLDED.items() for phone in phones.split()}
"""The 61 phones of the corpus -> the 39 of Lee and Hon (1989), where they differ; "" is left
out.
"""


class Timit:
    """All of TIMIT, with its phones as alignments."""

    OBTAIN = "the Linguistic Data Consortium, LDC93S1"

    def __init__(
        self, *, root: str, include_sa: bool = False, test: str = "core", phones: int = 61
    ) -> None:
        """Nothing is read until `utterances`.

        Args:
            root: the folder that holds TRAIN and TEST, or one above (`TIMIT`, `timit/TIMIT`,
            `data`). include_sa: whether the two sentences that everyone reads count. They are in
            train and test alike, so results leave them out. test: "core": 24 speakers; "full":
            every test speaker who is not held out for validation (118). phones: 61, as transcribed,
            or 39, folded as for scoring.
        """
        common.check_choice("test", test, ("core", "full"))
        if phones not in (61, 39):
            raise ConfigError(f"data.corpus.phones={phones}: expected 61 or 39")
        self.root = Path(root).expanduser().absolute()
        self.include_sa = include_sa
        self.test = test
        self.fold = FOLD_39 if phones == 39 else {}

    def utterances(self, folder: Path) -> Iterator[SourceUtterance]:
        """Every sentence of the chosen speakers. Raises DataError for missing folders and for audio
        without its phones or text.
        """
        common.existing_root(self.root, _LAYOUT, self.OBTAIN)
        home = self._home()
        for part in ("train", "test"):
            for region in common.folders_in(_child(home, part)):
                for speaker in common.folders_in(region):
                    if split := self._split(part, speaker.name.lower()):
                        yield from self._speaker(speaker, split)

    def _home(self) -> Path:
        """The folder with train and test in it: the root, or one up to two levels below."""
        places = [self.root]
        for _ in range(3):
            for place in places:
                if {"train", "test"} <= {path.name.lower() for path in common.folders_in(place)}:
                    return place
            places = [below for place in places for below in common.folders_in(place)]
        return self.root

    def _split(self, part: str, speaker: str) -> str:
        if part == "train":
            return "train"
        if speaker in VALID_SPEAKERS:
            return "valid"
        return "test" if self.test == "full" or speaker in CORE_TEST_SPEAKERS else ""

    def _speaker(self, speaker: Path, split: str) -> Iterator[SourceUtterance]:
        # One disc image has SA1.WAV (SPHERE) and SA1.WAV.wav (RIFF): the same sound, of which the
        # shorter name counts.
        files = {path.name.lower(): path for path in speaker.iterdir()}
        sentences = {
            name.partition(".")[0]: files[name]
            for name in sorted(files, key=len, reverse=True)
            if is_audio(name)
        }
        if not sentences:
            raise DataError(f"{speaker}: no audio; expected {_LAYOUT}, copy the corpus again")
        for sentence, path in sorted(sentences.items()):
            if sentence.startswith("sa") and not self.include_sa:
                continue
            phones, text = (
                _beside(path, files, f"{sentence}.{suffix}") for suffix in ("phn", "txt")
            )
            yield SourceUtterance(
                id=f"{speaker.name.lower()}-{sentence}",
                path=path,
                split=split,
                speaker=speaker.name.lower(),
                text=_read_text(text),
                phones=self._read_phones(phones),
            )

    def _read_phones(self, path: Path) -> Phones:
        folded = (
            (self.fold.get(phone, phone), start, end)
            for phone, start, end in intervals.read_phn(path)
        )
        return phones_of(folded, "keep", str(path))


def _child(home: Path, name: str) -> Path:
    """A folder by its name in small letters, whatever its case."""
    found = next((path for path in common.folders_in(home) if path.name.lower() == name), None)
    return found or common.existing(home / name.upper(), _LAYOUT)


def _beside(audio: Path, files: dict[str, Path], name: str) -> Path:
    if name not in files:
        raise DataError(
            f"{audio}: no {name.upper()} beside it; expected {_LAYOUT}, copy the corpus again"
        )
    return files[name]


def _read_text(path: Path) -> str:
    """The sentence of a `.TXT`: `<first sample> <last sample> <words>`."""
    for _, line in common.read_lines(path):
        words = line.split()
        if len(words) > 2 and words[0].isdigit() and words[1].isdigit():
            return " ".join(words[2:])
    raise DataError(f"{path}: expected '<start> <end> <words>'; copy it again")
