"""SpecAugment (Park et al. 2019) of features instead of spectra, as SUPERB trains its speech
recognition. B utterances, T frames, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

WARP_FRAMES = 5
CHANNEL_MASKS = 4
CHANNEL_WIDTH = 50
TIME_MASKS = 2
TIME_WIDTH = 40


def spec_augment(x: Tensor, valid: Tensor | None = None) -> Tensor:
    """Features (B, T, D), warped over time by up to 5 frames, with four stretches of less than 50
    channels and two of less than 40 frames as zeros. Random numbers are torch's, in the order of
    s3prl's class.

    valid: (B, T), True for real frames; None: all are.
    """
    lengths = [x.shape[1]] * len(x) if valid is None else valid.sum(1).tolist()
    warped = torch.zeros_like(x)
    for row, length in enumerate(lengths):
        warped[row, :length] = warp(x[row, :length])
    channels = stretches(len(x), x.shape[2], CHANNEL_MASKS, CHANNEL_WIDTH)
    times = stretches(len(x), x.shape[1], TIME_MASKS, TIME_WIDTH)
    hidden = channels[:, None] | times[..., None]
    return warped.masked_fill(hidden.to(x.device), 0.0)


def warp(x: Tensor) -> Tensor:
    """The frames (T, D) before and after a random one, interpolated to other lengths, T together;
    few frames stay as they are.
    """
    frames = len(x)
    if frames - WARP_FRAMES <= WARP_FRAMES:
        return x
    centre = int(torch.randint(WARP_FRAMES, frames - WARP_FRAMES, (1,)))
    place = int(torch.randint(centre - WARP_FRAMES, centre + WARP_FRAMES, (1,))) + 1
    return torch.cat([_resized(x[:centre], place), _resized(x[centre:], frames - place)])


def stretches(rows: int, size: int, count: int, width: int) -> Tensor:
    """(rows, size) bool, True in so many stretches of each row, each of less than `width`."""
    lengths = torch.randint(0, width, (rows, count))[..., None]
    starts = torch.randint(0, max(1, size - int(lengths.max())), (rows, count))[..., None]
    places = torch.arange(size)
    return ((starts <= places) & (places < starts + lengths)).any(1)


def _resized(x: Tensor, frames: int) -> Tensor:
    size = (frames, x.shape[1])
    return F.interpolate(x[None, None], size, mode="bicubic", align_corners=False)[0, 0]
