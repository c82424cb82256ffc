"""Speed perturbation (Ko et al. 2015, "Audio augmentation for speech recognition"): another corpus
with copies of its training utterances at other speeds.

A copy is the recording played faster or slower: tempo and pitch change together, as with `sox
speed` and Kaldi's perturb_data_dir_speed.sh. Stage `prepare` makes the copies once, as FLAC files
beside the manifest, because targets are computed from the perturbed audio.
"""

from __future__ import annotations

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

from hubert_pretrain.corpora.common import check_choice
from hubert_pretrain.corpora.download.archives import download
from hubert_pretrain.data import audio
from hubert_pretrain.data.audio import (
    LOUDEST,
    MIX,
    Waveform,
    channel_number,
    fit_length,
    resampled_length,
)
from hubert_pretrain.data.preparation.audio_stats import Segment
from hubert_pretrain.data.preparation.scan import Recording, scan_segments
from hubert_pretrain.data.preparation.scan_journal import identity
from hubert_pretrain.data.source import (
    CorpusSource,
    SourceUtterance,
    corpus_name,
    originals,
    refuse_other_length,
)
from hubert_pretrain.data.storage import Location
from hubert_pretrain.distributed import usable_cores
from hubert_pretrain.errors import ConfigError, DataError
from hubert_pretrain.files import remove_temporaries, replacing
from hubert_pretrain.frames import SAMPLE_RATE
from hubert_pretrain.seeds import derive

SPEAKERS = ("suffix", "keep")
SLOWEST = 0.5
FASTEST = 2.0
FOLDER = "speed"
"""Folder of the copies, beside the manifest."""
_BLOCK = 256
"""Utterances whose copies are made in parallel."""

In = TypeVar("In")
Out = TypeVar("Out")


class SpeedPerturbation:
    """Every utterance of a corpus, and copies of its `train` utterances at other speeds, with ids
    such as `19-198-0001-speed0.9`.
    """

    def __init__(
        self,
        *,
        corpus: CorpusSource,
        factors: Sequence[float] = (0.9, 1.0, 1.1),
        speakers: str = "suffix",
        channel: str = "mix",
        workers: int = 0,
    ) -> None:
        """No file is read before `utterances` is called.

        Args:
            corpus: the corpus; in a recipe, a node with its own `_target_`.
            factors: speeds; 1.1 is a tenth faster. 1.0 are the utterances themselves and must be
                among them.
            speakers: "suffix": a copy has a speaker of its own (`19-speed0.9`), as in Kaldi,
                because its voice differs; "keep": the speaker of its original.
            channel: of the utterances that name none: mix, loudest or its number, as in
                data.channel.
            workers: threads that make copies; 0: one per core.
        """
        factors = [float(factor) for factor in factors]
        in_range = all(SLOWEST <= factor <= FASTEST for factor in factors)
        if 1.0 not in factors or len(set(factors)) < len(factors) or not in_range:
            raise ConfigError(
                f"data.corpus.factors={factors}: expected different speeds from {SLOWEST} to "
                f"{FASTEST}, 1.0 among them, e.g. [0.9, 1.0, 1.1]"
            )
        check_choice("speakers", speakers, SPEAKERS)
        self.corpus = corpus
        self.speakers = speakers
        self.factors = [factor for factor in factors if factor != 1.0]
        self.channel = channel_number(str(channel))
        self.workers = workers or usable_cores()
        self.root = getattr(corpus, "root", None)

    def download(self, mirror: str | None = None) -> None:
        """Downloads the other corpus."""
        download(self.corpus, mirror)

    def originals(self) -> CorpusSource | None:
        """The other corpus, without copies."""
        return originals(self.corpus)

    def utterances(self, folder: Path) -> Iterator[SourceUtterance]:
        """Each utterance, followed by its copies. Copies of the same recording that are in `folder`
        are used again, all others there are removed.

        An utterance that cannot be read or is truncated comes without copies: `prepare` finds the
        fault and reports it once. It also leaves out the copies of what it holds out.
        """
        remove_temporaries(folder / FOLDER)
        used: set[str] = set()
        with_copies = partial(self._with_copies, folder / FOLDER)
        for utterances in _map_in_order(with_copies, self.corpus.utterances(folder), self.workers):
            used.update(Path(copy.path).name for copy in utterances[1:])
            yield from utterances
        for path in (folder / FOLDER).rglob("*.flac"):
            if path.name not in used:
                path.unlink()

    def _with_copies(self, folder: Path, utterance: SourceUtterance) -> list[SourceUtterance]:
        utterance = replace(utterance, corpus=utterance.corpus or corpus_name(self.corpus))
        if utterance.split != "train" or utterance.fault:
            return [utterance]
        try:
            copies = [self._copy(folder, utterance, factor) for factor in self.factors]
        except DataError:
            return [utterance]
        return [utterance, *copies]

    def _copy(self, folder: Path, utterance: SourceUtterance, factor: float) -> SourceUtterance:
        name = f"speed{factor:g}"
        # Ids may hold any character, and the same id may come to mean other audio. The hash also
        # spreads the files over 256 folders.
        location = Location(str(utterance.path), utterance.offset, utterance.num_bytes)
        channel = self.channel if utterance.channel is None else utterance.channel
        segment = (utterance.start, str(utterance.num_samples), channel)
        key = f"{derive(utterance.id, name, *location, *segment, *identity(location)):016x}"
        path = folder / name / key[:2] / f"{key}.flac"
        if not path.exists():
            _write(path, change_speed(_read_whole(utterance, channel), factor))

        speaker = utterance.speaker
        if speaker and self.speakers == "suffix":
            speaker = f"{speaker}-{name}"
        rate = rate_of(factor)
        phones = utterance.phones and [
            (phone, resampled_length(start, rate), resampled_length(end, rate))
            for phone, start, end in utterance.phones
        ]
        return replace(
            utterance,
            id=f"{utterance.id}-{name}",
            original=utterance.id,
            speaker=speaker,
            phones=phones,
            path=str(path),
            start=0,
            num_samples=None,
            expected_samples=None,
            offset=-1,
            num_bytes=-1,
            channel=MIX,
        )


