"""The masked-prediction loss against fairseq's formulation, written out independently: values, gradients, and any cut of a step.

reference.md 2.6: the positive's embedding stands in column 0 before all K embeddings, its duplicate among them is set to -inf, the
cosine is computed on the expanded (K + 1, M, d) tensor, and the sum is divided by the predicted frames of the whole step.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hubert_pretrain.model.heads import CodebookHead
from hubert_pretrain.pretrain.loss import masked_prediction_loss

B, T, D, K = 3, 17, 12, 7
HIDDEN = 8  # per row


def reference_logits(head: CodebookHead, frames: Tensor, ids: Tensor) -> Tensor:
    """(M, K + 1): fairseq's compute_pred, and apply_mask's view of it."""
    projected = head.projection(frames)
    positive = head.unit_embeddings[ids][None]  # (1, M, d)
    negatives = head.unit_embeddings[:, None].expand(-1, len(frames), -1)  # (K, M, d)
    candidates = torch.cat([positive, negatives])  # (K + 1, M, d)
    duplicate = (positive == negatives).all(dim=-1)
    logits = torch.cosine_similarity(projected.float(), candidates.float(), dim=-1) / 0.1
    logits[1:] = logits[1:].masked_fill(duplicate, float("-inf"))
    return logits.T


def reference_sum(
    head: CodebookHead, encoded: Tensor, ids: Tensor, mask: Tensor, penalty: Tensor, unmasked_weight: float
) -> tuple[Tensor, int]:
    """The criterion before its division, and its sample size."""
    loss, size = torch.zeros(()), 0
    for chosen, weight in ((mask, 1.0), (~mask, unmasked_weight)):
        if weight > 0:
            logits = reference_logits(head, encoded[chosen], ids[chosen])
            loss = loss + weight * F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long), reduction="sum")
            size += len(logits)
    return loss + 10.0 * penalty * size, size


def micro_batch(seed: int) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    order = torch.rand(B, T, generator=draw).argsort(dim=1)
    return {
        "input": torch.randn(B, T, D, generator=draw),
        "ids": torch.randint(K, (B, T), generator=draw),
        "mask": order < HIDDEN,
    }


def networks() -> tuple[torch.nn.Linear, CodebookHead]:
    torch.manual_seed(0)
    return torch.nn.Linear(D, D), CodebookHead(D, 5, K)


def gradients(encoder: torch.nn.Linear, head: CodebookHead) -> list[Tensor]:
    return [p.grad.clone() for p in [*encoder.parameters(), *head.parameters()]]  # type: ignore[union-attr]


@pytest.mark.parametrize("unmasked_weight", [0.0, 1.0, 0.3])
@pytest.mark.parametrize("cut", [1, 2, 4])
def test_loss_and_gradients_equal_the_reference(unmasked_weight: float, cut: int) -> None:
    parts = [micro_batch(seed) for seed in range(4)]
    groups = [parts[i : i + 4 // cut] for i in range(0, 4, 4 // cut)]  # the same step as 1, 2 or 4 micro-batches

    encoder, head = networks()
    sums = []
    for part in parts:
        encoded = encoder(part["input"])
        sums.append(reference_sum(head, encoded, part["ids"], part["mask"], encoded.square().mean(), unmasked_weight))
    expected = sum(loss for loss, _ in sums) / sum(size for _, size in sums)
    expected.backward()
    wanted = gradients(encoder, head)

    encoder, head = networks()
    normaliser = 4 * B * (T if unmasked_weight else HIDDEN)
    total = 0.0
    for group in groups:
        joined = {name: torch.cat([part[name] for part in group]) for name in group[0]}
        encoded = encoder(joined["input"])
        result = masked_prediction_loss(
            head,
            encoded,
            joined["ids"],
            joined["mask"],
            encoded.square().mean(),
            masked_frames=len(group) * B * HIDDEN,
            normaliser=normaliser,
            unmasked_weight=unmasked_weight,
        )
        result.loss.backward()
        total += result.loss.item()
    torch.testing.assert_close(torch.tensor(total), expected.detach(), rtol=1e-6, atol=1e-6)
    for found, reference in zip(gradients(encoder, head), wanted, strict=True):
        torch.testing.assert_close(found, reference, rtol=1e-5, atol=1e-6)


def test_accuracy_equals_the_reference() -> None:
    part, (encoder, head) = micro_batch(9), networks()
    encoded = encoder(part["input"])
    result = masked_prediction_loss(
        head, encoded, part["ids"], part["mask"], torch.zeros(()), masked_frames=B * HIDDEN, normaliser=1, measure_unmasked=True
    )
    assert result.unmasked is not None
    for prediction, chosen in ((result.masked, part["mask"]), (result.unmasked, ~part["mask"])):
        logits = reference_logits(head, encoded[chosen], part["ids"][chosen])
        correct = (logits.argmax(dim=1) == 0) & (logits.argmin(dim=1) != 0)
        assert prediction.correct.item() == correct.sum().item()
        assert prediction.frames == len(logits)
        nll = F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long), reduction="sum")
        torch.testing.assert_close(prediction.nll, nll, rtol=1e-5, atol=1e-5)


def test_visible_frames_that_only_get_measured_change_no_gradient() -> None:
    found = []
    for measure in (False, True):
        part, (encoder, head) = micro_batch(5), networks()
        encoded = encoder(part["input"])
        masked_prediction_loss(
            head,
            encoded,
            part["ids"],
            part["mask"],
            encoded.square().mean(),
            masked_frames=B * HIDDEN,
            normaliser=7.0,
            measure_unmasked=measure,
        ).loss.backward()
        found.append(gradients(encoder, head))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
