"""Fluent Speech Commands (Lugosch et al. 2019): 30,043 spoken commands of 97 speakers, with 31
intents (action, object, location).

Layout: `data/{train,valid,test}_data.csv` and `wavs/speakers/<speaker>/*.wav`. For research, from
its publisher.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from hubert_pretrain.corpora import common
from hubert_pretrain.data.source import SourceUtterance

_LAYOUT = "<root>/data/{train,valid,test}_data.csv and <root>/wavs/speakers/<speaker>/*.wav"
_FOLDER = "fluent_speech_commands_dataset"
"""The folder that the archive unpacks into."""
_SLOTS = ("action", "object", "location")
_COLUMNS = ("path", "speakerId", "transcription", *_SLOTS)


class FluentSpeechCommands:
    """All commands in their published splits. The label is the intent, `action|object|location`."""

    AVAILABLE_FROM = (
        "Fluent.ai, "
        "fluent.ai/fluent-speech-commands-a-dataset-for-spoken-language-understanding-research"
    )

    def __init__(self, *, root: str) -> None:
        """No file is read before `utterances` is called.

        Args:
            root: folder with `data` and `wavs`, or the folder above, with
                `fluent_speech_commands_dataset/` in it.
        """
        self.root = Path(root).expanduser().absolute()

    def utterances(self, folder: Path) -> Iterator[SourceUtterance]:
        """Every command. Raises DataError for missing tables and columns."""
        home = common.find_root(self.root, _LAYOUT, self.AVAILABLE_FROM, inside=[_FOLDER])
        for split in common.SPLITS:
            table = common.require(home / "data" / f"{split}_data.csv", _LAYOUT)
            for _, row in common.read_table(table, _COLUMNS):
                path = home / row["path"]
                yield SourceUtterance(
                    id=path.stem,
                    path=path,
                    split=split,
                    speaker=row["speakerId"],
                    text=row["transcription"],
                    label="|".join(row[slot] for slot in _SLOTS),
                )
