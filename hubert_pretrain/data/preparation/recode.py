"""Long recordings of formats without exact positions (MP3, Ogg, AAC, ...), written once as FLAC.

Of such a file every crop would be decoded from the beginning: an hour for seconds, again and again.
`prepare` writes it as 16-bit FLAC at 16 kHz with all its channels, and the manifest names that
file. S samples.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import soundfile
import soxr

from hubert_pretrain.data.audio import fit_length, resampled_length, to_int16
from hubert_pretrain.data.audio_stream import AudioStream, Waveform
from hubert_pretrain.data.preparation.scan_journal import Identity
from hubert_pretrain.data.storage import Location
from hubert_pretrain.errors import ArtefactError, DataError
from hubert_pretrain.frames import SAMPLE_RATE

_MOST_CHANNELS = 8
"""FLAC has no more."""


@dataclass(frozen=True)
class Recoder:
    """The folder of these files, and the length from which a recording gets one."""

    folder: Path
    longest_seconds: float

    def path_of(self, location: Location, identity: Identity) -> Path:
        """The FLAC of a recording; another one when the recording changes."""
        name = "\0".join(map(str, (*location, *identity)))
        digest = hashlib.blake2b(name.encode(errors="surrogateescape"), digest_size=12)
        return self.folder / f"{digest.hexdigest()}.flac"

    def is_for(self, stream: AudioStream) -> bool:
        """True for a recording that gets one, if it is long."""
        return not stream.seeks and stream.channels <= _MOST_CHANNELS

    def beginning(self, stream: AudioStream) -> tuple[list[Waveform], bool]:
        """The blocks of a stream up to the length from which it is long, and whether it is."""
        found: list[Waveform] = []
        left = self.longest_seconds * stream.rate
        for block in stream.blocks():
            found.append(block)
            left -= len(block)
            if left < 0:
                return found, True
        return found, False


def write_flac(path: str, stream: AudioStream, beginning: list[Waveform], target: Path) -> int:
    """Writes a recording as 16-bit FLAC at 16 kHz, in constant memory, exactly as long as
    `audio.read` of it. Returns its length at its own rate.

    Raises:
        DataError: it cannot be decoded, or holds NaN.
        ArtefactError: the FLAC cannot be written.
    """
    count = 0

    def counted() -> Iterator[Waveform]:
        nonlocal count
        for block in chain(beginning, stream.blocks()):
            if not np.isfinite(block).all():
                samples = f"{count}..{count + len(block)}"
                raise DataError(
                    f"{path}: NaN or infinity among samples {samples}; replace the file"
                )
            count += len(block)
            yield block

    written = 0
    waiting = np.zeros((0, stream.channels), dtype=np.float32)
    try:
        with soundfile.SoundFile(
            target, "w", SAMPLE_RATE, stream.channels, format="FLAC", subtype="PCM_16"
        ) as file:
            for block in _resampled(counted(), stream):
                file.write(to_int16(waiting))
                written += len(waiting)
                waiting = block
            length = resampled_length(count, stream.rate)
            file.write(to_int16(fit_length(waiting, length - written)))
    except (OSError, soundfile.SoundFileError, AssertionError) as error:
        raise ArtefactError(
            f"{target.parent}: the FLAC of {path} cannot be written ({error}); make room, or set "
            "data.recode_minutes=0"
        ) from error
    return count


def _resampled(parts: Iterator[Waveform], stream: AudioStream) -> Iterator[Waveform]:
    """Blocks (S, channels) at 16 kHz."""
    if stream.rate == SAMPLE_RATE:
        yield from parts
        return
    resampler = soxr.ResampleStream(stream.rate, SAMPLE_RATE, stream.channels, dtype="float32")
    for block in parts:
        yield resampler.resample_chunk(block).reshape(-1, stream.channels)
    end = np.zeros((0, stream.channels), dtype=np.float32)
    yield resampler.resample_chunk(end, last=True).reshape(-1, stream.channels)
