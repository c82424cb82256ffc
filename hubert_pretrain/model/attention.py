"""Attention back ends: three ways to compute softmax(q k / sqrt(d)) v with the same result.

Shapes: B utterances, H heads, T frames, d width of a head.

| name | use | returns weights | dropout |
|---|---|---|---|
| sdpa | everything; PyTorch takes flash attention where there is no padding | no | yes |
| eager | to see the weights: they exist as a (B, H, T, T) tensor | yes | yes |
| flex | CUDA, rows of different lengths: skips padding block by block | no | no |

A back end is a pair of functions: `prepare` turns `valid` into an attention mask once per forward
pass, and `attend` is called by every layer with that mask.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from hubert_pretrain.errors import ConfigError, did_you_mean

AttentionMask = Any
"""Frames that queries may attend to, in the form that a back end uses; None: all frames."""
AttentionFn = Callable[
    [Tensor, Tensor, Tensor, AttentionMask, float], "tuple[Tensor, Tensor | None]"
]
"""(q, k, v, attention mask, dropout probability) -> output (B, H, T, d) and weights (B, H, T, T) or
None. Each of q, k, v is (B, H, T, d).
"""


class Backend(NamedTuple):
    """A pair of functions that computes attention."""

    prepare: Callable[[Tensor], AttentionMask]
    """(B, T) bool, True for real frames -> the attention mask for `attend`."""
    attend: AttentionFn


def backend(name: str) -> Backend:
    """The back end of that name. Raises ConfigError naming the nearest one."""
    if name not in BACKENDS:
        raise ConfigError(
            f"attention {name!r} does not exist{did_you_mean(name, list(BACKENDS))}; "
            f"choose {', '.join(BACKENDS)}"
        )
    return BACKENDS[name]


def key_mask(valid: Tensor) -> Tensor:
    """(B, T) -> (B, 1, 1, T): every query of every head attends to the real frames."""
    return valid[:, None, None, :]


def sdpa(
    q: Tensor, k: Tensor, v: Tensor, attention_mask: Tensor | None, dropout: float
) -> tuple[Tensor, None]:
    """PyTorch's fused attention: flash without a mask, memory-efficient or plain with one."""
    if dropout > 0 and q.device.type == "cpu":
        # PyTorch has no fused kernel for dropout on a CPU. The product of weights and dropout mask
        # is not stored for the backward pass but computed again in it.
        weights = attention_weights(q, k, attention_mask)  # (B, H, T, T)
        dropout_mask = torch.empty_like(weights, dtype=torch.bool)
        dropout_mask.bernoulli_(1 - dropout)  # the same draws as F.dropout
        y = checkpoint(
            dropped_product,
            weights,
            dropout_mask,
            dropout,
            v,
            use_reentrant=False,
            preserve_rng_state=False,
        )
        return y, None
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


def dropped_product(weights: Tensor, dropout_mask: Tensor, dropout: float, v: Tensor) -> Tensor:
    """Weights after dropout, times v: (B, H, T, T), bool of the same shape, (B, H, T, d)."""
    return (weights * dropout_mask / (1 - dropout)).to(v.dtype) @ v


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


def block_mask(valid: Tensor) -> AttentionMask:
    """(B, T) -> FlexAttention's block mask. Padded queries attend to nothing, so their output is 0;
    with the other back ends it is arbitrary.
    """
    from torch.nn.attention.flex_attention import create_block_mask

    batch, frames = valid.shape

    def real(b: Tensor, h: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return valid[b, key] & valid[b, query]

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
