"""The feature extractor protocol, and the rules that batch utterances for it.

Tensor letters: B utterances, S samples, T frames, N frames of all utterances, D width of a frame.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hubert_pretrain.frames import FrameGrid

Batches = list[NDArray[np.int64]]
"""Positions (B,) of the utterances of each batch. Every position of the group occurs in exactly
one batch."""

MAX_PADDING = 0.1
"""The longest utterance of a padded batch is at most this share longer than the shortest: more
padding costs more than a smaller batch."""


@runtime_checkable
class FeatureExtractor(Protocol):
    """Waveforms -> frames on a grid.

    All extractors of this package are `nn.Module`s, so `.to(device)` moves their tables or weights.
    To add a feature, write a class with these methods in a new file, and name it in the `_target_`
    of a new file in conf/features/.
    """

    @property
    def grid(self) -> FrameGrid:
        """Position of the frames on the waveform."""
        ...

    @property
    def dim(self) -> int:
        """Width D of a frame."""
        ...

    def fingerprint(self) -> dict[str, Any]:
        """Everything that determines the values, as plain JSON: `kind`, `dim` and the parameters.

        Weights are identified by their hash, never by their path. A codebook stores the fingerprint
        and refuses frames of an extractor with a different one.
        """
        ...

    def __call__(self, waveform: Tensor) -> Tensor:
        """Whole utterances of equal length (B, S), float32 at 16 kHz -> (B, T, D) float32, with
        T = `grid.num_frames(S)`.
        """
        ...


@runtime_checkable
class PackedExtractor(FeatureExtractor, Protocol):
    """An extractor that computes utterances of different lengths together, which is faster.

    Up to rounding, each utterance gets the frames that it would get alone.
    """

    def extract_packed(self, waveforms: Sequence[Tensor]) -> Tensor:
        """Whole utterances (S_i,) -> their frames concatenated, (N, D), with N = the sum of
        `grid.num_frames(S_i)`.
        """
        ...

    def plan_batches(self, num_samples: NDArray[np.int64]) -> Batches:
        """Batches for `extract_packed`: a pure function of the lengths of a group of utterances
        (and of the kind of device).
        """
        ...


def extract(extractor: FeatureExtractor, waveforms: Sequence[Tensor]) -> Tensor:
    """Concatenated frames (N, D) of utterances (S_i,), with any extractor."""
    if isinstance(extractor, PackedExtractor):
        return extractor.extract_packed(waveforms)
    return torch.cat([extractor(waveform[None])[0] for waveform in waveforms])


def plan_batches(extractor: FeatureExtractor, num_samples: NDArray[np.int64]) -> Batches:
    """Batches of a group of utterances: those of a PackedExtractor, else one utterance each."""
    if isinstance(extractor, PackedExtractor):
        return extractor.plan_batches(num_samples)
    return [np.array([position]) for position in range(len(num_samples))]


def describe(fingerprint: dict[str, Any]) -> str:
    """A short form for error messages, e.g. ``"hubert_layer (dim 768, layer 6, weights
    3f9a0c12)"``.
    """
    facts = {name: value for name, value in fingerprint.items() if name in ("dim", "layer")}
    if "weights_sha256" in fingerprint:
        facts["weights"] = str(fingerprint["weights_sha256"])[:8]
    listed = ", ".join(f"{name} {value}" for name, value in facts.items())
    return f"{fingerprint.get('kind', 'unknown features')} ({listed})"


def packed_batches(num_samples: NDArray[np.int64], max_samples: int) -> Batches:
    """Batches of neighbouring utterances, for extractors that concatenate waveforms.

    A batch holds at most `max_samples` samples, or a single utterance.
    """
    if len(num_samples) == 0:
        return []
    batches: Batches = []
    start = 0
    total = 0
    for position, length in enumerate(map(int, num_samples)):
        if position > start and total + length > max_samples:
            batches.append(np.arange(start, position))
            start = position
            total = 0
        total += length
    batches.append(np.arange(start, len(num_samples)))
    return batches


def padded_batches(
    num_samples: NDArray[np.int64], max_samples: int, *, max_padding: float = MAX_PADDING
) -> Batches:
    """Batches of utterances of similar length, for networks that pad; the longest come first.

    A batch holds at most `max_samples` samples, padding included, or a single utterance.
    `max_padding=0` puts only utterances of equal length together.
    """
    batches: Batches = []
    order = np.argsort(-num_samples, kind="stable")
    start = 0
    for index in range(1, len(order) + 1):
        longest = int(num_samples[order[start]])
        is_end = index == len(order)
        is_full = (index - start + 1) * longest > max_samples
        if is_end or is_full or longest > (1 + max_padding) * int(num_samples[order[index]]):
            batches.append(order[start:index])
            start = index
    return batches
