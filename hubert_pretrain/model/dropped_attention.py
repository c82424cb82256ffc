"""Attention with dropout on a CPU, head by head, so that the scores of one head stay in the cache and none are kept.

PyTorch's own flash attention has no dropout on a CPU: it falls back to three (B, H, T, T) tensors per layer that pass through memory a
dozen times. Here the backward pass computes the scores and the draws again.

Shapes: B utterances, H heads, T frames, d width of a head.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from hubert_pretrain.model.dropout import Draws, draw_seed


def dropped_attention(q: Tensor, k: Tensor, v: Tensor, attended: Tensor | None, probability: float) -> Tensor:
    """dropout(softmax(q k / sqrt(d))) v: (B, H, T, d) each -> (B, H, T, d). `attended`: (B, 1, 1, T) bool, True for real frames."""
    return _DroppedAttention.apply(q, k, v, attended, probability)  # type: ignore[no-any-return]


class _DroppedAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, attended: Tensor | None, probability: float) -> Tensor:
        ctx.seed, ctx.probability = draw_seed(), probability
        out = torch.empty(q.shape[0], q.shape[2], q.shape[1], q.shape[3], dtype=q.dtype).transpose(1, 2)  # as the next projection reads it
        for (b, h), dropped, factor in _draws(q, probability, ctx.seed):
            weights = _weights(q[b, h], k[b, h], None if attended is None else attended[b, 0])
            torch.mm(weights.masked_fill_(dropped, 0.0), v[b, h], out=out[b, h]).mul_(factor)
        ctx.save_for_backward(q, k, v, out, attended)
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        q, k, v, out, attended = ctx.saved_tensors
        by_q, by_k, by_v = _together(q)
        for (b, h), dropped, factor in _draws(q, ctx.probability, ctx.seed):
            weights = _weights(q[b, h], k[b, h], None if attended is None else attended[b, 0])
            arriving = gradient[b, h] * factor
            by_weights = (arriving @ v[b, h].T).masked_fill_(dropped, 0.0)
            # The sum over keys of weight x its gradient, by way of the result.
            by_weights.sub_((gradient[b, h] * out[b, h]).sum(1, keepdim=True)).mul_(weights).mul_(q.shape[3] ** -0.5)
            torch.mm(weights.masked_fill_(dropped, 0.0).T, arriving, out=by_v[b, h])
            torch.mm(by_weights, k[b, h], out=by_q[b, h])
            torch.mm(by_weights.T, q[b, h], out=by_k[b, h])
        return by_q, by_k, by_v, None, None


def _weights(q: Tensor, k: Tensor, attended: Tensor | None) -> Tensor:
    """Softmax of the scores of one head, (T, d) each -> (T, T)."""
    scores = torch.mm(q * q.shape[1] ** -0.5, k.T)
    if attended is not None:
        scores.masked_fill_(~attended, torch.finfo(scores.dtype).min)
    return torch.softmax(scores, dim=1)


def _draws(q: Tensor, probability: float, seed: int) -> Iterator[tuple[tuple[int, int], Tensor, float]]:
    """For every row and head: which of its (T, T) weights are dropped, and the factor on the others."""
    batch, heads, frames, _ = q.shape
    draws = Draws(seed, probability)
    for b in range(batch):
        for h in range(heads):
            yield (b, h), draws.dropped((frames, frames)), draws.factor


def _together(q: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Room for the gradients of q, k and v that lies as the projection that made them wants it: (B, T, 3, H, d)."""
    batch, heads, frames, width = q.shape
    by_q, by_k, by_v = torch.empty(batch, frames, 3, heads, width, dtype=q.dtype).permute(2, 0, 3, 1, 4)
    return by_q, by_k, by_v
