"""SpecAugment of features."""

from __future__ import annotations

import torch

from hubert_pretrain.model.feature_masks import spec_augment, stretches, warp
from hubert_pretrain.model.heads import CTCHead
from hubert_pretrain.model.hubert import HubertOutput


def test_stretches_are_as_many_and_as_long_as_stated() -> None:
    torch.manual_seed(0)
    masks = stretches(500, 120, 2, 40)
    starts = masks & ~torch.cat([torch.zeros(500, 1, dtype=torch.bool), masks[:, :-1]], dim=1)
    assert masks.shape == (500, 120)
    assert int(starts.sum(1).max()) == 2
    assert 70 < int(masks.sum(1).max()) <= 78
    assert float(masks.sum(1).float().mean()) < 40
    assert not stretches(3, 1, 4, 1).any()


def test_a_warp_keeps_the_length_and_a_line_a_line() -> None:
    """Few frames stay as they are."""
    torch.manual_seed(0)
    x = torch.arange(60.0)[:, None].expand(60, 3)
    changed = 0
    for _ in range(20):
        found = warp(x)
        assert found.shape == x.shape
        changed += not torch.equal(found, x)
        assert (found - x).abs().max() < 6.5
        assert (found.diff(dim=0) > 0).all()
    assert changed > 10
    assert torch.equal(warp(x[:10]), x[:10])


def test_features_are_masked_in_training_alone_and_padding_stays_out() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 80, 64) + 9
    valid = torch.arange(80) < torch.tensor([[80], [30]])
    found = spec_augment(x, valid)
    assert (found[1, 30:] == 0).all()
    assert 0.1 < (found[0] == 0).float().mean() < 0.99
    assert (x > 0).all()  # not changed in place
    head = CTCHead(64, 5, mask_features=True)
    assert CTCHead(**head.settings).mask_features
    assert "mask_features" not in CTCHead(64, 5).settings
    output = HubertOutput(x, torch.zeros(()), x, None)
    whole = head.linear(x)
    torch.testing.assert_close(head.eval().logits(output, valid), whole)
    masked = head.train().logits(output, valid)
    assert not torch.allclose(masked, whole)
    masked.sum().backward()
    assert torch.isfinite(head.linear.weight.grad).all()
