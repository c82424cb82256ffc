"""The masked-prediction loss as a pure function, divided so that gradients do not depend on how a
step is cut into micro-batches.

Shapes: B utterances, T frames, D width, M masked (or unmasked) frames, N codebooks of K_1 ... K_N
clusters, K their sum.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from hubert_pretrain.errors import DataError

if TYPE_CHECKING:
    from hubert_pretrain.config.schema import LossConfig

LN_2 = 0.6931471805599453
"""Nats per bit: fairseq logs bits."""
IGNORED = -100
"""Target of a frame that adds nothing to a sum."""


@dataclass(frozen=True, kw_only=True)
class LossWeights:
    """Weights of the terms of the loss (paper, eq. 2 to 4)."""

    masked: float = 1.0  # alpha
    unmasked: float = 0.0  # 1 - alpha
    feature_penalty: float = 10.0  # times the mean square of the conv encoder's output

    @staticmethod
    def of(config: LossConfig) -> LossWeights:
        """The weights of a recipe."""
        return LossWeights(
            masked=config.masked_weight,
            unmasked=config.unmasked_weight,
            feature_penalty=config.feature_penalty,
        )

    def predicted_frames(self, masked: int, unmasked: int) -> int:
        """S: those of the masked and unmasked frames that are predicted with a weight."""
        return (masked if self.masked > 0 else 0) + (unmasked if self.unmasked > 0 else 0)


class SupervisedLayer(NamedTuple):
    """A layer that predicts the targets."""

    head: Callable[[Tensor], Tensor]
    """(M, D) -> (M, K) fp32 logits: the pretraining head."""
    hidden_state: Tensor
    """(B, T, D) output of the layer."""
    weight: float = 1.0
    """Weight of its cross entropy."""


@dataclass(frozen=True)
class Prediction:
    """Result of predicting a set of frames. Device scalars, summed over the frames."""

    nll: Tensor
    """Sum of the cross entropy in nats, over the codebooks too."""
    correct: Tensor
    """Number of frames whose target has the highest score; with several codebooks the mean of their
    numbers.
    """
    frames: int
    codebooks: tuple[Prediction, ...] = ()
    """Each of several codebooks alone; empty for one."""
    targets: Tensor | None = None
    """(M,) target of each frame, the likeliest of a soft one; None for several codebooks
    together.
    """
    predictions: Tensor | None = None
    """(M,) cluster with the highest score; None for several codebooks together."""


@dataclass(frozen=True)
class PretrainLoss:
    """The terms of the loss of one micro-batch."""

    loss: Tensor
    """Call backward on this: the micro-batch's share of the loss of the whole step."""
    masked: Prediction
    """Masked frames, predicted by the last supervised layer."""
    unmasked: Prediction | None
    """The same of unmasked frames; None where they neither weigh nor are measured."""
    feature_penalty: Tensor
    """The penalty without its weight, as it was given."""
    intermediate: tuple[Prediction, ...] = ()
    """Masked frames, predicted by the supervised layers before the last one."""


Predict = Callable[
    [SupervisedLayer, Tensor, Sequence[Tensor], Sequence[int]],
    Prediction,
]
"""A layer, M positions of the flattened (B, T), the flattened targets of each codebook, K_1 ... K_N
-> the prediction.
"""


def masked_prediction_loss(
    layers: Sequence[SupervisedLayer],
    targets: Tensor,
    mask: Tensor,
    feature_penalty: Tensor,
    *,
    n_clusters: Sequence[int],
    masked_frames: int,
    normaliser: float,
    weights: LossWeights | None = None,
    measure_unmasked: bool = False,
    predict: Predict | None = None,
) -> PretrainLoss:
    """Cross entropy over clusters on masked (and, with a weight, on unmasked) frames, plus the
    feature penalty (paper, eq. 2 to 4).

    The reference divides the sum over the whole step by S, its number of predicted frames, over all
    devices and accumulation:

        gradient = sum over micro-batches of d(w_m CE_masked + w_u CE_unmasked + 10 mean(features^2)
        S_i) / S

    with S_i the predicted frames of micro-batch i: masked ones when w_m > 0, unmasked ones when w_u
    > 0. S is known before the step runs (data/batching.py), so each micro-batch returns its own
    share and shares only have to be *summed*. CE is a sum over the codebooks and over the layers
    (times their weights), but S counts each frame once, as the reference takes S from its first
    target.

    Args:
        layers: the layers that predict: the last one, and before it those under intermediate
            supervision (ILS-SSL, arXiv:2112.08778).
        targets: (B, T) cluster ids, (B, T, N) for several codebooks, int64; or soft ones, (B, T, K)
            floats that sum to 1 per codebook. A target of IGNORED, or of zeros, adds nothing to the
            sums, but its frame is still in `frames`.
        mask: (B, T) bool, True = masked; exactly `masked_frames` in all, so that nothing here has a
            size that depends on data.
        feature_penalty: scalar, mean square of the conv encoder's output.
        n_clusters: K_1 ... K_N, one per codebook.
        normaliser: S, the predicted frames of the whole step.
        weights: of the terms; None: the paper's.
        measure_unmasked: predict unmasked frames even where they weigh nothing (then without a
            gradient).
        predict: the prediction of a layer; None: `predict`. A compiled one has the same result.

    Raises DataError when the targets are not for these codebooks.
    """
    weights = weights or LossWeights()
    predict = predict or predict_frames
    masked_at, unmasked_at = _split(mask, masked_frames)
    flat_targets = [part.flatten(0, 1) for part in per_codebook(targets, n_clusters)]

    masked = [predict(layer, masked_at, flat_targets, n_clusters) for layer in layers]
    terms = [
        layer.weight * weights.masked * prediction.nll
        for layer, prediction in zip(layers, masked, strict=True)
    ]
    last_unmasked = None
    if weights.unmasked > 0:
        unmasked = [predict(layer, unmasked_at, flat_targets, n_clusters) for layer in layers]
        terms += [
            layer.weight * weights.unmasked * prediction.nll
            for layer, prediction in zip(layers, unmasked, strict=True)
        ]
        last_unmasked = unmasked[-1]
    elif measure_unmasked:
        with torch.no_grad():
            last_unmasked = predict(layers[-1], unmasked_at, flat_targets, n_clusters)

    predicted = weights.predicted_frames(masked_frames, len(unmasked_at))  # S_i
    penalty = weights.feature_penalty * feature_penalty.float() * predicted
    loss = sum(terms[1:], terms[0]) + penalty
    return PretrainLoss(
        loss=loss / normaliser,
        masked=masked[-1],
        unmasked=last_unmasked,
        feature_penalty=feature_penalty,
        intermediate=tuple(masked[:-1]),
    )


