"""The masked-prediction loss as a pure function, divided so that gradients do not depend on how a
step is cut up.

Shapes: B utterances, T frames, D width, M hidden frames, N codebooks of K_1 ... K_N clusters, K
their sum.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from hubert_pretrain.errors import DataError

LN_2 = 0.6931471805599453
"""Nats per bit: fairseq logs bits."""


class SupervisedLayer(NamedTuple):
    """A layer that predicts the targets."""

    score: Callable[[Tensor], Tensor]
    """(M, D) -> (M, K) fp32 logits: the pretraining head."""
    encoded: Tensor
    """(B, T, D) output of the layer."""
    weight: float = 1.0
    """What its cross entropy counts."""


@dataclass(frozen=True)
class Prediction:
    """How well a set of frames is predicted. Device scalars, summed over the frames."""

    nll: Tensor
    """Sum of the cross entropy in nats, over the codebooks too."""
    correct: Tensor
    """Number of frames whose target has the highest score; with several codebooks the mean of their
    numbers.
    """
    frames: int
    codebooks: tuple[Prediction, ...] = ()
    """Each of several codebooks alone; empty for one."""
    wanted: Tensor | None = None
    """(M,) target of each frame, the likeliest of a soft one; None for several codebooks
    together.
    """
    guessed: Tensor | None = None
    """(M,) cluster with the highest score."""


@dataclass(frozen=True)
class PretrainLoss:
    """The terms of the loss of one micro-batch."""

    loss: Tensor
    """What to call backward on: this micro-batch's share of the loss of the whole step."""
    masked: Prediction
    """Of the last supervised layer."""
    unmasked: Prediction | None
    """Likewise; None where nobody asked for it."""
    feature_penalty: Tensor
    """The unweighted penalty, as it was given."""
    intermediate: tuple[Prediction, ...] = ()
    """Hidden frames predicted by the supervised layers before the last one."""


def masked_prediction_loss(
    layers: Sequence[SupervisedLayer],
    targets: Tensor,
    mask: Tensor,
    feature_penalty: Tensor,
    *,
    n_clusters: Sequence[int],
    masked_frames: int,
    normaliser: float,
    masked_weight: float = 1.0,
    unmasked_weight: float = 0.0,
    feature_penalty_weight: float = 10.0,
    measure_unmasked: bool = False,
) -> PretrainLoss:
    """Cross entropy over clusters on hidden (and, with a weight, on visible) frames, plus the
    feature penalty (paper, eq. 2 to 4).

    The reference divides the sum over the whole step by S, its number of predicted frames, over all
    devices and accumulation:

        gradient = sum over micro-batches of d(w_m CE_masked + w_u CE_unmasked + 10 mean(features^2)
        S_i) / S

    with S_i the predicted frames of micro-batch i: hidden ones when w_m > 0, visible ones when w_u
    > 0. S is known before the step runs (data/batching.py), so each micro-batch returns its own
    share and shares only have to be *summed*. CE is a sum over the codebooks and over the layers
    (times their weights), but S counts each frame once, as the reference takes S from its first
    target.

    Args:
        layers: what predicts: the last layer, and before it those under intermediate supervision
        (ILS-SSL, arXiv:2112.08778). targets: (B, T) cluster ids, (B, T, N) for several codebooks,
        int64; or soft ones, (B, T, K) floats that sum to 1 per codebook. mask: (B, T) bool, True =
        hidden; exactly `masked_frames` in all, so that nothing here has a size that depends on
        data. feature_penalty: scalar, mean square of the conv encoder's output. n_clusters: K_1 ...
        K_N, one per codebook. normaliser: S, the predicted frames of the whole step.
        measure_unmasked: report visible frames even where they weigh nothing (then without a
        gradient).

    Raises DataError when the targets are not for these codebooks.
    """
    hidden, visible = _split(mask, masked_frames)
    wanted = [part.flatten(0, 1) for part in per_codebook(targets, n_clusters)]
    masked = [_predict(layer, hidden, wanted, n_clusters) for layer in layers]
    terms = [
        layer.weight * masked_weight * part.nll for layer, part in zip(layers, masked, strict=True)
    ]
    predicted = masked_frames if masked_weight > 0 else 0
    unmasked = None
    if unmasked_weight > 0:
        seen = [_predict(layer, visible, wanted, n_clusters) for layer in layers]
        terms += [
            layer.weight * unmasked_weight * part.nll
            for layer, part in zip(layers, seen, strict=True)
        ]
        predicted = predicted + len(visible)
        unmasked = seen[-1]
    elif measure_unmasked:
        with torch.no_grad():
            unmasked = _predict(layers[-1], visible, wanted, n_clusters)
    loss = sum(terms[1:], terms[0]) + feature_penalty_weight * feature_penalty.float() * predicted
    return PretrainLoss(
        loss=loss / normaliser,
        masked=masked[-1],
        unmasked=unmasked,
        feature_penalty=feature_penalty,
        intermediate=tuple(masked[:-1]),
    )


