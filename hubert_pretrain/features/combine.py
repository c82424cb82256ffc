"""Features made of features: several side by side, neighbours in time, slopes. N frames of all
utterances, D width.
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
from hubert_pretrain.features.extractor import Batches, Extractor, describe, extract, plan_batches
from hubert_pretrain.frames import FrameGrid


class Combined(nn.Module):
    """What combinations have in common: the grid of their parts, and batches that suit all of
    them.
    """

    def __init__(self, parts: Sequence[Extractor]) -> None:
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
        """Frames of equally long waveforms: (B, S) -> (B, T, D)."""
        return self.ragged(list(waveform)).view(
            len(waveform), self.grid.num_frames(waveform.shape[-1]), self.dim
        )

    def ragged(self, waveforms: Sequence[Tensor]) -> Tensor:
        """Frames (N, D) of utterances (S_i,), behind one another."""
        raise NotImplementedError

    def batches(self, num_samples: NDArray[np.int64]) -> Batches:
        """The batches of the part that makes most of them, so that none gets more at once than it
        asks for in total.
        """
        return max((plan_batches(part, num_samples) for part in self.parts), key=len)


class Concatenate(Combined):
    """The frames of several extractors side by side: D is the sum of their widths."""

    def __init__(self, extractors: Sequence[Extractor]) -> None:
        super().__init__(extractors)
        if not extractors:
            raise ConfigError("features.extractors is empty; name at least one to concatenate")
        for part in extractors:
            if part.grid != self.grid:
                first = describe(extractors[0].fingerprint())
                other = describe(part.fingerprint())
                raise ConfigError(
                    f"features.extractors: {first} has {self.grid}, {other} has {part.grid}; only frames of one grid can be concatenated"
                )

    @property
    def dim(self) -> int:
        """The sum of the parts'."""
        return sum(part.dim for part in self.parts)

    def fingerprint(self) -> dict[str, Any]:
        """Those of the parts, in order."""
        return {
            "kind": "concatenate",
            "dim": self.dim,
            "parts": [part.fingerprint() for part in self.parts],
        }

    @torch.inference_mode()
    def ragged(self, waveforms: Sequence[Tensor]) -> Tensor:
        """(S_i,) -> (N, D)."""
        return torch.cat([extract(part, waveforms) for part in self.parts], dim=-1)


class Splice(Combined):
    """Each frame with `left` frames before and `right` frames after it, oldest first; the first and
    last frame are repeated at the ends.
    """

    def __init__(self, extractor: Extractor, *, left: int, right: int) -> None:
        super().__init__([extractor])
        if min(left, right) < 0:
            raise ConfigError(
                f"features: left={left}, right={right}; expected 0 or more frames on each side"
            )
        self.left = left
        self.right = right

    @property
    def dim(self) -> int:
        """So many frames of the extractor."""
        return (self.left + 1 + self.right) * int(self.parts[0].dim)

    def fingerprint(self) -> dict[str, Any]:
        """That of the extractor, and the context."""
        return {
            "kind": "splice",
            "dim": self.dim,
            "left": self.left,
            "right": self.right,
            "of": self.parts[0].fingerprint(),
        }

    @torch.inference_mode()
    def ragged(self, waveforms: Sequence[Tensor]) -> Tensor:
        """(S_i,) -> (N, D)."""
        frames = extract(self.parts[0], waveforms)
        counts = torch.tensor([self.grid.num_frames(len(waveform)) for waveform in waveforms])
        first = torch.repeat_interleave(
            torch.cumsum(counts, 0) - counts, counts
        )  # (N,): where each frame's utterance begins
        last = first + torch.repeat_interleave(counts, counts) - 1
        here = torch.arange(len(frames))
        near = [
            torch.minimum(torch.maximum(here + offset, first), last)
            for offset in range(-self.left, self.right + 1)
        ]
        return frames[torch.stack(near, dim=1).to(frames.device)].flatten(
            1
        )  # (N, frames, D) -> (N, D)


class Deltas(Combined):
    """The frames of an extractor with their first `order` derivatives over time, each by regression
    over five frames (Kaldi).
    """

    def __init__(self, extractor: Extractor, *, order: int = 2) -> None:
        super().__init__([extractor])
        if order < 1:
            raise ConfigError(f"features: order={order} derivatives; expected 1 or more")
        self.order = order

    @property
    def dim(self) -> int:
        """The extractor's, once for each derivative and once for itself."""
        return (1 + self.order) * int(self.parts[0].dim)

    def fingerprint(self) -> dict[str, Any]:
        """That of the extractor, and the order."""
        return {
            "kind": "deltas",
            "dim": self.dim,
            "order": self.order,
            "of": self.parts[0].fingerprint(),
        }

    @torch.inference_mode()
    def ragged(self, waveforms: Sequence[Tensor]) -> Tensor:
        """(S_i,) -> (N, D)."""
        counts = [self.grid.num_frames(len(waveform)) for waveform in waveforms]
        made = [extract(self.parts[0], waveforms)]
        for _ in range(self.order):
            made.append(spectrum.deltas(made[-1], counts))
        return torch.cat(made, dim=-1)
