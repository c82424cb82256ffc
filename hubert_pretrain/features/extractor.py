"""The feature extractor protocol, and rules that batch utterances for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hubert_pretrain.frames import FrameGrid


@runtime_checkable
class Extractor(Protocol):
    """Waveforms -> frames on a grid. All of ours are `nn.Module`s, so `.to(device)` moves their
    tables or weights.

    A new feature is a new file with a class of this shape and a `_target_` node in conf/features/
    that names it.
    """

    @property
    def grid(self) -> FrameGrid:
        """Where the frames lie on the waveform."""
        ...

    @property
    def dim(self) -> int:
        """Width D of a frame."""
        ...

    def fingerprint(self) -> dict[str, Any]:
        """What determines the values, as plain JSON: `kind`, `dim` and parameters; weights by their
        hash, never by their path.

        A codebook keeps it, and refuses frames of an extractor whose fingerprint differs.
        """
        ...

    def __call__(self, waveform: Tensor) -> Tensor:
        """(B, S) float32 at 16 kHz, rows equally long, whole utterances -> (B, T, D) float32 with T
        = `grid.num_frames(S)`.
        """
        ...


@runtime_checkable
class PackedExtractor(Extractor, Protocol):
    """An extractor that computes utterances of different lengths together, which is faster. Each is
    as if alone, up to rounding.
    """

    def ragged(self, waveforms: Sequence[Tensor]) -> Tensor:
        """Whole utterances (S_i,) -> their frames behind one another, (N, D) with N = the sum of
        `grid.num_frames(S_i)`.
        """
        ...

    def batches(self, num_samples: NDArray[np.int64]) -> Batches:
        """Which utterances of a group to give to `ragged` together: a pure function of their
        lengths (and of the kind of device).
        """
        ...


def extract(extractor: Extractor, waveforms: Sequence[Tensor]) -> Tensor:
    """Frames (N, D) of utterances (S_i,) behind one another, with any extractor."""
    if isinstance(extractor, PackedExtractor):
        return extractor.ragged(waveforms)
    return torch.cat([extractor(waveform[None])[0] for waveform in waveforms])


def plan_batches(extractor: Extractor, num_samples: NDArray[np.int64]) -> Batches:
    """Which utterances of a group to compute together: each by itself unless the extractor can do
    more.
    """
    if isinstance(extractor, PackedExtractor):
        return extractor.batches(num_samples)
    return [np.array([place]) for place in range(len(num_samples))]


def describe(fingerprint: dict[str, Any]) -> str:
    """A few words for error messages, e.g. ``"hubert_layer (dim 768, layer 6, weights
    3f9a0c12)"``.
    """
    facts = {name: value for name, value in fingerprint.items() if name in ("dim", "layer")}
    if "weights_sha256" in fingerprint:
        facts["weights"] = str(fingerprint["weights_sha256"])[:8]
    return f"{fingerprint.get('kind', 'unknown features')} ({', '.join(f'{name} {value}' for name, value in facts.items())})"


Batches = list[NDArray[np.int64]]
"""Places (B,) of the utterances of each batch; together every place of the group once."""

MAX_PADDING = 0.1
"""Share of the shortest utterance of a padded batch by which the longest may be longer: more
padding costs more than a smaller batch.
"""


def packed_batches(num_samples: NDArray[np.int64], max_samples: int) -> Batches:
    """Neighbours, for features that lay utterances behind one another: at most `max_samples`
    together, or a single utterance.
    """
    batches: Batches = []
    start = 0
    total = 0
    for place, length in enumerate(map(int, num_samples)):
        if place > start and total + length > max_samples:
            batches.append(np.arange(start, place))
            start = place
            total = 0
        total += length
    return [*batches, np.arange(start, len(num_samples))] if len(num_samples) else []


def padded_batches(
    num_samples: NDArray[np.int64], max_samples: int, *, max_padding: float = MAX_PADDING
) -> Batches:
    """Similar lengths, for networks that pad: at most `max_samples` with the padding, or a single
    utterance. Longest first.

    `max_padding=0` puts only equally long utterances together.
    """
    batches: Batches = []
    order = np.argsort(-num_samples, kind="stable")
    start = 0
    for index in range(1, len(order) + 1):
        longest = int(num_samples[order[start]])
        full = (index - start + 1) * longest > max_samples
        if (
            index == len(order)
            or full
            or longest > (1 + max_padding) * int(num_samples[order[index]])
        ):
            batches.append(order[start:index])
            start = index
    return batches
