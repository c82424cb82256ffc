"""A recording -> what the network takes, with the mistakes that a user can make named: rate, shape,
length, broken samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hubert_pretrain.errors import DataError
from hubert_pretrain.frames import SAMPLE_RATE
from hubert_pretrain.model.config import HubertConfig

VARIANCE_FLOOR = 1e-5
"""Added to the variance when a waveform is normalised, as fairseq's layer norm does."""


def prepare_waveform(
    waveform: Tensor | Sequence[float] | Any,
    *,
    sampling_rate: int,
    config: HubertConfig,
    name: str = "waveform",
) -> Tensor:
    """One utterance (S,), or several of equal length (B, S), as (B, S) float32, normalised if the
    network wants it.

    sampling_rate: of the waveform, in samples per second; it must be the network's, since a rate
    cannot be heard from numbers. name: what to call it in an error, e.g. its file.

    Raises DataError for another rate, an integer or wrongly shaped waveform, one shorter than the
    window, and samples that are not finite.
    """
    if sampling_rate != SAMPLE_RATE:
        raise DataError(
            f"{name}: has {sampling_rate} samples per second, expected {SAMPLE_RATE}; resample it first"
        )
    samples = torch.as_tensor(waveform)
    if not samples.is_floating_point():
        raise DataError(
            f"{name}: holds {samples.dtype}, expected floats in [-1, 1]; divide 16-bit samples by 32768"
        )
    if samples.ndim not in (1, 2):
        raise DataError(
            f"{name}: has shape {tuple(samples.shape)}, expected (S,) or (B, S); mix channels down to mono"
        )
    samples = samples.float() if samples.ndim == 2 else samples.float()[None]
    window = config.grid.window
    if samples.shape[1] < window:
        raise DataError(
            f"{name}: has {samples.shape[1]} samples, expected at least {window} (one window); leave it out or pad it"
        )
    broken = int((~torch.isfinite(samples)).sum())
    if broken:
        raise DataError(
            f"{name}: {broken} of {samples.numel()} samples are NaN or infinite, expected numbers in [-1, 1]; repair the recording"
        )
    if not config.normalize_waveform:
        return samples
    variance, mean = torch.var_mean(samples, dim=1, unbiased=False, keepdim=True)
    return (samples - mean) * torch.rsqrt(variance + VARIANCE_FLOOR)
