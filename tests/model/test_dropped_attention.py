from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hubert_pretrain.model.attention import eager, key_mask
from hubert_pretrain.model.dropout import draw_seed
from hubert_pretrain.model.dropped_attention import _pieces, dropped_attention


def heads(batch: int, frames: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """q, k and v (B, 3, T, 8) as one projection makes them: views of one tensor."""
    qkv = torch.randn(
        batch, frames, 3, 3, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )
    q, k, v = qkv.requires_grad_().permute(2, 0, 3, 1, 4)
    return q, k, v


def gradients(out: Tensor, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    return list(
        torch.autograd.grad(
            out, inputs, torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view(out.shape)
        )
    )


@pytest.mark.parametrize("frames", [1, 2, 3, 17, 64])
@pytest.mark.parametrize("padded", [False, True])
def test_equal_to_the_definition_and_its_gradients_without_dropout(
    frames: int, padded: bool
) -> None:
    inputs = heads(2, frames)
    valid = torch.arange(frames) < torch.tensor([[frames], [max(1, frames - 5)]])
    attended = key_mask(valid) if padded else None
    found = dropped_attention(*inputs, attended, 0.0)
    (expected, _) = eager(*inputs, attended, 0.0)
    torch.testing.assert_close(found, expected)
    for ours, theirs in zip(gradients(found, inputs), gradients(expected, inputs), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_equal_to_autograd_with_the_same_draws() -> None:
    inputs = heads(2, 30)
    torch.manual_seed(4)
    found = dropped_attention(*inputs, None, 0.3)
    torch.manual_seed(4)
    seed = draw_seed()
    q, k, v = inputs
    weights = (q @ k.mT * 8**-0.5).softmax(-1)
    factors = torch.zeros_like(weights)
    for heads_of, kept, factor in _pieces(q, 0.3, seed):
        factors[heads_of] = factor * kept
    expected = (weights * factors) @ v
    torch.testing.assert_close(found, expected)
    for ours, theirs in zip(gradients(found, inputs), gradients(expected, inputs), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("probability", [0.1, 0.5, 0.9])
def test_as_many_are_dropped_as_said_and_the_mean_stays(probability: float) -> None:
    q = torch.zeros(3, 4, 300, 8)
    drawn = [
        (1 - kept.double().mean((1, 2)), factor)
        for _, kept, factor in _pieces(q, probability, seed=1)
    ]
    share = torch.cat([means for means, _ in drawn]).mean()
    assert (
        abs(float(share) - probability)
        < 5 * (probability * (1 - probability) / (12 * 300 * 300)) ** 0.5
    )
    assert drawn[0][1] == pytest.approx(1 / (1 - probability), rel=1e-4)


def test_draws_follow_the_seed_of_the_step_and_differ_between_heads() -> None:
    inputs = heads(2, 30)
    results = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        results.append(dropped_attention(*inputs, None, 0.3))
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])
    masks = [head for _, kept, _ in _pieces(inputs[0], 0.3, seed=1) for head in kept]
    assert len(masks) == 6
    assert not any(torch.equal(masks[0], other) for other in masks[1:])
