"""Attention back ends: three ways to compute softmax(q k / sqrt(d)) v with the same result.

Shapes: B utterances, H heads, T frames, d width of a head.

| name | use | returns weights | dropout |
|---|---|---|---|
| sdpa | everything; PyTorch takes flash attention where there is no padding | no | yes |
| eager | to see the weights: they exist as a (B, H, T, T) tensor | yes | yes |
| flex | CUDA, rows of different lengths: skips padding block by block | no | no |

A back end is a pair of functions: `prepare` turns `valid` and the chunks of streaming into an
attention mask once per forward pass, and `attend` is called by every layer with that mask.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from hubert_pretrain.errors import ConfigError, did_you_mean

AttentionMask = Any
"""Frames that queries may attend to, in the form that a back end uses; None: all frames."""
AttentionFn = Callable[
    [Tensor, Tensor, Tensor, AttentionMask, float], "tuple[Tensor, Tensor | None]"
]
"""(q, k, v, attention mask, dropout probability) -> output (B, H, T, d) and weights (B, H, T, T) or
None. Each of q, k, v is (B, H, T, d).
"""


CACHED_BYTES = 4 << 20
"""Attention weights of the heads that a CPU computes at a time."""


class Chunks(NamedTuple):
    """Attention of a streaming network: a frame sees its own chunk and some frames before it."""

    frames: int
    """Length of a chunk; the first one begins with the utterance."""
    left: int | None
    """Frames before the chunk; None: all."""

    def visible(self, query: Tensor, key: Tensor) -> Tensor:
        """True where the frame `query` sees the frame `key`: numbers of frames, broadcast."""
        start = query // self.frames * self.frames
        found = key < start + self.frames
        return found if self.left is None else found & (key >= start - self.left)


class Backend(NamedTuple):
    """A pair of functions that computes attention."""

    prepare: Callable[[Tensor, Chunks | None], AttentionMask]
    """(B, T) bool, True for real frames, and the chunks -> the attention mask for `attend`."""
    attend: AttentionFn


def backend(name: str) -> Backend:
    """The back end of that name. Raises ConfigError naming the nearest one."""
    if name not in BACKENDS:
        raise ConfigError(
            f"attention {name!r} does not exist{did_you_mean(name, list(BACKENDS))}; "
            f"choose {', '.join(BACKENDS)}"
        )
    return BACKENDS[name]


def key_mask(valid: Tensor, chunks: Chunks | None = None) -> Tensor:
    """(B, T) -> (B, 1, 1, T): every query of every head attends to the real frames; with chunks
    (B, 1, T, T): to those that it sees, and to itself, so that padding attends to something.
    """
    if chunks is None:
        return valid[:, None, None, :]
    frames = torch.arange(valid.shape[1], device=valid.device)
    query = frames[:, None]
    real = valid[:, None, None, :] & chunks.visible(query, frames)
    return real | (query == frames)


def sdpa(
    q: Tensor, k: Tensor, v: Tensor, attention_mask: Tensor | None, dropout: float
) -> tuple[Tensor, None]:
    """PyTorch's fused attention: flash without a mask, memory-efficient or plain with one."""
    if dropout > 0 and q.device.type == "cpu" and not torch.compiler.is_compiling():
        # PyTorch has no fused kernel for dropout on a CPU.
        return _DroppedAttention.apply(q, k, v, attention_mask, dropout), None
    return (
        F.scaled_dot_product_attention(q, k, v, attn_mask=attention_mask, dropout_p=dropout),
        None,
    )


def eager(
    q: Tensor, k: Tensor, v: Tensor, attention_mask: Tensor | None, dropout: float
) -> tuple[Tensor, Tensor]:
    """The definition, step by step. Returned weights are after dropout, as in `transformers`."""
    weights = F.dropout(attention_weights(q, k, attention_mask), dropout)
    return weights.to(v.dtype) @ v, weights


def attention_weights(q: Tensor, k: Tensor, attention_mask: Tensor | None) -> Tensor:
    """softmax(q k / sqrt(d)): two (B, H, T, d) -> (B, H, T, T)."""
    scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5  # (B, H, T, T)
    if attention_mask is not None:
        scores = scores.masked_fill(~attention_mask, torch.finfo(scores.dtype).min)
    return scores.softmax(dim=-1)


