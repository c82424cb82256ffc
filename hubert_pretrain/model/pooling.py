"""Pooling of frames to one vector per utterance. B utterances, T frames, D width."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

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


POOLINGS: dict[str, type[MeanPooling | AttentiveStatisticsPooling]] = {
    each.name: each for each in (MeanPooling, AttentiveStatisticsPooling)
}
"""Poolings by name."""


def make_pooling(name: str, hidden_size: int) -> MeanPooling | AttentiveStatisticsPooling:
    """The pooling of that name for frames of width D. Raises ConfigError when there is none."""
    if name not in POOLINGS:
        raise ConfigError(
            f"pooling={name!r}: expected one of {', '.join(POOLINGS)}"
            f"{did_you_mean(name, list(POOLINGS))}"
        )
    return POOLINGS[name](hidden_size)
