"""Gradients under bf16 autocast against fp64: no worse than those of PyTorch's own operations."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hubert_pretrain.model import conv_encoder, hubert
from hubert_pretrain.model.config import HubertConfig
from hubert_pretrain.model.half_precision import HalfCopies
from hubert_pretrain.model.hubert import Hubert

BASE = HubertConfig(
    conv_dim=[32] * 7,
    hidden_size=64,
    num_hidden_layers=3,
    num_attention_heads=4,
    intermediate_size=128,
    num_conv_pos_embeddings=64,
    num_conv_pos_embedding_groups=4,
    layerdrop=0.0,
    hidden_dropout=0.0,
    attention_dropout=0.0,
    feat_proj_dropout=0.0,
)
LARGE = HubertConfig(
    **{
        **vars(BASE),
        "feat_extract_norm": "layer",
        "do_stable_layer_norm": True,
        "conv_bias": True,
        "conv_gradient_scale": 1.0,
    }
)


def plain(model: Any, waveform: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """The network of PyTorch's own operations: features and the last layer's output."""

    def normalise(x: Tensor, norm: Any) -> Tensor:
        return F.layer_norm(x, norm.normalized_shape, norm.weight, norm.bias, norm.eps)

    def project(x: Tensor, linear: Any) -> Tensor:
        return F.linear(x, linear.weight, linear.bias)

    x = waveform[:, None]
    for layer in model.conv_encoder.layers:
        x = F.conv1d(x, layer.conv.weight, layer.conv.bias, stride=layer.conv.stride)
        if isinstance(layer.norm, nn.GroupNorm):
            x = F.group_norm(x, layer.norm.num_groups, layer.norm.weight, layer.norm.bias)
        elif layer.norm is not None:
            x = normalise(x.transpose(1, 2), layer.norm).transpose(1, 2)
        x = F.gelu(x)
    features = x.transpose(1, 2)
    scale = model.config.conv_gradient_scale
    features = features.detach() + scale * (features - features.detach())

    x = project(normalise(features, model.projection.norm), model.projection.linear)
    x = torch.where(mask[..., None], model.mask_embedding.to(x.dtype), x)
    context = model.context_encoder
    conv = context.positions
    weight = torch._weight_norm(conv.weight_v, conv.weight_g, 2)
    y = F.conv1d(x.transpose(1, 2), weight, conv.bias, padding=conv.taps // 2, groups=conv.groups)[
        ..., : x.shape[1]
    ]
    x = x + F.gelu(y).transpose(1, 2)
    if not context.pre_norm:
        x = normalise(x, context.norm)
    for block in context.layers:
        y = normalise(x, block.attention_norm) if context.pre_norm else x
        q, k, v = (
            part.unflatten(2, (block.attention.heads, -1)).transpose(1, 2)
            for part in project(y, block.attention.qkv).chunk(3, dim=-1)
        )
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = x + project(y, block.attention.out)
        if not context.pre_norm:
            x = normalise(x, block.attention_norm)
        y = normalise(x, block.feed_forward_norm) if context.pre_norm else x
        y = project(F.gelu(project(y, block.feed_forward.up)), block.feed_forward.down)
        x = x + y
        if not context.pre_norm:
            x = normalise(x, block.feed_forward_norm)
    return features, normalise(x, context.norm) if context.pre_norm else x


def as_on_a_gpu(x: Tensor, norm: nn.LayerNorm) -> Tensor:
    """A layer norm of bf16 as a GPU rounds it: weights and their gradients too."""
    weight = norm.weight.bfloat16().float()
    bias = norm.bias.bfloat16().float()
    with torch.autocast(x.device.type, enabled=False):
        return F.layer_norm(x.float(), norm.normalized_shape, weight, bias, norm.eps).to(x.dtype)


@pytest.mark.parametrize("norms", ["of a CPU", "of a GPU"])
@pytest.mark.parametrize("config", [BASE, LARGE], ids=["base", "large"])
def test_no_parameter_has_a_worse_gradient_than_pytorchs(
    config: HubertConfig, norms: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if norms == "of a GPU":
        for owner in (conv_encoder, hubert):
            monkeypatch.setattr(owner, "layer_norm", as_on_a_gpu)
    torch.manual_seed(0)
    model = Hubert(config)
    waveform = torch.randn(4, 16_000)
    frames = config.grid.num_frames(16_000)
    mask = torch.rand(4, frames) < 0.5
    direction = torch.randn(4, frames, config.hidden_size)

    def gradients(model: Hubert, features: Tensor, last: Tensor) -> dict[str, Tensor]:
        model.zero_grad()
        kind = last.dtype if last.dtype == torch.float64 else torch.float32
        penalty = features.to(kind).square().mean()
        ((last.to(kind) * direction.to(kind)).sum() + penalty).backward()
        return {
            name: parameter.grad.double().clone()
            for name, parameter in model.named_parameters()
            if parameter.grad is not None
        }

    double = copy.deepcopy(model).double()
    exact = gradients(double, *plain(double, waveform.double(), mask))
    with torch.autocast("cpu", torch.bfloat16):
        outputs = plain(model, waveform, mask)
    theirs = gradients(model, *outputs)
    HalfCopies(model, torch.bfloat16).take()
    with torch.autocast("cpu", torch.bfloat16):
        features = model.encode_frames(waveform)
        output = model(waveform, mask=mask)
    ours = gradients(model, features, output.last)

    def errors(found: dict[str, Tensor]) -> Tensor:
        return torch.stack(
            [(found[name] - value).norm() / value.norm() for name, value in exact.items()]
        )

    assert ours.keys() == theirs.keys() == exact.keys()
    ratios = errors(ours) / errors(theirs)
    worst = sorted(zip(ratios.tolist(), exact, strict=True), reverse=True)[:5]
    assert float(ratios.max()) < 1.05, worst  # here .95; another CPU rounds PyTorch's otherwise
    assert float(ratios.mean()) < 0.8
    assert float(errors(ours).max()) < 0.05