class _DroppedAttention(torch.autograd.Function):
    """Attention with dropout on a CPU: a few heads at a time, whose weights stay in the cache, and
    in few passes over them. The draws are those of F.dropout.
    """

    @staticmethod
    def forward(
        context: Any, q: Tensor, k: Tensor, v: Tensor, attention_mask: Tensor | None, dropout: float
    ) -> Tensor:
        shape = q.shape
        q, k, v = (x.flatten(0, 1) for x in (q * shape[-1] ** -0.5, k, v / (1 - dropout)))
        if attention_mask is not None:
            attention_mask = ~attention_mask.expand(*shape[:2], -1, -1).flatten(0, 1)
        size = (len(q), q.shape[1], k.shape[1])
        weights = q.new_empty(size, dtype=torch.promote_types(q.dtype, torch.float32))
        survives = q.new_empty(size, dtype=torch.bool)
        y = torch.empty_like(v)
        for part in _parts(weights):
            scores = torch.bmm(q[part], k[part].mT)
            if attention_mask is not None:
                scores.masked_fill_(attention_mask[part], torch.finfo(scores.dtype).min)
            torch.softmax(scores, dim=-1, dtype=weights.dtype, out=weights[part])
            dropped = torch.where(survives[part].bernoulli_(1 - dropout), weights[part], 0.0)
            torch.bmm(dropped.to(v.dtype), v[part], out=y[part])
        context.save_for_backward(q, k, v, weights, survives)
        context.dropout = dropout
        return y.view(shape)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Any:  # type: ignore[override]
        q, k, v, weights, survives = context.saved_tensors
        shape = gradient.shape
        gradient = gradient.flatten(0, 1)
        of_q, of_k, of_v = (torch.empty_like(x) for x in (q, k, v))
        for part in _parts(weights):
            dropped = torch.where(survives[part], weights[part], 0.0).to(v.dtype)
            torch.bmm(dropped.mT, gradient[part], out=of_v[part])
            of_weights = torch.where(survives[part], torch.bmm(gradient[part], v[part].mT), 0.0)
            of_scores = torch._softmax_backward_data(
                of_weights.to(weights.dtype), weights[part], -1, weights.dtype
            ).to(q.dtype)
            torch.bmm(of_scores, k[part], out=of_q[part])
            torch.bmm(of_scores.mT, q[part], out=of_k[part])
        of_q *= shape[-1] ** -0.5
        of_v /= 1 - context.dropout
        return of_q.view(shape), of_k.view(shape), of_v.view(shape), None, None


def _parts(weights: Tensor) -> list[slice]:
    """Slices of (B H, T, T) of at most CACHED_BYTES, or of one head."""
    size = max(1, CACHED_BYTES // (weights[0].numel() * weights.element_size()))
    return [slice(first, first + size) for first in range(0, len(weights), size)]


def flex(
    q: Tensor, k: Tensor, v: Tensor, attention_mask: AttentionMask, dropout: float
) -> tuple[Tensor, None]:
    """FlexAttention, compiled on CUDA. On a CPU it runs uncompiled and without gradients, for tests
    only.
    """
    if dropout > 0:
        raise ConfigError(
            f"attention 'flex' has no dropout, but attention_dropout is {dropout}; "
            "set it to 0 or choose attention 'sdpa'"
        )
    return _flex_attention(q.device.type)(q, k, v, block_mask=attention_mask), None


def block_mask(valid: Tensor, chunks: Chunks | None = None) -> AttentionMask:
    """(B, T) -> FlexAttention's block mask, by which blocks that no query sees are skipped. Padded
    queries attend to nothing, so their output is 0; with the other back ends it is arbitrary.
    """
    from torch.nn.attention.flex_attention import create_block_mask

    batch, frames = valid.shape

    def real(b: Tensor, h: Tensor, query: Tensor, key: Tensor) -> Tensor:
        row = b if batch > 1 else torch.zeros_like(b)  # one row stands for all
        both = valid[row, key] & valid[row, query]
        return both if chunks is None else both & chunks.visible(query, key)

    return create_block_mask(real, batch, None, frames, frames, device=valid.device)


@functools.cache
def _flex_attention(device: str) -> Callable[..., Tensor]:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention) if device == "cuda" else flex_attention  # type: ignore


BACKENDS = {
    "sdpa": Backend(key_mask, sdpa),
    "eager": Backend(key_mask, eager),
    "flex": Backend(block_mask, flex),
}
"""Back ends by name."""
