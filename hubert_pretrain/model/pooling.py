"""Pooling of frames to one vector per utterance. B utterances, T frames, D width."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hubert_pretrain.errors import ConfigError, did_you_mean

_SMALLEST_VARIANCE = 1e-5
"""Floor under the root, whose gradient at 0 is infinite."""


class MeanPooling(nn.Module):
    """Mean over valid frames."""

    name: ClassVar[str] = "mean"

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.width = hidden_size

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        """(B, T, D) and real frames (B, T) bool (None: all) -> (B, D)."""
        if valid is None:
            return x.mean(1)
        real = valid[..., None].to(x.dtype)
        return (x * real).sum(1) / real.sum(1)


class AttentiveStatisticsPooling(nn.Module):
    """Weighted mean and standard deviation over valid frames, with learnt weights for each channel
    (Okabe et al. 2018; the weights per channel of ECAPA-TDNN, Desplanques et al. 2020).
    """

    name: ClassVar[str] = "attentive"

    def __init__(self, hidden_size: int, bottleneck: int = 128) -> None:
        super().__init__()
        self.width = 2 * hidden_size
        self.down = nn.Linear(hidden_size, bottleneck)
        self.up = nn.Linear(bottleneck, hidden_size, bias=False)  # a softmax over T cancels one

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        """(B, T, D) and real frames (B, T) bool (None: all) -> (B, 2 D)."""
        x = x.float()  # squares and their differences
        scores = self.up(torch.tanh(self.down(x))).float()  # (B, T, D)
        if valid is not None:
            scores = scores.masked_fill(~valid[..., None], -torch.inf)
            x = x.masked_fill(~valid[..., None], 0.0)
        weights = scores.softmax(1)
        mean = (weights * x).sum(1)
        variance = (weights * (x - mean[:, None]).square()).sum(1)
        return torch.cat([mean, variance.clamp_min(_SMALLEST_VARIANCE).sqrt()], dim=-1)


class XVectorPooling(nn.Module):
    """Five layers that each see a window of time, then mean and standard deviation over valid
    frames (x-vectors, Snyder et al. 2018, in the sizes of SUPERB's speaker verification). Frames
    whose window holds padding do not count; an utterance of less than 16 frames is filled up.
    """

    name: ClassVar[str] = "xvector"
    windows: ClassVar[Sequence[tuple[int, int]]] = ((5, 1), (3, 2), (3, 3), (1, 1), (1, 1))
    """Frames of each layer, and the distance between two of them."""

    def __init__(self, hidden_size: int, statistics_size: int = 1500) -> None:
        super().__init__()
        self.width = 2 * statistics_size
        sizes = [hidden_size] * len(self.windows) + [statistics_size]
        self.layers = nn.ModuleList(
            nn.Conv1d(size, after, window, dilation=distance)
            for size, after, (window, distance) in zip(
                sizes[:-1], sizes[1:], self.windows, strict=True
            )
        )
        self.context = sum((window - 1) * distance for window, distance in self.windows)

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        """(B, T, D) and real frames (B, T) bool (None: all) -> (B, width)."""
        frames = x.shape[1] if valid is None else valid.sum(1, keepdim=True)
        x = F.pad(x.transpose(1, 2), (0, max(0, self.context + 2 - x.shape[1])))  # (B, D, T)
        for layer in self.layers:
            x = layer(x).relu()
        x = x.float()
        place = torch.arange(x.shape[2], device=x.device)[None]
        real = (place < frames - self.context) | (place < 2)  # (1 or B, T - 14)
        real = real[:, None].float()
        count = real.sum(2)
        mean = (x * real).sum(2) / count
        variance = ((x - mean[..., None]).square() * real).sum(2) / (count - 1)
        varies = variance > 0  # a rectified channel may be 0 throughout
        deviation = torch.where(varies, variance, 1.0).sqrt() * varies
        return torch.cat([mean, deviation], dim=-1)


Pooling: TypeAlias = MeanPooling | AttentiveStatisticsPooling | XVectorPooling
POOLINGS: dict[str, type[Pooling]] = {
    each.name: each for each in (MeanPooling, AttentiveStatisticsPooling, XVectorPooling)
}
"""Poolings by name."""


def make_pooling(name: str, hidden_size: int) -> Pooling:
    """The pooling of that name for frames of width D. Raises ConfigError when there is none."""
    if name not in POOLINGS:
        raise ConfigError(
            f"pooling={name!r}: expected one of {', '.join(POOLINGS)}"
            f"{did_you_mean(name, list(POOLINGS))}"
        )
    return POOLINGS[name](hidden_size)
