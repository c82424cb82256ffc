"""The prepared corpus that the stages after `prepare` read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hubert_pretrain.data import audio
from hubert_pretrain.data.alignment import Alignments
from hubert_pretrain.data.manifest import Manifest
from hubert_pretrain.data.storage import Cache
from hubert_pretrain.errors import ArtefactError, DataError
from hubert_pretrain.files import read_json

MANIFEST = "manifest.arrow"
ALIGNMENTS = "alignments.arrow"
CARD = "card.json"
QUARANTINE = "quarantine.jsonl"
DUPLICATES = "duplicates.jsonl"
JOURNAL = "read.journal"
"""Files that `prepare` has scanned: for a run that was killed, and for a corpus that changes."""


class Corpus:
    """A prepared corpus: manifest, audio, alignments if there are any, and the card."""

    def __init__(
        self, folder: Path, cache: Cache | None = None, moved: Mapping[str, str] | None = None
    ) -> None:
        self.folder = folder
        self.cache = cache
        self.manifest = Manifest.open(folder / MANIFEST, moved=moved)
        self.alignments = (
            Alignments.open(folder / ALIGNMENTS) if (folder / ALIGNMENTS).is_file() else None
        )

    @staticmethod
    def open(
        folder: str | Path, cache: Cache | None = None, moved: Mapping[str, str] | None = None
    ) -> Corpus:
        """Opens the output of stage `prepare` in O(1).

        Args:
            folder: of the stage.
            cache: for audio behind URLs.
            moved: folder -> the folder that its audio has been moved to since.
        """
        return Corpus(Path(folder).absolute(), cache, moved)

    @property
    def card(self) -> dict[str, Any]:
        """The statistics that `prepare` measured (card.json)."""
        card = read_json(self.folder / CARD)
        if card is None:
            raise ArtefactError(
                f"{self.folder / CARD}: missing or damaged; redo=prepare makes it again"
            )
        return dict(card)

    def read(
        self,
        row: int,
        start: int = 0,
        num_samples: int | None = None,
        out: NDArray[np.float32] | None = None,
    ) -> NDArray[np.float32]:
        """Waveform (S,) of a row at 16 kHz, mono, in [-1, 1], not normalised.

        Args:
            row: of the manifest.
            start: first sample of a crop.
            num_samples: length of the crop; None: to the end.
            out: (S,) to read into, which saves a copy.

        Raises:
            DataError: the file no longer holds what the manifest says.
        """
        number = self.manifest.number
        length = number("num_samples", row)
        count = length - start if num_samples is None else num_samples
        if not 0 <= start <= start + count <= length:
            raise ValueError(
                f"{self.manifest[row].id}: samples {start}..{start + count} of an utterance of "
                f"{length}"
            )
        waveform = audio.read(
            self.manifest.audio_path(row),
            number("start", row) + start,
            count,
            source_rate=number("source_rate", row),
            offset=number("offset", row),
            num_bytes=number("num_bytes", row),
            cache=self.cache,
            channel=number("channel", row),
            out=out,
        )
        if len(waveform) != count:
            utterance = self.manifest[row]
            raise DataError(
                f"{utterance.path}: utterance {utterance.id!r} has {len(waveform)} samples at "
                f"{start}, the manifest promises {count}; "
                "the file changed since stage=prepare, restore it, or use redo=prepare"
            )
        return waveform
