"""TIMIT (Garofolo et al. 1993): 630 speakers of American English, ten sentences each, with
hand-made phone alignments. Sold by the LDC.

Layout: `TRAIN/DR1/FCJF0/SA1.WAV` with `.PHN` and `.TXT` beside it, in capitals or not; .WAV is NIST
SPHERE or RIFF.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from hubert_pretrain.corpora import common
from hubert_pretrain.data.alignment import Phones
from hubert_pretrain.data.audio_files import is_audio
from hubert_pretrain.data.source import SourceUtterance
from hubert_pretrain.errors import ConfigError, DataError
from hubert_pretrain.formats.intervals import phones_of, read_phn

_LAYOUT = "<root>/{TRAIN,TEST}/DR{1..8}/<speaker>/<sentence>.{WAV,PHN,TXT}, in capitals or not"


def _speakers(names: str) -> frozenset[str]:
    return frozenset(names.split())


CORE_TEST_SPEAKERS = _speakers(
    "mdab0 mwbt0 felc0 mtas1 mwew0 fpas0 mjmp0 mlnt0 fpkt0 mlll0 mtls0 fjlm0 "
    "mbpm0 mklt0 fnlp0 mcmj0 mjdh0 fmgd0 mgrt0 mnjm0 fdhc0 mjln0 mpam0 fmld0"
)
"""The core test set: two men and one woman of each dialect region (TIMIT's testset.doc)."""

VALID_SPEAKERS = _speakers(
    "faks0 fdac1 fjem0 mgwt0 mjar0 mmdb1 mmdm2 mpdf0 fcmh0 fkms0 mbdg0 mbwm0 mcsh0 "
    "fadg0 fdms0 fedw0 mgjf0 mglb0 mrtk0 mtaa0 mtdt0 mthc0 mwjg0 fnmr0 frew0 fsem0 "
    "mbns0 mmjr0 mdls0 mdlf0 mdvc0 mers0 fmah0 fdrw0 mrcs0 mrjm4 fcal1 mmwh0 fjsj0 "
    "majc0 mjsw0 mreb0 fgjd0 fjmg0 mroa0 mteb0 mjfc0 mrjr0 fmml0 mrws1"
)
"""50 of the other test speakers, the usual validation set of phone recognition (Halberstadt 1998;
Kaldi's dev_spk.list).
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
"""The 61 phones of the corpus -> the 39 of Lee and Hon (1989), where they differ; "" is dropped."""


class Timit:
    """All of TIMIT, with its phones as alignments."""

    AVAILABLE_FROM = "the Linguistic Data Consortium, LDC93S1"

    def __init__(
        self, *, root: str, include_sa: bool = False, test: str = "core", phones: int = 61
    ) -> None:
        """No file is read before `utterances` is called.

        Args:
            root: folder with TRAIN and TEST, or a folder above (`TIMIT`, `timit/TIMIT`, `data`).
            include_sa: use the two sentences that every speaker reads (SA). They are in train and
                test, so published results leave them out.
            test: "core": 24 speakers; "full": all 118 test speakers outside the validation set.
            phones: 61, as transcribed, or 39, folded as for scoring.
        """
        common.check_choice("test", test, ("core", "full"))
        if phones not in (61, 39):
            raise ConfigError(f"data.corpus.phones={phones}: expected 61 or 39")
        self.root = Path(root).expanduser().absolute()
        self.include_sa = include_sa
        self.test = test
        self.fold = FOLD_39 if phones == 39 else {}

    def utterances(self, folder: Path) -> Iterator[SourceUtterance]:
        """Every sentence of the chosen speakers; those without phones or text have a fault. Raises
        DataError for missing folders.
        """
        common.find_root(self.root, _LAYOUT, self.AVAILABLE_FROM)
        home = self._home()
        for part in ("train", "test"):
            for region in common.subfolders(_child(home, part)):
                for speaker in common.subfolders(region):
                    split = self._split(part, speaker.name.lower())
                    if split:
                        yield from self._speaker(speaker, split)

    def _home(self) -> Path:
        """The folder with train and test in it: the root, or one up to two levels below."""
        places = [self.root]
        for _ in range(3):
            for place in places:
                if {"train", "test"} <= {path.name.lower() for path in common.subfolders(place)}:
                    return place
            places = [below for place in places for below in common.subfolders(place)]
        return self.root

    def _split(self, part: str, speaker: str) -> str:
        """Split of a speaker; "" when it is not used."""
        if part == "train":
            return "train"
        if speaker in VALID_SPEAKERS:
            return "valid"
        return "test" if self.test == "full" or speaker in CORE_TEST_SPEAKERS else ""

    def _speaker(self, speaker: Path, split: str) -> Iterator[SourceUtterance]:
        """The utterances of a speaker's folder."""
        name = speaker.name.lower()
        files = {path.name.lower(): path for path in speaker.iterdir()}
        # One disc image has SA1.WAV (SPHERE) and SA1.WAV.wav (RIFF) with the same sound: the
        # shorter name counts.
        sentences = {
            file.partition(".")[0]: files[file]
            for file in sorted(files, key=len, reverse=True)
            if is_audio(file)
        }
        if not sentences:
            raise DataError(f"{speaker}: no audio; expected {_LAYOUT}, copy the corpus again")
        for sentence, path in sorted(sentences.items()):
            if sentence.startswith("sa") and not self.include_sa:
                continue
            utterance = SourceUtterance(
                id=f"{name}-{sentence}", path=path, split=split, speaker=name
            )
            try:
                text = _read_text(_beside(path, files, sentence, ".TXT"))
                phones = self._read_phones(_beside(path, files, sentence, ".PHN"))
            except DataError as error:
                yield replace(utterance, fault=str(error).removeprefix(f"{path}: "))
                continue
            yield replace(utterance, text=text, phones=phones)

    def _read_phones(self, path: Path) -> Phones:
        folded = ((self.fold.get(phone, phone), start, end) for phone, start, end in read_phn(path))
        return phones_of(folded, "keep", str(path))


def _child(home: Path, name: str) -> Path:
    """A folder by its name in lower case."""
    for path in common.subfolders(home):
        if path.name.lower() == name:
            return path
    return common.require(home / name.upper(), _LAYOUT)


def _beside(audio: Path, files: dict[str, Path], sentence: str, suffix: str) -> Path:
    """The phones or text of a recording."""
    name = sentence + suffix.lower()
    if name not in files:
        raise DataError(
            f"{audio}: no {suffix} beside it; expected {_LAYOUT}, copy the corpus again"
        )
    return files[name]


def _read_text(path: Path) -> str:
    """The sentence of a `.TXT`: `<first sample> <last sample> <words>`."""
    for _, line in common.read_lines(path):
        words = line.split()
        if len(words) > 2 and words[0].isdigit() and words[1].isdigit():
            return " ".join(words[2:])
    raise DataError(f"{path}: expected '<start> <end> <words>'; copy it again")
