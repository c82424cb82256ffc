"""What a corpus says about its utterances (`Claim`), and the prepared corpus that the later stages read (`Corpus`)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from hubert_pretrain.data import audio
from hubert_pretrain.data.alignment import Alignments, Phones
from hubert_pretrain.data.manifest import Manifest
from hubert_pretrain.data.storage import Cache
from hubert_pretrain.errors import ArtefactError, DataError
from hubert_pretrain.frames import SAMPLE_RATE
from hubert_pretrain.workspace import read_json

MANIFEST = "manifest.arrow"
ALIGNMENTS = "alignments.arrow"
CARD = "card.json"
QUARANTINE = "quarantine.jsonl"


@dataclass(frozen=True, kw_only=True, slots=True)
class Claim:
    """An utterance as its corpus describes it, before anyone has opened the audio."""

    id: str
    path: str | Path
    """The audio file, or the shard that holds it; a URL is a string."""
    split: str
    speaker: str = ""
    text: str = ""
    label: str = ""
    phones: Phones | None = None
    """(phone, start, end) in samples at 16 kHz from the utterance's beginning, or None when the corpus has no alignment."""
    start: int = 0
    """First sample in the audio file, at 16 kHz (0 unless the file is a longer recording)."""
    num_samples: int | None = None
    """Length of a segment of a longer recording, in samples at 16 kHz; None: to the end of the file."""
    expected_samples: int | None = None
    """Length that a list states for a whole file (`num_samples` is None), at 16 kHz; `prepare` puts a file of another length aside."""
    expected_within: int = 1
    """By how many samples it may differ: what the list rounds away."""
    offset: int = -1
    """Where the bytes of the audio file begin in the shard `path`; -1: `path` is the audio file."""
    num_bytes: int = -1
    """How many bytes the audio file has in its shard."""
    corpus: str = ""
    """Name of the corpus it comes from; "" for `corpus_name` of what lists it."""


def refuse_other_length(claim: Claim, num_samples: int) -> None:
    """Raises DataError unless a file of so many samples at 16 kHz is as long as its list states, if it does."""
    if claim.expected_samples is not None and abs(num_samples - claim.expected_samples) > claim.expected_within:
        raise DataError(f"{claim.path}: {other_length(num_samples, claim.expected_samples)}")


def other_length(num_samples: int, expected: int) -> str:
    """Why a file cannot be used that has another length than its list states."""
    fix = "it is truncated: copy it again" if num_samples < expected else "the list is of other audio, or of a part of it: mend the list"
    return f"has {num_samples} samples at {SAMPLE_RATE} Hz, its list says {expected}; {fix}"


class CorpusSource(Protocol):
    """A corpus: any class that can list its utterances. Its values are keyword arguments, its place in conf/data is a `_target_`."""

    def utterances(self, folder: Path) -> Iterator[Claim]:
        """Every utterance once, in any order.

        Args:
            folder: where a corpus that makes its own audio may write it; what lies there after a kill may be used again.

        Raises:
            DataError: the corpus is not where it should be; the message shows the expected layout.
        """
        ...


def corpus_name(source: CorpusSource) -> str:
    """What a corpus is called in the manifest: its `name` where it has one, else its class."""
    return str(getattr(source, "name", type(source).__name__.lower()))


class Corpus:
    """A prepared corpus: manifest, alignments where there are any, audio, and the card."""

    def __init__(self, folder: Path, cache: Cache | None = None) -> None:
        self.folder, self.cache = folder, cache
        self.manifest = Manifest.open(folder / MANIFEST)
        self.alignments = Alignments.open(folder / ALIGNMENTS) if (folder / ALIGNMENTS).is_file() else None

    @staticmethod
    def open(folder: str | Path, cache: Cache | None = None) -> Corpus:
        """Opens the output of stage `prepare` in O(1). The cache is for audio behind URLs."""
        return Corpus(Path(folder).absolute(), cache)

    @property
    def card(self) -> dict[str, Any]:
        """What `prepare` measured (card.json)."""
        card = read_json(self.folder / CARD)
        if card is None:
            raise ArtefactError(f"{self.folder / CARD}: missing or damaged; run stage=prepare again")
        return dict(card)

    def read(self, row: int, start: int = 0, num_samples: int | None = None, out: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
        """Waveform (S,) of a row, or of the crop [start, start + num_samples) of it, at 16 kHz, mono, in [-1, 1], not normalised.

        It is read into `out` (S,) where that is given, which saves a copy.

        Raises DataError when the file no longer holds what the manifest says.
        """
        number = self.manifest.number
        length = number("num_samples", row)
        wanted = length - start if num_samples is None else num_samples
        if not 0 <= start <= start + wanted <= length:
            raise ValueError(f"{self.manifest[row].id}: samples {start}..{start + wanted} of an utterance of {length}")
        waveform = audio.read(
            self.manifest.audio_path(row),
            number("start", row) + start,
            wanted,
            source_rate=number("source_rate", row),
            offset=number("offset", row),
            num_bytes=number("num_bytes", row),
            cache=self.cache,
            out=out,
        )
        if len(waveform) != wanted:
            utterance = self.manifest[row]
            raise DataError(
                f"{utterance.path}: utterance {utterance.id!r} has {len(waveform)} samples at {start}, the manifest promises {wanted}; "
                "the file changed since stage=prepare, restore it or prepare again"
            )
        return waveform
