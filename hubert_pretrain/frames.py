"""Samples <-> frames: the only file with the numbers of the frame grid.

A model frame is a window of 400 samples taken every 320 (reference: HuBERT's conv encoder, wav2vec
2.0 section 2). Kaldi's MFCC frame ``2t`` is a window of 400 samples that starts at ``160 * 2t =
320t``: exactly the samples of model frame ``t``. So every target is on the model's grid, and no
other file needs 16000, 400, 320 or 160.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, overload

if TYPE_CHECKING:
    from numpy.typing import NDArray

SAMPLE_RATE = 16_000
"""Samples per second of every waveform in this project."""


@dataclass(frozen=True)
class FrameGrid:
    """Position of frames on a waveform: frame ``t`` covers the samples ``[t * hop, t * hop +
    window)``.
    """

    window: int
    """Samples that one frame covers."""
    hop: int
    """Samples from one frame to the next."""

    @overload
    def num_frames(self, num_samples: int) -> int: ...
    @overload
    def num_frames(self, num_samples: NDArray[Any]) -> NDArray[Any]: ...
    def num_frames(self, num_samples: Any) -> Any:
        """Number of frames in ``num_samples`` samples, or in each of an array of lengths; 0 for
        less than one window.
        """
        frames = (num_samples - self.window) // self.hop + 1
        return frames * (frames > 0)

    def num_samples(self, num_frames: int) -> int:
        """The fewest samples that give ``num_frames`` frames (at least 1 frame)."""
        return self.window + self.hop * (num_frames - 1)

    def start_sample(self, frame: int) -> int:
        """First sample of a frame. A crop that starts here keeps every later frame on the grid."""
        return frame * self.hop

    def centre_sample(self, frame: int) -> int:
        """Middle sample of a frame; the phone of a frame is the one at this sample."""
        return frame * self.hop + self.window // 2

    @property
    def frames_per_second(self) -> float:
        """Frame rate, e.g. 50.0."""
        return SAMPLE_RATE / self.hop

    def fits(self, other: FrameGrid) -> bool:
        """True where one of two grids has a whole number of frames for each of the other's."""
        return max(self.hop, other.hop) % min(self.hop, other.hop) == 0

    def nearest(self, other: FrameGrid, num_samples: int) -> NDArray[Any]:
        """For each frame of `other` in `num_samples` samples, (T,), the frame of this grid whose
        centre is nearest: with 40 ms here and 20 ms there each twice, the other way round every
        second one.

        Raises ValueError where there are frames of `other`, and none of this grid.
        """
        import numpy as np

        frames = np.arange(other.num_frames(num_samples))
        last = self.num_frames(num_samples) - 1
        if len(frames) and last < 0:
            raise ValueError(f"{num_samples} samples hold no frame of {self.window} samples")
        twice_late = 2 * other.hop * frames + other.window - self.window
        return np.clip((twice_late + self.hop) // (2 * self.hop), 0, max(last, 0))

    def every(self, count: int) -> FrameGrid:
        """The grid whose frame is `count` neighbouring frames of this one."""
        return FrameGrid(window=self.num_samples(count), hop=count * self.hop)

    @staticmethod
    def of_convolutions(kernels: Sequence[int], strides: Sequence[int]) -> FrameGrid:
        """The grid of a stack of unpadded convolutions: hop is the product of strides, window the
        receptive field.
        """
        window = 1
        hop = 1
        for kernel, stride in zip(kernels, strides, strict=True):
            window += (kernel - 1) * hop
            hop *= stride
        return FrameGrid(window=window, hop=hop)


MODEL_GRID = FrameGrid(window=400, hop=320)
"""HuBERT's grid: 25 ms every 20 ms."""

MFCC_GRID = FrameGrid(window=400, hop=160)
"""Kaldi's grid: 25 ms every 10 ms. Every second frame is a model frame."""


@overload
def seconds(num_samples: int) -> float: ...
@overload
def seconds(num_samples: NDArray[Any]) -> NDArray[Any]: ...
def seconds(num_samples: Any) -> Any:
    """Length in seconds of ``num_samples`` samples, or of each of an array of lengths."""
    return num_samples / SAMPLE_RATE


def samples(num_seconds: float) -> int:
    """Whole samples in ``num_seconds`` seconds."""
    return round(num_seconds * SAMPLE_RATE)


def rate_hint(found: int, expected: int) -> str:
    """Likely cause of `found` frames or labels in place of `expected`, for a message; "" when it is
    none of the usual ones.
    """
    if abs(found - 2 * expected) <= 1:
        return "twice as many: are these 100 Hz? Take every second one ([::2])"
    if abs(2 * found - expected) <= 1:
        return "half as many: are these 25 Hz? Make them again on the model's grid"
    return ""
