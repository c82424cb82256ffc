"""The masks that `transformers` draws when an exported model is trained there
(`_compute_mask_indices`), seeded.

Pretraining and fine-tuning here use fairseq's sampler (model/masking.py). This one continues or
repeats a training in `transformers`. It differs in four points: all rows share one rounding of the
number of spans, spans lie wholly inside their row, there are never more than fit side by side, and
rows are not made equal. NumPy only.

Letters: B utterances, T frames, D width. True = masked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hubert_pretrain.errors import ConfigError, DataError
from hubert_pretrain.model.config import SpanMask

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class SpecAugment:
    """The fields of `transformers.HubertConfig` with these names, and its defaults."""

    apply_spec_augment: bool = True
    mask_time_prob: float = 0.05
    mask_time_length: int = 10
    mask_time_min_masks: int = 2
    mask_feature_prob: float = 0.0
    mask_feature_length: int = 10
    mask_feature_min_masks: int = 0

    @staticmethod
    def of(fields: Mapping[str, Any]) -> SpecAugment:
        """From a `config.json` of `transformers`, or from `loaded.extra["transformers"]` of a
        checkpoint that was read from one.
        """
        return SpecAugment(**{name: fields[name] for name in vars(SpecAugment()) if name in fields})

    @staticmethod
    def of_spans(time: SpanMask, channels: SpanMask | None = None) -> SpecAugment:
        """The settings nearest to span masks of this package; None: no masks of channels."""
        channels = channels or SpanMask(probability=0.0, min_spans=0)
        return SpecAugment(
            mask_time_prob=time.probability,
            mask_time_length=time.span_frames,
            mask_time_min_masks=time.min_spans,
            mask_feature_prob=channels.probability,
            mask_feature_length=channels.span_frames,
            mask_feature_min_masks=channels.min_spans,
        )

    def draw(
        self,
        rows: int,
        num_frames: int,
        width: int,
        *,
        generator: np.random.Generator,
        valid_frames: Sequence[int] | None = None,
    ) -> tuple[Mask | None, Mask | None]:
        """The arguments `mask` (B, T) and `channel_mask` (B, D) of Hubert.forward in training; None
        where a probability is 0.

        valid_frames: real frames of each row, to keep spans out of padding. HubertModel does not
        do so, with or without an attention mask: leave it out to repeat `transformers`.
        """
        time = None
        channels = None
        if self.apply_spec_augment and self.mask_time_prob > 0:
            time = span_masks(
                (rows, num_frames),
                probability=self.mask_time_prob,
                span=self.mask_time_length,
                min_spans=self.mask_time_min_masks,
                generator=generator,
                lengths=valid_frames,
            )
        if self.apply_spec_augment and self.mask_feature_prob > 0:
            channels = span_masks(
                (rows, width),
                probability=self.mask_feature_prob,
                span=self.mask_feature_length,
                min_spans=self.mask_feature_min_masks,
                generator=generator,
            )
        return time, channels


def span_masks(
    shape: tuple[int, int],
    *,
    probability: float,
    span: int,
    min_spans: int,
    generator: np.random.Generator,
    lengths: Sequence[int] | None = None,
) -> Mask:
    """(B, T) bool: spans at random starts, which may overlap.

    Draws in the same order as `transformers`: with `np.random.RandomState(seed)` in place of the
    generator, the masks are those that it draws after `np.random.seed(seed)`.

    Args:
        shape: (B, T).
        probability: expected share of positions in spans, before overlaps.
        span: length of a span.
        min_spans: spans per row, at least.
        generator: source of randomness.
        lengths: (B,) positions of each row that may be masked; None: all.

    Raises:
        ConfigError: a span of no length.
        DataError: rows shorter than one span.
    """
    rows, size = shape
    if span < 1:
        raise ConfigError(
            f"spans of {span} positions cannot be masked; "
            "mask_time_length and mask_feature_length must be at least 1"
        )
    if span > size:
        raise DataError(
            f"spans of {span} positions do not fit rows of {size}; "
            "leave shorter utterances out or choose shorter spans"
        )
    rounding = float(generator.random())  # one for all rows
    mask = np.zeros(shape, dtype=np.bool_)
    most = _count(size, size, probability, span, min_spans, rounding)
    if most == 0:
        return mask
    for row, length in enumerate([size] * rows if lengths is None else lengths):
        count = _count(length, size, probability, span, min_spans, rounding)
        starts = np.array([], dtype=int)
        if length >= span:
            starts = generator.choice(np.arange(length - (span - 1)), count, replace=False)
        if count == 0:
            # As in `transformers`: a row without spans masks its last position, which is padding.
            starts = np.array([size - 1])
        masked = starts[:, None] + np.arange(span)
        mask[row, np.minimum(masked, size - 1)] = True
    return mask


def _count(
    length: int, size: int, probability: float, span: int, min_spans: int, rounding: float
) -> int:
    """Number of spans in a row with `length` of `size` positions: at most as many as fit into
    `size` side by side, and as many as there are starts.
    """
    count = max(int(probability * length / span + rounding), min_spans)
    if count * span > size:
        count = size // span
    return min(count, max(length - (span - 1), 0))