def per_codebook(targets: Tensor, n_clusters: Sequence[int]) -> list[Tensor]:
    """The targets of each codebook: (B, T) ids, or (B, T, K_n) distributions. See
    `masked_prediction_loss`.
    """
    soft = targets.is_floating_point()
    fits = targets.ndim == 3 and targets.shape[2] == (sum(n_clusters) if soft else len(n_clusters))
    if not fits and not (targets.ndim == 2 and len(n_clusters) == 1 and not soft):
        raise DataError(
            f"targets are {targets.dtype} of shape {tuple(targets.shape)}, but the head has {len(n_clusters)} codebooks of "
            f"{', '.join(map(str, n_clusters))} clusters; expected ids (B, T, {len(n_clusters)}) or soft targets (B, T, {sum(n_clusters)})"
        )
    if soft:
        return list(targets.split(list(n_clusters), dim=2))
    return list(targets.unbind(2)) if targets.ndim == 3 else [targets]


def _split(mask: Tensor, masked_frames: int) -> tuple[Tensor, Tensor]:
    """Positions of the hidden and of the visible frames in the flattened (B, T)."""
    hidden = mask.flatten()
    # A stable sort puts the hidden frames first: `flat[hidden]` would ask the device how many there
    # are, and wait for the answer.
    waits = hidden.device.type != "cpu" or torch.compiler.is_compiling()
    order = (
        torch.argsort(~hidden, stable=True)
        if waits
        else torch.cat([hidden.nonzero()[:, 0], (~hidden).nonzero()[:, 0]])
    )
    return order[:masked_frames], order[masked_frames:]


def _predict(
    layer: SupervisedLayer, chosen: Tensor, targets: Sequence[Tensor], n_clusters: Sequence[int]
) -> Prediction:
    logits = layer.score(layer.encoded.flatten(0, 1)[chosen]).float()  # (M, K)
    each = [
        _score(part, wanted[chosen])
        for part, wanted in zip(logits.split(list(n_clusters), dim=1), targets, strict=True)
    ]
    if len(each) == 1:
        return each[0]
    nll = torch.stack([part.nll for part in each]).sum()
    correct = torch.stack([part.correct for part in each]).float().mean()
    return Prediction(nll=nll, correct=correct, frames=len(chosen), codebooks=tuple(each))


def _score(logits: Tensor, targets: Tensor) -> Prediction:
    """(M, K_n) logits of one codebook against (M,) ids or (M, K_n) distributions."""
    soft = targets.is_floating_point()
    guessed = logits.detach().argmax(dim=-1)
    wanted = targets.argmax(dim=-1) if soft else targets
    nll = F.cross_entropy(logits, targets.float() if soft else targets, reduction="sum")
    return Prediction(
        nll=nll,
        correct=(guessed == wanted).sum(),
        frames=len(targets),
        wanted=wanted,
        guessed=guessed,
    )
