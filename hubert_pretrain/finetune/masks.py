"""Time and channel masks of fine-tuning. B utterances, T frames, D width; True = masked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import MISSING, dataclass, fields
from typing import Protocol

import numpy as np

from hubert_pretrain.errors import ConfigError, did_you_mean
from hubert_pretrain.model.config import MASK_SAMPLERS, SpanMask
from hubert_pretrain.model.masking import Mask, span_mask
from hubert_pretrain.model.spec_augment import SpecAugment
from hubert_pretrain.seeds import derive, generator

SPEC_AUGMENT_FIELDS = ("probability", "span_frames", "min_spans")
"""Fields of SpanMask that SpecAugment has too."""


class MaskSampler(Protocol):
    """A sampler of both masks, a pure function of its seed and its arguments."""

    def draw(
        self,
        rows: Sequence[int],
        num_frames: Sequence[int],
        shape: tuple[int, int],
        *,
        step: int,
        index: int,
    ) -> tuple[Mask, Mask]:
        """Time mask (B, T) and channel mask (B, D) of a micro-batch.

        Args:
            rows: manifest rows of the B utterances.
            num_frames: real frames of each.
            shape: (T, D), padding included.
            step: the step that the micro-batch belongs to.
            index: number of the micro-batch.
        """
        ...


@dataclass(frozen=True)
class ReferenceMasks:
    """fairseq's sampler, seeded per utterance by (seed, step, row), so that a mask does not depend
    on the other utterances of the micro-batch.
    """

    time: SpanMask
    channels: SpanMask
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
        """See `MaskSampler`. Spans lie in real frames only."""
        longest, width = shape
        time = np.zeros((len(rows), longest), dtype=np.bool_)
        channels = np.zeros((len(rows), width), dtype=np.bool_)
        for b, (row, frames) in enumerate(zip(rows, num_frames, strict=True)):
            time[b, :frames] = _draw(frames, self.time, generator(self.seed, "mask", step, row))
            channels[b] = _draw(width, self.channels, generator(self.seed, "channels", step, row))
        return time, channels


@dataclass(frozen=True)
class TransformersMasks:
    """The masks that `transformers.HubertForCTC` draws in training by its `mask_time_*` and
    `mask_feature_*`; seeded by (seed, micro-batch).
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
        """See `MaskSampler`. As in `transformers`, spans may lie in padding."""
        longest, width = shape
        time, channels = self.settings.draw(
            len(rows), longest, width, generator=generator(self.seed, "spec augment", index)
        )
        if time is None:
            time = np.zeros((len(rows), longest), dtype=np.bool_)
        if channels is None:
            channels = np.zeros((len(rows), width), dtype=np.bool_)
        return time, channels


@dataclass(frozen=True)
class Views:
    """Masks of several views of each utterance, (views x B) rows, each from a sampler with a seed
    of its own.
    """

    samplers: Sequence[MaskSampler]

    def draw(
        self,
        rows: Sequence[int],
        num_frames: Sequence[int],
        shape: tuple[int, int],
        *,
        step: int,
        index: int,
    ) -> tuple[Mask, Mask]:
        """See `MaskSampler`. The first views of all utterances first."""
        drawn = [
            each.draw(rows, num_frames, shape, step=step, index=index) for each in self.samplers
        ]
        time, channels = (np.concatenate(masks) for masks in zip(*drawn, strict=True))
        return time, channels


def make_masks(
    sampler: str, time: SpanMask, channels: SpanMask, seed: int, views: int = 1
) -> MaskSampler:
    """The sampler of that name, for so many views of each utterance.

    Raises ConfigError when there is none, when `transformers` cannot draw such spans, or when
    several views would be the same.
    """
    if sampler not in MASK_SAMPLERS:
        raise ConfigError(
            f"mask_sampler={sampler!r}: expected one of {', '.join(MASK_SAMPLERS)}"
            f"{did_you_mean(sampler, MASK_SAMPLERS)}"
        )
    if views > 1:
        if time.probability == channels.probability == 0:
            raise ConfigError(
                f"mask.probability and channel_mask.probability are 0, so the {views} views of an "
                "utterance (task.consistency_weight) would be the same; mask, or set the weight "
                "to 0"
            )
        seeds = [seed, *(derive(seed, "view", number) for number in range(1, views))]
        return Views([make_masks(sampler, time, channels, each) for each in seeds])
    if sampler == "reference":
        return ReferenceMasks(time, channels, seed)
    _check_spec_augment("mask", time)
    _check_spec_augment("channel_mask", channels)
    return TransformersMasks(SpecAugment.of_spans(time, channels), seed)


def _draw(length: int, spans: SpanMask, source: np.random.Generator) -> Mask:
    """(length,) bool. A probability of 0 masks nothing, whatever `min_spans` says."""
    if spans.probability == 0:
        return np.zeros(length, dtype=np.bool_)
    return span_mask(length, spans, source)


def _check_spec_augment(name: str, spans: SpanMask) -> None:
    for field in fields(SpanMask):
        if field.name in SPEC_AUGMENT_FIELDS or field.default is MISSING:
            continue
        found = getattr(spans, field.name)
        if found != field.default:
            raise ConfigError(
                f"{name}.{field.name} is {found!r}, but transformers draws spans of one length "
                f"that may overlap; leave it at {field.default!r} or take mask_sampler=reference"
            )
