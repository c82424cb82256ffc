"""IEMOCAP (Busso et al. 2008): 12 hours of acted dialogues, five sessions of two actors each, every
turn judged for its emotion.

Layout, below `Session<n>/`: audio in `sentences/wav/<dialogue>/<turn>.wav`, emotions in
`dialog/EmoEvaluation/<dialogue>.txt`, words in `dialog/transcriptions/<dialogue>.txt`. From its
publisher, after a form.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from hubert_pretrain.corpora import common
from hubert_pretrain.data.source import SourceUtterance
from hubert_pretrain.errors import ConfigError, DataError

_LAYOUT = (
    "<root>/Session{1..5}/"
    "{sentences/wav/<dialogue>/<turn>.wav, dialog/EmoEvaluation/<dialogue>.txt}"
)
_FOLDERS = ("IEMOCAP_full_release", "IEMOCAP")
"""Folders that the release unpacks into."""
SESSIONS = (1, 2, 3, 4, 5)
KINDS = ("improvised", "scripted")
"""Kinds of dialogue."""
_FOUR_CLASSES = {"neu": "neu", "ang": "ang", "sad": "sad", "hap": "hap", "exc": "hap"}
"""Emotion -> class of the usual task: excited counts as happy."""
_EMOTION_LINE = re.compile(r"\[[\d.]+ - [\d.]+\]\t(\w+)\t(\w+)\t")
_WORDS_LINE = re.compile(r"(\w+) \[[\d.]+-[\d.]+\]: (.*)")


class Iemocap:
    """Turns with an emotion that most judges agreed on. One session is for testing, the others are
    for training.
    """

    AVAILABLE_FROM = "the University of Southern California, sail.usc.edu/iemocap"

    def __init__(
        self,
        *,
        root: str,
        test_session: int = 1,
        classes: int = 4,
        kinds: Sequence[str] = KINDS,
    ) -> None:
        """No file is read before `utterances` is called.

        Args:
            root: folder with the sessions, or the one above (`IEMOCAP_full_release`, `IEMOCAP`).
            test_session: 1 to 5, the fold. Its two speakers are in no other session. Stage
                `prepare` holds `valid` out of train.
            classes: 4: neutral, angry, sad, and happy (which includes excited), the usual task; 0:
                every emotion, also xxx (no agreement).
            kinds: improvised, scripted or both.
        """
        if test_session not in SESSIONS:
            raise ConfigError(f"data.corpus.test_session={test_session}: expected 1 to 5")
        if classes not in (4, 0):
            raise ConfigError(f"data.corpus.classes={classes}: expected 4, or 0 for every emotion")
        for kind in kinds:
            common.check_choice("kinds", kind, KINDS)
        self.root = Path(root).expanduser().absolute()
        self.test_session = test_session
        self.classes = classes
        self.kinds = set(kinds)

    def utterances(self, folder: Path) -> Iterator[SourceUtterance]:
        """Every turn of the chosen classes. Raises DataError for missing sessions and
        emotions.
        """
        home = common.find_root(self.root, _LAYOUT, self.AVAILABLE_FROM, inside=_FOLDERS)
        for number in SESSIONS:
            session = common.require(home / f"Session{number}", _LAYOUT)
            split = "test" if number == self.test_session else "train"
            emotions = common.require(session / "dialog" / "EmoEvaluation", _LAYOUT)
            for table in sorted(emotions.glob("*.txt")):
                kind = "improvised" if "impro" in table.name else "scripted"
                if kind in self.kinds and not table.name.startswith("."):
                    yield from self._dialogue(session, table, split)

    def _dialogue(self, session: Path, table: Path, split: str) -> Iterator[SourceUtterance]:
        """The turns of one dialogue."""
        texts = dict(_matches(_WORDS_LINE, session / "dialog" / "transcriptions" / table.name))
        emotions = _matches(_EMOTION_LINE, table)
        if not emotions:
            raise DataError(
                f"{table}: no line '[<start> - <end>]<tab><turn><tab><emotion><tab>...'; "
                "copy the corpus again"
            )
        for turn, emotion in emotions:
            label = _FOUR_CLASSES.get(emotion, "") if self.classes == 4 else emotion
            if not label:
                continue
            path = session / "sentences" / "wav" / table.stem / f"{turn}.wav"
            yield SourceUtterance(
                id=turn,
                path=path,
                split=split,
                speaker=_speaker_of(turn),
                text=texts.get(turn, ""),
                label=label,
            )


def _speaker_of(turn: str) -> str:
    """Session and sex of the speaker. In Ses01F_impro01_M003 the first letter is the actor who wore
    the motion-capture markers, the last one the actor who speaks: Ses01M.
    """
    return f"{turn[:5]}{turn.rpartition('_')[2][0]}"


def _matches(pattern: re.Pattern[str], path: Path) -> list[tuple[str, str]]:
    """The two groups of every line that matches; none without the file. Some files hold bytes of
    Latin-1.
    """
    if not path.is_file():
        return []
    with open(path, encoding="latin-1") as file:
        matches = [pattern.match(line.rstrip("\n")) for line in file]
    return [(match[1], match[2]) for match in matches if match]
