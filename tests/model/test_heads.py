"""Heads: equal to their definitions."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from hubert_pretrain.model.heads import ClassificationHead, CodebookHead, CTCHead
from hubert_pretrain.model.hubert import HubertOutput


def test_logits_are_cosines_over_the_temperature() -> None:
    torch.manual_seed(0)
    head = CodebookHead(16, 8, 5, temperature=0.25)
    x = torch.randn(7, 16)
    expected = (
        F.cosine_similarity(head.projection(x)[:, None], head.unit_embeddings[None], dim=-1) / 0.25
    )
    torch.testing.assert_close(head(x), expected)


def test_logits_are_fp32_under_autocast() -> None:
    torch.manual_seed(0)
    head = CodebookHead(16, 8, 500)
    x = torch.randn(7, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = head(x)
    assert logits.dtype == torch.float32
    assert (logits - head(x)).abs().max() < 0.1


def test_the_loss_starts_near_that_of_a_uniform_guess() -> None:
    torch.manual_seed(0)
    head = CodebookHead(768, 256, 100)
    loss = F.cross_entropy(head(torch.randn(500, 768)), torch.randint(100, (500,)))
    assert float(head.unit_embeddings.detach().mean()) == pytest.approx(0.5, abs=0.01)
    assert loss.item() == pytest.approx(math.log(100), abs=0.2)


def test_letter_head_initialisation() -> None:
    torch.manual_seed(0)
    linear = CTCHead(768, 32).linear
    assert linear.weight.std().item() == pytest.approx(math.sqrt(2 / (768 + 32)), rel=0.05)
    assert not linear.bias.any()


def test_a_classifier_ignores_padding() -> None:
    torch.manual_seed(0)
    head = ClassificationHead(16, 3, 8)
    x = torch.randn(1, 10, 16)
    padded = torch.cat([x, torch.full((1, 5, 16), 100.0)], dim=1)
    alone = HubertOutput(last=x, feature_penalty=torch.zeros(()), embedded=x)
    longer = HubertOutput(last=padded, feature_penalty=torch.zeros(()), embedded=padded)
    torch.testing.assert_close(head(alone), head(longer, torch.arange(15)[None] < 10))


def test_a_weighted_classifier_asks_for_every_layer() -> None:
    x = torch.randn(1, 10, 16)
    with pytest.raises(ValueError, match="hidden_states=True"):
        ClassificationHead(16, 3, 8, n_layers=2, weighted_layers=True)(
            HubertOutput(last=x, feature_penalty=torch.zeros(()), embedded=x)
        )


@pytest.mark.parametrize(
    "head",
    [
        CodebookHead(16, 8, 5, 0.2),
        CTCHead(16, 4, 0.1),
        ClassificationHead(16, 3, 8),
        ClassificationHead(16, 3, 8, 2, True),
    ],
)
def test_settings_rebuild_the_head(head: CodebookHead | CTCHead | ClassificationHead) -> None:
    again = type(head)(**head.settings)
    assert again.settings == head.settings
    again.load_state_dict(head.state_dict())
