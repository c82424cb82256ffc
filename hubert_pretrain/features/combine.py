"""Features made of other features: concatenation, context frames (splicing), derivatives.

Tensor letters: B utterances, S samples, T frames, N frames of all utterances, D width of a frame.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hubert_pretrain.errors import ConfigError
from hubert_pretrain.features import spectrum
from hubert_pretrain.features.extractor import (
    Batches,
    FeatureExtractor,
    describe,
    extract,
    plan_batches,
)
from hubert_pretrain.frames import FrameGrid


class Combined(nn.Module):
    """Base class of the combinations: the grid of the parts, and batches that suit all of them."""

    def __init__(self, parts: Sequence[FeatureExtractor]) -> None:
        super().__init__()
        self.parts: Any = nn.ModuleList(parts)  # type: ignore[arg-type]

    @property
    def grid(self) -> FrameGrid:
        """The grid that all parts share."""
        return self.parts[0].grid  # type: ignore[no-any-return]

    @property
    def dim(self) -> int:
        """Width of a frame."""
        raise NotImplementedError

    def forward(self, waveform: Tensor) -> Tensor:
        """Frames of utterances of equal length: (B, S) -> (B, T, D)."""
        num_frames = self.grid.num_frames(waveform.shape[-1])
        return self.extract_packed(list(waveform)).view(len(waveform), num_frames, self.dim)

    def extract_packed(self, waveforms: Sequence[Tensor]) -> Tensor:
        """Concatenated frames (N, D) of utterances (S_i,)."""
        raise NotImplementedError

    def plan_batches(self, num_samples: NDArray[np.int64]) -> Batches:
        """The plan of the part with the most batches, hence the smallest ones."""
        return max((plan_batches(part, num_samples) for part in self.parts), key=len)


class Concatenate(Combined):
    """The frames of several extractors side by side: D is the sum of their widths.

    Args:
        extractors: nodes with a `_target_` each, on one frame grid.
    """

    def __init__(self, extractors: Sequence[FeatureExtractor]) -> None:
        super().__init__(extractors)
        if not extractors:
            raise ConfigError("features.extractors is empty; name at least one to concatenate")
        for part in extractors:
            if part.grid != self.grid:
                first = describe(extractors[0].fingerprint())
                other = describe(part.fingerprint())
                raise ConfigError(
                    f"features.extractors: {first} has {self.grid}, {other} has {part.grid}; only "
                    "frames of one grid can be concatenated"
                )

    @property
    def dim(self) -> int:
        """Sum of the widths of the parts."""
        return sum(part.dim for part in self.parts)

    def fingerprint(self) -> dict[str, Any]:
        """The fingerprints of the parts, in order."""
        return {
            "kind": "concatenate",
            "dim": self.dim,
            "parts": [part.fingerprint() for part in self.parts],
        }

    @torch.inference_mode()
    def extract_packed(self, waveforms: Sequence[Tensor]) -> Tensor:
        """(S_i,) -> (N, D)."""
        return torch.cat([extract(part, waveforms) for part in self.parts], dim=-1)


class Splice(Combined):
    """Each frame with `left` frames before and `right` frames after it, oldest first; the first and
    last frame are repeated at the ends.

    Args:
        extractor: a node with its own `_target_`.
        left: context frames before.
        right: context frames after.
    """

    def __init__(self, extractor: FeatureExtractor, *, left: int, right: int) -> None:
        super().__init__([extractor])
        if min(left, right) < 0:
            raise ConfigError(
                f"features: left={left}, right={right}; expected 0 or more frames on each side"
            )
        self.left = left
        self.right = right

    @property
    def dim(self) -> int:
        """Width of the extractor's frames times the number of spliced frames."""
        return (self.left + 1 + self.right) * int(self.parts[0].dim)

    def fingerprint(self) -> dict[str, Any]:
        """The extractor's fingerprint, and the context."""
        return {
            "kind": "splice",
            "dim": self.dim,
            "left": self.left,
            "right": self.right,
            "of": self.parts[0].fingerprint(),
        }

    @torch.inference_mode()
    def extract_packed(self, waveforms: Sequence[Tensor]) -> Tensor:
        """(S_i,) -> (N, D)."""
        frames = extract(self.parts[0], waveforms)  # (N, width)
        counts = torch.tensor([self.grid.num_frames(len(waveform)) for waveform in waveforms])
        # First and last frame of the utterance of each frame, (N,): neighbours are clipped to them.
        first = torch.repeat_interleave(torch.cumsum(counts, 0) - counts, counts)
        last = first + torch.repeat_interleave(counts, counts) - 1
        position = torch.arange(len(frames))
        neighbours = [
            torch.minimum(torch.maximum(position + offset, first), last)
            for offset in range(-self.left, self.right + 1)
        ]
        index = torch.stack(neighbours, dim=1).to(frames.device)  # (N, left + 1 + right)
        return frames[index].flatten(1)  # (N, left + 1 + right, width) -> (N, D)


class Deltas(Combined):
    """The frames of an extractor with their first `order` derivatives over time, each by regression
    over five frames (Kaldi).
    """

    def __init__(self, extractor: FeatureExtractor, *, order: int = 2) -> None:
        super().__init__([extractor])
        if order < 1:
            raise ConfigError(f"features: order={order} derivatives; expected 1 or more")
        self.order = order

    @property
    def dim(self) -> int:
        """Width of the extractor's frames, for the frames and each derivative."""
        return (1 + self.order) * int(self.parts[0].dim)

    def fingerprint(self) -> dict[str, Any]:
        """The extractor's fingerprint, and the order."""
        return {
            "kind": "deltas",
            "dim": self.dim,
            "order": self.order,
            "of": self.parts[0].fingerprint(),
        }

    @torch.inference_mode()
    def extract_packed(self, waveforms: Sequence[Tensor]) -> Tensor:
        """(S_i,) -> (N, D)."""
        counts = [self.grid.num_frames(len(waveform)) for waveform in waveforms]
        derivatives = [extract(self.parts[0], waveforms)]
        for _ in range(self.order):
            derivatives.append(spectrum.deltas(derivatives[-1], counts))
        return torch.cat(derivatives, dim=-1)
