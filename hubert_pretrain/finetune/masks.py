"""What fine-tuning hides of a micro-batch: spans of frames and of channels. B utterances, T frames,
D width; True = hidden.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import MISSING, dataclass, fields
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from hubert_pretrain.errors import ConfigError, did_you_mean
from hubert_pretrain.model.config import MASK_SAMPLERS
from hubert_pretrain.model.masking import Lengths, span_mask
from hubert_pretrain.model.spec_augment import SpecAugment
from hubert_pretrain.seeds import generator

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Masking:
    """How spans are drawn: `probability` 0 for none. See `model.masking.span_mask`."""

    probability: float
    span_frames: int
    min_spans: int
    lengths: Lengths = "static"
    length_other: float = 0.0
    overlap: bool = True
    min_space: int = 1

    def draw(self, length: int, source: np.random.Generator) -> Mask:
        """(length,) bool."""
        if self.probability == 0:
            return np.zeros(length, dtype=np.bool_)
        return span_mask(length, **vars(self), generator=source)


class Masks(Protocol):
    """A sampler of both masks, a pure function of the seed and its arguments."""

    def draw(
        self,
        rows: Sequence[int],
        num_frames: Sequence[int],
        shape: tuple[int, int],
        *,
        step: int,
        index: int,
    ) -> tuple[Mask, Mask]:
        """(B, T) and (B, D) for B manifest rows of so many real frames each, padded to `shape` (T,
        D), in micro-batch `index` of a step.
        """
        ...


@dataclass(frozen=True)
class ReferenceMasks:
    """fairseq's sampler, each utterance by itself: seeded by (seed, step, row), so its mask does
    not depend on its neighbours.
    """

    time: Masking
    channels: Masking
    seed: int

    def draw(
        self,
        rows: Sequence[int],
        num_frames: Sequence[int],
        shape: tuple[int, int],
        *,
        step: int,
        index: int,
    ) -> tuple[Mask, Mask]:
        """See `Masks`. Spans lie in real frames only."""
        longest, width = shape
        time = np.zeros((len(rows), longest), dtype=np.bool_)
        for place, (row, frames) in enumerate(zip(rows, num_frames, strict=True)):
            time[place, :frames] = self.time.draw(frames, generator(self.seed, "mask", step, row))
        return time, np.stack(
            [self.channels.draw(width, generator(self.seed, "channels", step, row)) for row in rows]
        )


@dataclass(frozen=True)
class TransformersMasks:
    """What `transformers.HubertForCTC` draws in training by its `mask_time_*` and `mask_feature_*`;
    seeded by (seed, micro-batch).
    """

    settings: SpecAugment
    seed: int

    def draw(
        self,
        rows: Sequence[int],
        num_frames: Sequence[int],
        shape: tuple[int, int],
        *,
        step: int,
        index: int,
    ) -> tuple[Mask, Mask]:
        """See `Masks`. As there, spans may lie in padding."""
        longest, width = shape
        time, channels = self.settings.draw(
            len(rows), longest, width, generator=generator(self.seed, "spec augment", index)
        )
        nothing = [np.zeros((len(rows), size), dtype=np.bool_) for size in shape]
        return nothing[0] if time is None else time, nothing[1] if channels is None else channels


def make_masks(sampler: str, time: Masking, channels: Masking, seed: int) -> Masks:
    """The sampler of that name. Raises ConfigError when there is none, or when `transformers`
    cannot draw what the settings ask for.
    """
    if sampler not in MASK_SAMPLERS:
        raise ConfigError(
            f"mask_sampler={sampler!r}: expected one of {', '.join(MASK_SAMPLERS)}{did_you_mean(sampler, MASK_SAMPLERS)}"
        )
    if sampler == "reference":
        return ReferenceMasks(time, channels, seed)
    _refuse_other_spans("mask", time)
    _refuse_other_spans("channel_mask", channels)
    settings = SpecAugment(
        mask_time_prob=time.probability,
        mask_time_length=time.span_frames,
        mask_time_min_masks=time.min_spans,
        mask_feature_prob=channels.probability,
        mask_feature_length=channels.span_frames,
        mask_feature_min_masks=channels.min_spans,
    )
    return TransformersMasks(settings, seed)


def _refuse_other_spans(name: str, masking: Masking) -> None:
    for field in fields(Masking):
        if (
            field.default is not MISSING
            and (found := getattr(masking, field.name)) != field.default
        ):
            raise ConfigError(
                f"{name}.{field.name} is {found!r}, but transformers draws spans of one length that may overlap; "
                f"leave it at {field.default!r} or take mask_sampler=reference"
            )
