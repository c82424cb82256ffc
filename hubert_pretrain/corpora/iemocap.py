"""IEMOCAP (Busso et al. 2008): 12 hours of two actors in dialogue, five sessions, ten speakers,
every turn judged for its emotion.

`Session<n>/sentences/wav/<dialogue>/<turn>.wav`, judgements in
`Session<n>/dialog/EmoEvaluation/<dialogue>.txt`, words in
`Session<n>/dialog/transcriptions/<dialogue>.txt`. From its publisher, after a form.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from hubert_pretrain.corpora import common
from hubert_pretrain.data.source import SourceUtterance
from hubert_pretrain.errors import ConfigError, DataError

_LAYOUT = "<root>/Session{1..5}/{sentences/wav/<dialogue>/<turn>.wav, dialog/EmoEvaluation/<dialogue>.txt}"
SESSIONS = (1, 2, 3, 4, 5)
_FOUR = {"neu": "neu", "ang": "ang", "sad": "sad", "hap": "hap", "exc": "hap"}
_JUDGED = re.compile(r"\[[\d.]+ - [\d.]+\]\t(\w+)\t(\w+)\t")
_SAID = re.compile(r"(\w+) \[[\d.]+-[\d.]+\]: (.*)")


class Iemocap:
    """Turns with an emotion that most judges agreed on. One session is for testing, the others for
    training.
    """

    OBTAIN = "the University of Southern California, sail.usc.edu/iemocap"

    def __init__(
        self,
        *,
        root: str,
        test_session: int = 1,
        classes: int = 4,
        kinds: Sequence[str] = ("improvised", "scripted"),
    ) -> None:
        """Nothing is read until `utterances`.

        Args:
            root: the folder that holds the sessions, or the one above (`IEMOCAP_full_release`,
            `IEMOCAP`). test_session: 1 to 5: the fold. Both its speakers are in no other session.
            `valid` is held out of train by the stage. classes: 4: neutral, angry, sad and happy
            with excited among it (the usual task); 0: every judgement, also xxx (no agreement).
            kinds: of dialogue, improvised, scripted or both.
        """
        if test_session not in SESSIONS:
            raise ConfigError(f"data.corpus.test_session={test_session}: expected 1 to 5")
        if classes not in (4, 0):
            raise ConfigError(
                f"data.corpus.classes={classes}: expected 4, or 0 for every judgement"
            )
        for kind in kinds:
            common.check_choice("kinds", kind, ("improvised", "scripted"))
        self.root = Path(root).expanduser().absolute()
        self.test_session = test_session
        self.classes = classes
        self.kinds = set(kinds)

    def utterances(self, folder: Path) -> Iterator[SourceUtterance]:
        """Every turn of the chosen classes. Raises DataError for missing sessions, judgements and
        audio.
        """
        home = common.existing_root(
            self.root, _LAYOUT, self.OBTAIN, inside=["IEMOCAP_full_release", "IEMOCAP"]
        )
        for session in SESSIONS:
            place = common.existing(home / f"Session{session}", _LAYOUT)
            split = "test" if session == self.test_session else "train"
            judgements = common.existing(place / "dialog" / "EmoEvaluation", _LAYOUT)
            for table in sorted(
                path for path in judgements.glob("*.txt") if not path.name.startswith(".")
            ):
                if ("improvised" if "impro" in table.name else "scripted") in self.kinds:
                    yield from self._dialogue(place, table, split)

    def _dialogue(self, session: Path, table: Path, split: str) -> Iterator[SourceUtterance]:
        said = _texts(session / "dialog" / "transcriptions" / table.name)
        judged = [match for _, line in _lines(table) if (match := _JUDGED.match(line))]
        if not judged:
            raise DataError(
                f"{table}: no line '[<start> - <end>]<tab><turn><tab><emotion><tab>...'; copy the corpus again"
            )
        for turn, emotion in (match.groups() for match in judged):
            label = _FOUR.get(emotion, "") if self.classes == 4 else emotion
            if label:
                path = session / "sentences" / "wav" / table.stem / f"{turn}.wav"
                # Ses01F_impro01_M003: the first letter is the actor who wore the markers, the last
                # who speaks.
                speaker = f"{turn[:5]}{turn.rpartition('_')[2][0]}"
                text = said.get(turn, "")
                yield SourceUtterance(
                    id=turn,
                    path=common.existing_audio(path, str(table)),
                    split=split,
                    speaker=speaker,
                    text=text,
                    label=label,
                )


def _texts(path: Path) -> dict[str, str]:
    """Turn -> words; none when the transcriptions were left out."""
    if not path.is_file():
        return {}
    return dict(match.groups() for _, line in _lines(path) if (match := _SAID.match(line)))  # type: ignore[misc]


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Lines as they are: a judgement ends in a tab-separated list. Some files hold single bytes of
    Latin-1.
    """
    with open(path, encoding="latin-1") as file:
        yield from enumerate((line.rstrip("\n") for line in file), start=1)
