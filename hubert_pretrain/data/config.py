"""Settings of the data side that a recipe states: plain dataclasses, quick to import."""

from __future__ import annotations

from dataclasses import dataclass

from hubert_pretrain.fields import at_least_one, field, positive, zero_or_more


@dataclass
class Segmentation:
    """Recordings without transcript, label and alignment are cut at pauses into utterances."""

    max_seconds: float = field(0.0, zero_or_more)
    """Longer recordings are cut, into pieces of at most this length; 0: none."""
    min_seconds: float = field(1.0, positive)
    """Shorter pieces are left out."""
    pause_db: float = field(35.0, positive)
    """A hop of 20 ms is quiet when its power is this many dB below the recording's loud hops (their
    95th percentile)."""
    pause_seconds: float = field(0.3, positive)
    """So long must it be quiet for a pause. A piece without one is cut at its quietest hop."""
    margin_seconds: float = field(0.1, zero_or_more)
    """Quiet that stays at both ends of a piece; the rest of the pauses between pieces is left
    out."""


@dataclass
class SpeakerPerturbation:
    """Ranges of another voice (data/speaker_perturbation.py); length and frames of the audio
    stay."""

    formant_ratio: float = field(1.4, at_least_one)
    """Formants move by a random factor, up or down, of at most this; 1: they stay."""
    pitch_ratio: float = field(2.0, at_least_one)
    """The same for the pitch."""
    equaliser_db: float = field(12.0, zero_or_more)
    """Ten bands get louder or softer by at most this; 0: none does."""
