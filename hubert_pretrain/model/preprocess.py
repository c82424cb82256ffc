"""Network input from a recording: checks of rate, shape, length and sample values, and the one
normalisation of waveforms.

Letters: B utterances, S samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hubert_pretrain.errors import DataError
from hubert_pretrain.frames import SAMPLE_RATE
from hubert_pretrain.model.config import HubertConfig

VARIANCE_FLOOR = 1e-5
"""Added to the variance when a waveform is normalised: the epsilon of torch's `layer_norm`, with
which fairseq normalises waveforms. It matters for quiet recordings.
"""

Waveform = TypeVar("Waveform", Tensor, NDArray[np.float32])


def prepare_waveform(
    waveform: Tensor | Sequence[float] | Any,
    *,
    sampling_rate: int,
    config: HubertConfig,
    name: str = "waveform",
) -> Tensor:
    """One utterance (S,), or several of equal length (B, S), as (B, S) float32; normalised if
    `config.normalize_waveform`.

    Args:
        waveform: floats in [-1, 1].
        sampling_rate: of the waveform, in samples per second. It must be the network's 16 kHz.
        config: of the network that takes the waveform.
        name: used for the waveform in error messages, e.g. its file.

    Raises:
        DataError: another sampling rate, an integer or wrongly shaped waveform, one shorter than
            the window, or samples that are not finite.
    """
    if sampling_rate != SAMPLE_RATE:
        raise DataError(
            f"{name}: has {sampling_rate} samples per second, expected {SAMPLE_RATE}; "
            "resample it first"
        )
    samples = torch.as_tensor(waveform)
    if not samples.is_floating_point():
        raise DataError(
            f"{name}: holds {samples.dtype}, expected floats in [-1, 1]; "
            "divide 16-bit samples by 32768"
        )
    if samples.ndim not in (1, 2):
        raise DataError(
            f"{name}: has shape {tuple(samples.shape)}, expected (S,) or (B, S); "
            "mix channels down to mono"
        )
    samples = samples.float() if samples.ndim == 2 else samples.float()[None]  # (B, S)
    window = config.grid.window
    if samples.shape[1] < window:
        raise DataError(
            f"{name}: has {samples.shape[1]} samples, expected at least {window} (one window); "
            "leave it out or pad it"
        )
    broken = int((~torch.isfinite(samples)).sum())
    if broken:
        raise DataError(
            f"{name}: {broken} of {samples.numel()} samples are NaN or infinite, "
            "expected numbers in [-1, 1]; repair the recording"
        )
    return normalize(samples) if config.normalize_waveform else samples


def normalize(waveform: Tensor) -> Tensor:
    """(..., S) with zero mean and unit variance along each row, as a new tensor."""
    variance, mean = torch.var_mean(waveform, dim=-1, correction=0, keepdim=True)
    return normalize_(waveform.clone(), mean, variance)


def normalize_(waveform: Waveform, mean: float | Tensor, variance: float | Tensor) -> Waveform:
    """Subtracts `mean` and divides by the standard deviation, in place; returns `waveform`.

    Given the statistics of the whole utterance, a crop comes out as it would inside the whole.
    Arrays take Python floats.
    """
    waveform -= mean  # type: ignore[assignment]
    waveform /= (variance + VARIANCE_FLOOR) ** 0.5  # type: ignore[assignment]
    return waveform
