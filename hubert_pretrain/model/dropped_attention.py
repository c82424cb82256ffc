"""Attention with dropout on a CPU, a few heads at a time, so that their scores stay in the cache
and none are kept.

PyTorch's own flash attention has no dropout on a CPU: it falls back to three (B, H, T, T) tensors
per layer that pass through memory a dozen times. Here the backward pass computes the scores and the
draws again.

Shapes: B utterances, H heads, T frames, d width of a head, h heads of a piece.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from hubert_pretrain.model.dropout import Draws, draw_seed

PIECE_BYTES = 2 << 20
"""Of the scores of the heads of an utterance that are computed together. One by one, calls cost as
much as the work on 200 frames.
"""


def dropped_attention(
    q: Tensor, k: Tensor, v: Tensor, attended: Tensor | None, probability: float
) -> Tensor:
    """dropout(softmax(q k / sqrt(d))) v: (B, H, T, d) each -> (B, H, T, d). `attended`: (B, 1, 1,
    T) bool, True for real frames.
    """
    return _DroppedAttention.apply(q, k, v, attended, probability)  # type: ignore[no-any-return]


class _DroppedAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, attended: Tensor | None, probability: float
    ) -> Tensor:
        ctx.seed = draw_seed()
        ctx.probability = probability
        out = torch.empty(q.shape[0], q.shape[2], q.shape[1], q.shape[3], dtype=q.dtype).transpose(
            1, 2
        )  # as the next projection reads it
        for heads, kept, factor in _pieces(q, probability, ctx.seed):
            weights = _weights(q[heads], k[heads], None if attended is None else attended[heads[0]])
            torch.mul(weights.mul_(kept) @ v[heads], factor, out=out[heads])
        ctx.save_for_backward(q, k, v, out, attended)
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        q, k, v, out, attended = ctx.saved_tensors
        by_q, by_k, by_v = _together(q)
        for heads, kept, factor in _pieces(q, ctx.probability, ctx.seed):
            weights = _weights(q[heads], k[heads], None if attended is None else attended[heads[0]])
            arriving = gradient[heads] * factor
            by_weights = (arriving @ v[heads].mT).mul_(kept)
            # The sum over keys of weight x its gradient, by way of the result.
            by_weights.sub_((gradient[heads] * out[heads]).sum(-1, keepdim=True)).mul_(
                weights
            ).mul_(q.shape[3] ** -0.5)
            by_v[heads] = weights.mul_(kept).mT @ arriving
            by_q[heads] = by_weights @ k[heads]
            by_k[heads] = by_weights.mT @ q[heads]
        return by_q, by_k, by_v, None, None


def _weights(q: Tensor, k: Tensor, attended: Tensor | None) -> Tensor:
    """Softmax of the scores of some heads, (h, T, d) each -> (h, T, T)."""
    scores = (q * q.shape[-1] ** -0.5) @ k.mT
    if attended is not None:
        scores.masked_fill_(~attended, torch.finfo(scores.dtype).min)
    return torch.softmax(scores, dim=-1)


def _pieces(
    q: Tensor, probability: float, seed: int
) -> Iterator[tuple[tuple[int, slice], Tensor, float]]:
    """For some heads of every row: which of their (h, T, T) weights stay, as ones and zeros of q's
    type, and the factor on those.
    """
    batch, heads, frames, _ = q.shape
    at_once = max(1, PIECE_BYTES // (q.element_size() * frames**2))
    draws = Draws(seed, probability)
    for b in range(batch):
        for first in range(0, heads, at_once):
            piece = slice(first, min(first + at_once, heads))
            yield (
                (b, piece),
                draws.kept((piece.stop - first, frames, frames)).to(q.dtype),
                draws.factor,
            )


def _together(q: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Room for the gradients of q, k and v that lies as the projection that made them wants it: (B,
    T, 3, H, d).
    """
    batch, heads, frames, width = q.shape
    by_q, by_k, by_v = torch.empty(batch, frames, 3, heads, width, dtype=q.dtype).permute(
        2, 0, 3, 1, 4
    )
    return by_q, by_k, by_v
