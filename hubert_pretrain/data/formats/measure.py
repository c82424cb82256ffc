"""What the header of an audio file says, for formats that ask for it, and its bytes. Nothing is decoded."""

from __future__ import annotations

from dataclasses import dataclass

from hubert_pretrain.data.audio import one_line, resampled_length
from hubert_pretrain.data.corpus import Claim, refuse_other_length
from hubert_pretrain.data.storage import Part, open_part
from hubert_pretrain.errors import DataError


@dataclass(frozen=True, slots=True)
class Header:
    """Length and rate of the audio file that a claim lies in."""

    num_samples: int
    """At the file's own rate."""
    rate: int

    @property
    def resampled(self) -> int:
        """Samples at 16 kHz."""
        return resampled_length(self.num_samples, self.rate)

    def is_whole(self, claim: Claim) -> bool:
        """Whether the claim is about the whole file."""
        return claim.start == 0 and claim.num_samples in (None, self.resampled)

    def length_of(self, claim: Claim) -> int:
        """Samples of the utterance at 16 kHz. Raises DataError when it reaches beyond the file."""
        length = self.resampled - claim.start if claim.num_samples is None else claim.num_samples
        if not 0 < length <= self.resampled - claim.start:
            raise DataError(
                f"{claim.path}: has {self.resampled} samples at 16 kHz, utterance {claim.id!r} claims {length} from {claim.start} on; "
                "mend the manifest or restore the audio"
            )
        return length


def header_of(claim: Claim) -> Header:
    """Raises DataError when the audio is missing, not audio, or not as long as its list states."""
    header = read_header(claim)
    refuse_other_length(claim, header.resampled)
    return header


def read_header(claim: Claim) -> Header:
    """Raises DataError when the audio is missing or not audio."""
    import soundfile

    try:
        with soundfile.SoundFile(_part(claim).file()) as file:
            return Header(file.frames, file.samplerate)
    except soundfile.SoundFileError as error:
        raise DataError(f"{claim.path}: utterance {claim.id!r} is not readable as audio ({one_line(error)}); replace the file") from error


def stored_bytes(claim: Claim) -> bytes:
    """The audio file of a claim, byte for byte, be it a file, a member of a shard, or behind a URL."""
    part = _part(claim)
    return part.read(0, part.size)


def _part(claim: Claim) -> Part:
    return open_part(str(claim.path), claim.offset, claim.num_bytes)