def change_speed(waveform: Waveform, factor: float) -> Waveform:
    """A waveform (S,) played `factor` times as fast: (S / factor,), rounded half up."""
    rate = rate_of(factor)
    faster = soxr.resample(waveform, rate, SAMPLE_RATE)
    return fit_length(faster, resampled_length(len(waveform), rate))


def rate_of(factor: float) -> int:
    """Sample rate [Hz] under which 16 kHz samples sound `factor` times as fast."""
    return round(SAMPLE_RATE * factor)


def _read_whole(utterance: SourceUtterance, channel: int) -> Waveform:
    """The audio of an utterance. Raises DataError when a part of it is missing."""
    # A truncated file is found by a full scan. A segment has a length to compare with instead: its
    # long recording is not scanned for each of its segments.
    if utterance.num_samples is None or channel == LOUDEST:
        location = Location(str(utterance.path), utterance.offset, utterance.num_bytes)
        segment = Segment(utterance.start, utterance.num_samples, channel)
        facts = scan_segments(Recording(location, [segment]))[0]
        if isinstance(facts, str):
            raise DataError(f"{utterance.path}: {facts}")
        channel = facts.channel
        if utterance.num_samples is None:
            refuse_other_length(utterance, facts.num_samples)
    waveform = audio.read(
        utterance.path,
        utterance.start,
        utterance.num_samples,
        offset=utterance.offset,
        num_bytes=utterance.num_bytes,
        channel=channel,
    )
    is_short = utterance.num_samples is not None and len(waveform) < utterance.num_samples
    if is_short or not np.isfinite(waveform).all():
        raise DataError(
            f"{utterance.path}: segment {utterance.id!r} ends behind its recording, or holds NaN; "
            "fix the segments"
        )
    return waveform


def _write(path: Path, waveform: Waveform) -> None:
    """16-bit FLAC, under its final name only when it is complete. The stage syncs the folder when
    it publishes it.
    """
    with replacing(path, sync=False) as temporary:
        soundfile.write(
            temporary, np.clip(waveform, -1.0, 1.0), SAMPLE_RATE, format="FLAC", subtype="PCM_16"
        )


def _map_in_order(
    function: Callable[[In], Out], values: Iterable[In], workers: int
) -> Iterator[Out]:
    """`map` over threads, a block of values at a time. (Decoding, resampling and encoding release
    the interpreter lock.)
    """
    values = iter(values)
    with ThreadPoolExecutor(workers) as pool:
        while block := list(islice(values, _BLOCK)):
            yield from pool.map(function, block)
