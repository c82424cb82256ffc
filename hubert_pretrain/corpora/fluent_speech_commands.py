"""Fluent Speech Commands (Lugosch et al. 2019): 30,043 spoken commands, 97 speakers, 31 intents
(action, object, location).

`data/{train,valid,test}_data.csv` and `wavs/speakers/<speaker>/*.wav`. For research, from its
publisher.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from hubert_pretrain.corpora import common
from hubert_pretrain.data.source import SourceUtterance

_LAYOUT = "<root>/data/{train,valid,test}_data.csv and <root>/wavs/speakers/<speaker>/*.wav"
_SLOTS = ("action", "object", "location")


class FluentSpeechCommands:
    """All commands in their published splits. The label is the intent, `action|object|location`."""

    OBTAIN = "Fluent.ai, fluent.ai/fluent-speech-commands-a-dataset-for-spoken-language-understanding-research"

    def __init__(self, *, root: str) -> None:
        """Nothing is read until `utterances`.

        Args:
            root: the folder that holds `data` and `wavs`, or the one above with
            `fluent_speech_commands_dataset/` in it.
        """
        self.root = Path(root).expanduser().absolute()

    def utterances(self, folder: Path) -> Iterator[SourceUtterance]:
        """Every command. Raises DataError for missing tables, columns and audio."""
        home = common.existing_root(
            self.root, _LAYOUT, self.OBTAIN, inside=["fluent_speech_commands_dataset"]
        )
        for split in common.SPLITS:
            table = common.existing(home / "data" / f"{split}_data.csv", _LAYOUT)
            for place, row in common.read_table(
                table, ["path", "speakerId", "transcription", *_SLOTS]
            ):
                path = common.existing_audio(home / row["path"], place)
                yield SourceUtterance(
                    id=path.stem,
                    path=path,
                    split=split,
                    speaker=row["speakerId"],
                    text=row["transcription"],
                    label="|".join(row[slot] for slot in _SLOTS),
                )