def per_codebook(targets: Tensor, n_clusters: Sequence[int]) -> list[Tensor]:
    """The targets of each codebook: (B, T) ids, or (B, T, K_n) distributions. See
    `masked_prediction_loss`.
    """
    soft = targets.is_floating_point()
    last_size = sum(n_clusters) if soft else len(n_clusters)
    fits = targets.ndim == 3 and targets.shape[2] == last_size
    fits_one = targets.ndim == 2 and len(n_clusters) == 1 and not soft
    if not fits and not fits_one:
        raise DataError(
            f"targets are {targets.dtype} of shape {tuple(targets.shape)}, but the head has "
            f"{len(n_clusters)} codebooks of {', '.join(map(str, n_clusters))} clusters; expected "
            f"ids (B, T, {len(n_clusters)}) or soft targets (B, T, {sum(n_clusters)})"
        )
    if soft:
        return list(targets.split(list(n_clusters), dim=2))
    return list(targets.unbind(2)) if targets.ndim == 3 else [targets]


def _split(mask: Tensor, masked_frames: int) -> tuple[Tensor, Tensor]:
    """Positions of the masked and of the unmasked frames in the flattened (B, T)."""
    flat = mask.flatten()
    if flat.device.type == "cpu" and not torch.compiler.is_compiling():
        order = torch.cat([flat.nonzero()[:, 0], (~flat).nonzero()[:, 0]])
    else:
        # A stable sort puts the masked frames first: `nonzero` would ask the device how many there
        # are, and wait for the answer.
        order = torch.argsort(~flat, stable=True)
    return order[:masked_frames], order[masked_frames:]


def predict_frames(
    layer: SupervisedLayer, positions: Tensor, targets: Sequence[Tensor], n_clusters: Sequence[int]
) -> Prediction:
    """The prediction of a layer at M positions of the flattened (B, T). Nothing in it changes from
    step to step, so it is compiled once per shape.
    """
    # `index_select`: the gradient of an index with brackets sorts the positions on a GPU first.
    frames = layer.hidden_state.flatten(0, 1).index_select(0, positions)  # (M, D)
    logits = layer.head(frames).float()  # (M, K)
    codebooks = [
        _score(part, ids.index_select(0, positions))
        for part, ids in zip(logits.split(list(n_clusters), dim=1), targets, strict=True)
    ]
    if len(codebooks) == 1:
        return codebooks[0]
    return Prediction(
        nll=torch.stack([each.nll for each in codebooks]).sum(),
        correct=torch.stack([each.correct for each in codebooks]).float().mean(),
        frames=len(positions),
        codebooks=tuple(codebooks),
    )


def _score(logits: Tensor, targets: Tensor) -> Prediction:
    """(M, K_n) logits of one codebook against (M,) ids or (M, K_n) distributions."""
    predictions = logits.detach().argmax(dim=-1)
    if targets.is_floating_point():
        ids = torch.where(targets.sum(dim=-1) > 0, targets.argmax(dim=-1), IGNORED)
        nll = F.cross_entropy(logits, targets.float(), reduction="sum")
    else:
        ids = targets
        nll = F.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="sum")
    return Prediction(
        nll=nll,
        correct=(predictions == ids).sum(),
        frames=len(targets),
        targets=ids,
        predictions=predictions,
    )
