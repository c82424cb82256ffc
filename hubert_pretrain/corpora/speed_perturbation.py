"""Another corpus with copies of its training utterances at other speeds (Ko et al. 2015, "Audio
augmentation for speech recognition").

A copy is the recording played faster or slower: tempo and pitch change together, as `sox speed` and
Kaldi's perturb_data_dir_speed.sh do. Copies are made once, in `prepare`, as FLAC files beside the
manifest, because targets are made of what is heard.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TypeVar

import numpy as np
import soundfile
import soxr

from hubert_pretrain.corpora.download.archives import download
from hubert_pretrain.data import audio
from hubert_pretrain.data.audio import Waveform, fit_length, resampled_length
from hubert_pretrain.data.preparation.scan import scan
from hubert_pretrain.data.source import (
    CorpusSource,
    SourceUtterance,
    corpus_name,
    refuse_other_length,
)
from hubert_pretrain.distributed import usable_cores
from hubert_pretrain.errors import ConfigError, DataError
from hubert_pretrain.files import remove_temporaries, replacing
from hubert_pretrain.frames import SAMPLE_RATE
from hubert_pretrain.seeds import derive, share_of

SPEAKERS = ("suffix", "keep")
SLOWEST = 0.5
FASTEST = 2.0
FOLDER = "speed"
_AT_ONCE = 256
"""Claims whose copies are made side by side."""

In = TypeVar("In")
Out = TypeVar("Out")


class SpeedPerturbation:
    """Every utterance of a corpus, and copies of those of split `train` at other speeds, with ids
    such as `19-198-0001-speed0.9`.
    """

    def __init__(
        self,
        *,
        corpus: CorpusSource,
        factors: Sequence[float] = (0.9, 1.0, 1.1),
        speakers: str = "suffix",
        valid_fraction: float = 0.05,
        workers: int = 0,
    ) -> None:
        """
        Args:
            corpus: the corpus, as another node of data.corpus. factors: speeds; 1.0 stands for the
            utterances themselves and must be among them. 1.1 is a tenth faster. speakers: "suffix":
            a copy has a speaker of its own (`19-speed0.9`), as in Kaldi, since its voice is
            another; "keep". valid_fraction: share of `train` that is held out as `valid` where the
            corpus has no such split, before copies are made: a
                copy of what is validated on must not be trained on. Give it the value of
                data.valid_fraction.
            workers: threads that make copies; 0 is one per core.
        """
        factors = [float(factor) for factor in factors]
        if (
            1.0 not in factors
            or len(set(factors)) < len(factors)
            or not all(SLOWEST <= factor <= FASTEST for factor in factors)
        ):
            found = f"data.corpus.factors={factors}"
            raise ConfigError(
                f"{found}: expected different speeds from {SLOWEST} to {FASTEST}, 1.0 among them, e.g. [0.9, 1.0, 1.1]"
            )
        if speakers not in SPEAKERS:
            raise ConfigError(
                f"data.corpus.speakers={speakers!r}: expected one of {', '.join(SPEAKERS)}"
            )
        self.corpus = corpus
        self.speakers = speakers
        self.valid_fraction = valid_fraction
        self.factors = [factor for factor in factors if factor != 1.0]
        self.workers = workers or usable_cores()
        self.root = getattr(corpus, "root", None)

    def download(self, mirror: str | None) -> None:
        """Fetches what the other corpus lacks."""
        download(self.corpus, mirror)

    def utterances(self, folder: Path) -> Iterator[SourceUtterance]:
        """Each utterance, followed by its copies. Copies that lie in `folder` already, of the same
        recording, are used again.

        One that cannot be read, or is truncated, is claimed without copies: `prepare` will find it
        and say so once.
        """
        remove_temporaries(folder / FOLDER)
        copy = partial(
            self._copies, folder / FOLDER, held_out=self._held_out(self.corpus.utterances(folder))
        )
        for utterances in _in_order(copy, self.corpus.utterances(folder), self.workers):
            yield from utterances

    def _held_out(self, utterances: Iterable[SourceUtterance]) -> float:
        """Ids of `train` whose `share_of` is below this number are validated on: as `prepare`
        chooses them, at least one.
        """
        least = 1.0
        for utterance in utterances:
            if utterance.split == "valid" or self.valid_fraction <= 0:
                return 0.0
            least = (
                min(least, share_of(utterance.id, "valid")) if utterance.split == "train" else least
            )
        return max(self.valid_fraction, math.nextafter(least, 1.0))

    def _copies(
        self, folder: Path, utterance: SourceUtterance, held_out: float
    ) -> list[SourceUtterance]:
        utterance = replace(utterance, corpus=utterance.corpus or corpus_name(self.corpus))
        if utterance.split == "train" and share_of(utterance.id, "valid") < held_out:
            utterance = replace(utterance, split="valid")
        if utterance.split != "train":
            return [utterance]
        try:
            return [utterance, *(self._copy(folder, utterance, factor) for factor in self.factors)]
        except DataError:
            return [utterance]

    def _copy(self, folder: Path, utterance: SourceUtterance, factor: float) -> SourceUtterance:
        name = f"speed{factor:g}"
        # Ids may hold anything; the hash also spreads the files over folders of a few thousand.
        key = f"{derive(utterance.id, name):016x}"
        path = folder / name / key[:2] / f"{key}.flac"
        if not _is_newer(path, utterance.path):
            _write(path, change_speed(_whole(utterance), factor))
        rate = rate_of(factor)
        phones = utterance.phones and [
            (phone, resampled_length(start, rate), resampled_length(end, rate))
            for phone, start, end in utterance.phones
        ]
        speaker = (
            f"{utterance.speaker}-{name}"
            if utterance.speaker and self.speakers == "suffix"
            else utterance.speaker
        )
        place = {
            "path": str(path),
            "start": 0,
            "num_samples": None,
            "expected_samples": None,
            "offset": -1,
            "num_bytes": -1,
        }
        return replace(
            utterance, id=f"{utterance.id}-{name}", speaker=speaker, phones=phones, **place
        )  # type: ignore[arg-type]


def change_speed(waveform: Waveform, factor: float) -> Waveform:
    """A waveform (S,) played `factor` times as fast: (S / factor,), where S / factor is rounded
    half up.
    """
    rate = rate_of(factor)
    return fit_length(
        soxr.resample(waveform, rate, SAMPLE_RATE), resampled_length(len(waveform), rate)
    )


def rate_of(factor: float) -> int:
    """The rate at which a recording would have to have been made to sound `factor` times as
    fast.
    """
    return round(SAMPLE_RATE * factor)


def _whole(utterance: SourceUtterance) -> Waveform:
    """The audio of a utterance. Raises DataError when it is not there in full."""
    if (
        utterance.num_samples is None
        # of a segment there is a length to compare with; a long recording is not probed for each of its
        # own
    ):
        refuse_other_length(
            utterance,
            scan(
                utterance.path, offset=utterance.offset, num_bytes=utterance.num_bytes
            ).num_samples,
        )
    waveform = audio.read(
        utterance.path,
        utterance.start,
        utterance.num_samples,
        offset=utterance.offset,
        num_bytes=utterance.num_bytes,
    )
    if (
        utterance.num_samples is not None and len(waveform) < utterance.num_samples
    ) or not np.isfinite(waveform).all():
        raise DataError(
            f"{utterance.path}: segment {utterance.id!r} ends behind its recording, or holds NaN; mend the segments"
        )
    return waveform


def _write(path: Path, waveform: Waveform) -> None:
    """16-bit FLAC under its final name only when it is whole. The stage syncs the folder when it
    publishes it.
    """
    with replacing(path, sync=False) as temporary:
        soundfile.write(
            temporary, np.clip(waveform, -1.0, 1.0), SAMPLE_RATE, format="FLAC", subtype="PCM_16"
        )


def _is_newer(path: Path, source: str | Path) -> bool:
    """Whether a copy was made after its recording changed last. What lies behind a URL does not
    change.
    """
    try:
        return (
            "://" in str(source) or path.stat().st_mtime_ns >= os.stat(source).st_mtime_ns
            if path.exists()
            else False
        )
    except OSError:
        return False


def _in_order(function: Callable[[In], Out], values: Iterable[In], workers: int) -> Iterator[Out]:
    """`map` over threads (decoding, resampling and encoding release the interpreter), some hundred
    values ahead and not all.
    """
    values = iter(values)
    with ThreadPoolExecutor(workers) as pool:
        while part := list(islice(values, _AT_ONCE)):
            yield from pool.map(function, part)
