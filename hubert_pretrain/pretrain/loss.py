"""The masked-prediction loss as a pure function, divided so that gradients do not depend on how a step is cut up.

Shapes: B utterances, T frames, K clusters, M hidden frames.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

LN_2 = 0.6931471805599453
"""Nats per bit: fairseq logs bits."""


@dataclass(frozen=True)
class Prediction:
    """How well a set of frames is predicted. Device scalars, summed over the frames."""

    nll: Tensor
    """Sum of the cross entropy in nats."""
    correct: Tensor
    """Number of frames whose target has the highest score."""
    frames: int


@dataclass(frozen=True)
class PretrainLoss:
    """The terms of the loss of one micro-batch."""

    loss: Tensor
    """What to call backward on: this micro-batch's share of the loss of the whole step."""
    masked: Prediction
    unmasked: Prediction | None
    """None where nobody asked for it."""
    feature_penalty: Tensor
    """The unweighted penalty, as it was given."""


def masked_prediction_loss(
    score: Callable[[Tensor], Tensor],
    encoded: Tensor,
    targets: Tensor,
    mask: Tensor,
    feature_penalty: Tensor,
    *,
    masked_frames: int,
    normaliser: float,
    masked_weight: float = 1.0,
    unmasked_weight: float = 0.0,
    feature_penalty_weight: float = 10.0,
    measure_unmasked: bool = False,
) -> PretrainLoss:
    """Cross entropy over clusters on hidden (and, with a weight, on visible) frames, plus the feature penalty (paper, eq. 2 to 4).

    The reference divides the sum over the whole step by S, its number of predicted frames, over all devices and accumulation:

        gradient = sum over micro-batches of d(w_m CE_masked + w_u CE_unmasked + 10 mean(features^2) S_i) / S

    with S_i the predicted frames of micro-batch i, hidden ones, and visible ones too when w_u > 0. S is known before the step runs
    (data/batches.py), so each micro-batch returns its own share and shares only have to be *summed*.

    Args:
        score: (M, D) -> (M, K) fp32 logits, the codebook head.
        encoded: (B, T, D) output of the context encoder.
        targets: (B, T) int64 cluster ids.
        mask: (B, T) bool, True = hidden; exactly `masked_frames` in all, so that nothing here has a size that depends on data.
        feature_penalty: scalar, mean square of the conv encoder's output.
        normaliser: S, the predicted frames of the whole step.
        measure_unmasked: report visible frames even where they weigh nothing (then without a gradient).
    """
    flat, ids, hidden = encoded.flatten(0, 1), targets.flatten(), mask.flatten()
    # A stable sort puts the hidden frames first: `flat[hidden]` would ask the device how many there are, and wait for the answer.
    order = torch.argsort(~hidden, stable=True) if hidden.is_cuda else torch.cat([hidden.nonzero()[:, 0], (~hidden).nonzero()[:, 0]])
    first, rest = order[:masked_frames], order[masked_frames:]
    masked = _predict(score, flat[first], ids[first])
    loss, predicted = masked_weight * masked.nll, masked.frames
    unmasked = None
    if unmasked_weight > 0:
        unmasked = _predict(score, flat[rest], ids[rest])
        loss, predicted = loss + unmasked_weight * unmasked.nll, predicted + unmasked.frames
    elif measure_unmasked:
        with torch.no_grad():
            unmasked = _predict(score, flat[rest], ids[rest])
    loss = loss + feature_penalty_weight * feature_penalty.float() * predicted
    return PretrainLoss(loss=loss / normaliser, masked=masked, unmasked=unmasked, feature_penalty=feature_penalty)


def _predict(score: Callable[[Tensor], Tensor], frames: Tensor, ids: Tensor) -> Prediction:
    logits = score(frames)
    correct = (logits.detach().argmax(dim=-1) == ids).sum()
    return Prediction(nll=F.cross_entropy(logits.float(), ids, reduction="sum"), correct=correct, frames=len(ids))
