"""SourceUtterance (an utterance as its corpus lists it) and the CorpusSource protocol."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from hubert_pretrain.data.alignment import Phones
from hubert_pretrain.data.audio_files import PassedOver
from hubert_pretrain.errors import DataError
from hubert_pretrain.frames import SAMPLE_RATE


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceUtterance:
    """An utterance as its corpus describes it, before anyone has opened the audio."""

    id: str
    path: str | Path
    """The audio file, or the shard that holds it; a URL is a string."""
    split: str
    speaker: str = ""
    text: str = ""
    label: str = ""
    phones: Phones | None = None
    """(phone, start, end) in samples at 16 kHz from the utterance's beginning, or None when the
    corpus has no alignment.
    """
    start: int = 0
    """First sample in the audio file, at 16 kHz (0 unless the file is a longer recording)."""
    num_samples: int | None = None
    """Length of a segment of a longer recording, in samples at 16 kHz; None: to the end of the
    file.
    """
    expected_samples: int | None = None
    """Length that a list states for a whole file (`num_samples` is None), at 16 kHz; `prepare`
    quarantines a file of another length.
    """
    expected_within: int = 1
    """Samples by which the length may differ, because the list rounds it."""
    offset: int = -1
    """First byte of the audio file in the shard `path`; -1: `path` is the audio file."""
    num_bytes: int = -1
    """Bytes of the audio file in its shard."""
    channel: int | None = None
    """Channel of the file, from 0 on, MIX (the mean of all) or LOUDEST of audio.py; None: the one
    that the configuration names.
    """
    corpus: str = ""
    """Name of the corpus it comes from; "" for `corpus_name` of what lists it."""
    original: str = ""
    """Id of the utterance that this one is an altered copy of; "" for a recording of its own.
    `prepare` leaves out copies of utterances that are not trained on.
    """
    fault: str = ""
    """Reason why it cannot be used, where its corpus knows one (its transcript is missing); stage
    `prepare` quarantines it, as it does audio that is missing or broken.
    """


def refuse_other_length(utterance: SourceUtterance, num_samples: int) -> None:
    """Raises DataError when a file of `num_samples` at 16 kHz is not as long as its list states."""
    if (
        utterance.expected_samples is not None
        and abs(num_samples - utterance.expected_samples) > utterance.expected_within
    ):
        raise DataError(
            f"{utterance.path}: {other_length(num_samples, utterance.expected_samples)}"
        )


def other_length(num_samples: int, expected: int) -> str:
    """The reason to refuse a file whose length is not the one that its list states."""
    fix = (
        "it is truncated: copy it again"
        if num_samples < expected
        else "the list is of other audio, or of a part of it: correct the list"
    )
    return f"has {num_samples} samples at {SAMPLE_RATE} Hz, its list says {expected}; {fix}"


class CorpusSource(Protocol):
    """A corpus: any class that lists its utterances. conf/data names the class by `_target_` and
    gives its keyword arguments.

    It raises an error only for the corpus as a whole: a missing folder or list. An utterance whose
    audio is missing or broken is listed like others, and one that cannot be used for another reason
    is listed with its `fault`: `data.max_bad_fraction` decides.

    A class that looks for files in folders counts the others in an attribute `passed_over`; one
    that wraps others has them in `corpora` or `corpus` (see `passed_over`). A class that makes
    audio has a method `originals`: the corpus without that audio, or None (see `originals`).
    """

    def utterances(self, folder: Path) -> Iterator[SourceUtterance]:
        """Every utterance once, in any order.

        Args:
            folder: where a corpus that makes its own audio may write it; files that are there
                after a kill may be used again.

        Raises:
            DataError: the corpus is not where it should be; the message shows the expected layout.
        """
        ...


def passed_over(source: CorpusSource) -> PassedOver:
    """Files that a corpus, and those inside it, did not take while it listed its utterances."""
    found = PassedOver()
    found += getattr(source, "passed_over", PassedOver())
    inside = getattr(source, "corpora", None) or {"": getattr(source, "corpus", None)}
    for each in inside.values():
        if each is not None:
            found += passed_over(each)
    return found


def originals(source: CorpusSource) -> CorpusSource | None:
    """The corpus without audio that it makes itself; None when nothing is left. Other sources have
    a method `originals`."""
    found: CorpusSource | None = source.originals() if hasattr(source, "originals") else source
    return found


def corpus_name(source: CorpusSource) -> str:
    """Name of a corpus in the manifest: its `name` where it has one, else its class."""
    return str(getattr(source, "name", type(source).__name__.lower()))
