"""Ways to compute softmax(q k / sqrt(d)) v. They differ in speed and in what they can show, not in
the result.

Shapes: B utterances, H heads, T frames, d width of a head.

| name | for | weights | dropout |
|---|---|---|---|
| sdpa | everything; without padding PyTorch takes flash attention | no | yes |
| eager | looking at the weights: they exist as a (B, H, T, T) tensor | yes | yes |
| flex | CUDA: rows of different lengths, whose padding it leaves out block by block | no | no |

A back end is a pair: what it makes of `valid` once per forward, and the function that every layer
calls with that.
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
"""Which frames may be looked at, in the form of a back end; None for all of them."""
AttentionFn = Callable[
    [Tensor, Tensor, Tensor, AttentionMask, float], "tuple[Tensor, Tensor | None]"
]
"""(q, k, v, attended, dropout probability), each of q, k, v (B, H, T, d) -> (B, H, T, d) and, if
they exist, the weights (B, H, T, T).
"""


class Backend(NamedTuple):
    """How attention is computed."""

    prepare: Callable[[Tensor], AttentionMask]
    """(B, T) bool, True for real frames -> what `attend` wants."""
    attend: AttentionFn


def backend(name: str) -> Backend:
    """The back end of that name. Raises ConfigError naming the nearest one."""
    if name not in BACKENDS:
        raise ConfigError(
            f"attention {name!r} does not exist{did_you_mean(name, list(BACKENDS))}; choose {', '.join(BACKENDS)}"
        )
    return BACKENDS[name]


def key_mask(valid: Tensor) -> Tensor:
    """(B, T) -> (B, 1, 1, T): every query of every head sees the real frames."""
    return valid[:, None, None, :]


def sdpa(
    q: Tensor, k: Tensor, v: Tensor, attended: Tensor | None, dropout: float
) -> tuple[Tensor, None]:
    """PyTorch's fused attention: flash without a mask, memory-efficient or plain with one."""
    if dropout > 0 and q.device.type == "cpu":
        # PyTorch has no fused kernel for this either, and looks for rows of -inf on its way.
        return eager(q, k, v, attended, dropout)[0], None
    return F.scaled_dot_product_attention(q, k, v, attn_mask=attended, dropout_p=dropout), None


def eager(
    q: Tensor, k: Tensor, v: Tensor, attended: Tensor | None, dropout: float
) -> tuple[Tensor, Tensor]:
    """The definition, step by step. The weights are those that were used: after dropout, as in
    `transformers`.
    """
    scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5  # (B, H, T, T)
    if attended is not None:
        scores = scores.masked_fill(~attended, torch.finfo(scores.dtype).min)
    weights = scores.softmax(dim=-1)
    if dropout > 0:
        # F.dropout, the same draws, but it keeps the mask as bool and not as fp32.
        weights = torch.native_dropout(weights, dropout, True)[0]
    return weights.to(v.dtype) @ v, weights


def flex(
    q: Tensor, k: Tensor, v: Tensor, attended: AttentionMask, dropout: float
) -> tuple[Tensor, None]:
    """FlexAttention, compiled on CUDA. On a CPU it runs uncompiled, without gradients, and only to
    be checked.
    """
    if dropout > 0:
        raise ConfigError(
            f"attention 'flex' has no dropout, but attention_dropout is {dropout}; set it to 0 or choose attention 'sdpa'"
        )
    return _flex_attention(q.device.type)(q, k, v, block_mask=attended), None


def block_mask(valid: Tensor) -> AttentionMask:
    """(B, T) -> FlexAttention's block mask. Padded queries look at nothing, so their output is 0
    where the others' is arbitrary.
    """
    from torch.nn.attention.flex_attention import create_block_mask

    batch, frames = valid.shape

    def real(b: Tensor, h: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return valid[b, key] & valid[b, query]

    return create_block_mask(real, batch, None, frames, frames, device=valid.device)


@functools.cache
def _flex_attention(device: str) -> Callable[..., Tensor]:
    from torch.nn.attention.flex_attention import flex_attention

    attend: Callable[..., Tensor] = (
        torch.compile(flex_attention) if device == "cuda" else flex_attention
    )  # type: ignore[assignment]
    return attend


BACKENDS = {
    "sdpa": Backend(key_mask, sdpa),
    "eager": Backend(key_mask, eager),
    "flex": Backend(block_mask, flex),
}
"""All of them by name."""
