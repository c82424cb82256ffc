"""The masked-prediction loss against fairseq's formulation, written out independently: values,
gradients, and any division of a step into micro-batches.

In fairseq the positive's embedding is in column 0 before all K embeddings, its duplicate among them
is set to -inf, the cosine is computed on the expanded (K + 1, M, d) tensor, and the sum is divided
by the predicted frames of the whole step. Several codebooks: `final_proj(x).chunk(N)` or the same
projection for all, cross entropies are added, the frames are those of the first target.
Intermediate layers: the loop of ILS-SSL over `layer_results`, one term each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hubert_pretrain.errors import DataError
from hubert_pretrain.model.heads import CodebookHead, SoftmaxHead
from hubert_pretrain.pretrain.loss import (
    LossWeights,
    PretrainLoss,
    SupervisedLayer,
    masked_prediction_loss,
)

B = 3
T = 17
D = 12
MASKED = 8  # per row
ONE = [7]
TWO = [7, 5]
Head = CodebookHead | SoftmaxHead


# -- the reference


def compute_nce(projected: Tensor, ids: Tensor, embeddings: Tensor) -> Tensor:
    """(M, K + 1): fairseq's compute_pred and compute_nce."""
    positive = embeddings[ids][None]  # (1, M, d)
    negatives = embeddings[:, None].expand(-1, len(projected), -1)  # (K, M, d)
    candidates = torch.cat([positive, negatives])  # (K + 1, M, d)
    duplicate = (positive == negatives).all(dim=-1)
    logits = torch.cosine_similarity(projected.float(), candidates.float(), dim=-1) / 0.1
    logits[1:] = logits[1:].masked_fill(duplicate, float("-inf"))
    return logits.T


def reference_logits(
    head: CodebookHead, frames: Tensor, ids: Tensor, clusters: Sequence[int], tied: bool
) -> list[Tensor]:
    """One (M, K_n + 1) per codebook; ids (M, N)."""
    projected = F.linear(frames, head.projection.weight, head.projection.bias)
    parts = [projected] * len(clusters) if tied else projected.chunk(len(clusters), dim=-1)
    groups = head.unit_embeddings.split(list(clusters), 0)
    return [
        compute_nce(part, ids[:, n], group)
        for n, (part, group) in enumerate(zip(parts, groups, strict=True))
    ]


@dataclass
class Case:
    """A variant of the loss."""

    clusters: list[int] = field(default_factory=lambda: [7])
    tied: bool = False
    unmasked_weight: float = 0.0
    masked_weight: float = 1.0
    layer_weights: tuple[float, ...] = (1.0,)
    separate: bool = False

    def networks(self) -> tuple[nn.ModuleList, nn.ModuleList]:
        """A stack of layers, and the head of each."""
        torch.manual_seed(0)
        depth = len(self.layer_weights)
        heads = [
            CodebookHead(D, 5, self.clusters, tie_projections=self.tied)
            for _ in range(depth if self.separate else 1)
        ]
        return nn.ModuleList(nn.Linear(D, D) for _ in range(depth)), nn.ModuleList(
            heads if self.separate else heads * depth
        )

    def micro_batch(self, seed: int) -> dict[str, Tensor]:
        draw = torch.Generator().manual_seed(seed)
        order = torch.rand(B, T, generator=draw).argsort(dim=1)
        ids = torch.stack([torch.randint(k, (B, T), generator=draw) for k in self.clusters], dim=2)
        return {"input": torch.randn(B, T, D, generator=draw), "ids": ids, "mask": order < MASKED}

    def reference_sum(
        self, layers: nn.ModuleList, heads: nn.ModuleList, part: dict[str, Tensor]
    ) -> tuple[Tensor, int]:
        """The criterion before its division, and its sample size."""
        loss = torch.zeros(())
        size = 0
        states = outputs(layers, part["input"])
        for chosen, weight in (
            (part["mask"], self.masked_weight),
            (~part["mask"], self.unmasked_weight),
        ):
            if weight == 0:
                continue
            ids = part["ids"][chosen]
            for state, head, layer_weight in zip(states, heads, self.layer_weights, strict=True):
                for logits in reference_logits(head, state[chosen], ids, self.clusters, self.tied):
                    zeros = torch.zeros(len(logits), dtype=torch.long)
                    loss = loss + weight * layer_weight * F.cross_entropy(
                        logits, zeros, reduction="sum"
                    )
            size += len(ids)
        return loss + 10.0 * states[0].square().mean() * size, size


def outputs(layers: nn.ModuleList, x: Tensor) -> list[Tensor]:
    states = []
    for layer in layers:
        x = layer(x).tanh()
        states.append(x)
    return states


def gradients(*modules: nn.Module) -> list[Tensor]:
    parameters = dict.fromkeys(parameter for module in modules for parameter in module.parameters())
    return [parameter.grad.clone() for parameter in parameters]  # type: ignore[union-attr]


# -- the tests

CASES = {
    **{f"one codebook, unmasked {w}": Case(unmasked_weight=w) for w in (0.0, 1.0, 0.3)},
    **{
        f"two codebooks, unmasked {w}, tied {tied}": Case(TWO, tied, w)
        for w in (0.0, 0.5)
        for tied in (False, True)
    },
    "only unmasked frames": Case(masked_weight=0.0, unmasked_weight=1.0),
    "three layers": Case(layer_weights=(1.0, 1.0, 1.0)),
    "three layers, weights, unmasked": Case(unmasked_weight=0.5, layer_weights=(0.2, 0.7, 1.5)),
    "three layers, a head each": Case(layer_weights=(0.5, 0.5, 1.0), separate=True),
    "two layers, two codebooks": Case(TWO, False, 0.3, layer_weights=(0.5, 1.0)),
}


@pytest.mark.parametrize("cut", [1, 2, 4])
@pytest.mark.parametrize("name", CASES)
def test_loss_and_gradients_equal_the_reference(name: str, cut: int) -> None:
    case = CASES[name]
    parts = [case.micro_batch(seed) for seed in range(4)]
    layers, heads = case.networks()
    sums = [case.reference_sum(layers, heads, part) for part in parts]
    size = sum(frames for _, frames in sums)
    expected = sum((loss for loss, _ in sums), torch.zeros(())) / size
    expected.backward()
    expected_gradients = gradients(layers, heads)

    layers, heads = case.networks()
    total = 0.0
    size_of_part = 4 // cut  # the same step as 1, 2 or 4 micro-batches
    for group in [parts[i : i + size_of_part] for i in range(0, 4, size_of_part)]:
        joined = {key: torch.cat([part[key] for part in group]) for key in group[0]}
        states = outputs(layers, joined["input"])
        ids = joined["ids"][..., 0] if len(case.clusters) == 1 else joined["ids"]
        result = masked_prediction_loss(
            [
                SupervisedLayer(*layer)
                for layer in zip(heads, states, case.layer_weights, strict=True)
            ],
            ids,
            joined["mask"],
            states[0].square().mean(),
            n_clusters=case.clusters,
            masked_frames=len(group) * B * MASKED,
            normaliser=size,
            weights=LossWeights(masked=case.masked_weight, unmasked=case.unmasked_weight),
        )
        result.loss.backward()
        total += result.loss.item()
    torch.testing.assert_close(torch.tensor(total), expected.detach(), rtol=1e-6, atol=1e-6)
    for found, reference in zip(gradients(layers, heads), expected_gradients, strict=True):
        torch.testing.assert_close(found, reference, rtol=1e-5, atol=1e-6)


def ours(
    head: Head,
    encoded: Tensor,
    targets: Tensor,
    mask: Tensor,
    clusters: Sequence[int],
    **settings: Any,
) -> PretrainLoss:
    """The loss of one layer without a penalty, as a plain sum."""
    frames = int(mask.sum())
    return masked_prediction_loss(
        [SupervisedLayer(head, encoded)],
        targets,
        mask,
        torch.zeros(()),
        n_clusters=clusters,
        masked_frames=frames,
        normaliser=1,
        **settings,
    )


@pytest.mark.parametrize("clusters", [ONE, TWO])
def test_accuracy_equals_the_reference(clusters: list[int]) -> None:
    case = Case(clusters)
    part = case.micro_batch(9)
    ((layer,), (head,)) = case.networks()
    encoded = layer(part["input"])
    result = ours(head, encoded, part["ids"], part["mask"], clusters, measure_unmasked=True)
    for prediction, chosen in ((result.masked, part["mask"]), (result.unmasked, ~part["mask"])):
        expected = reference_logits(
            head, encoded[chosen], part["ids"][chosen], clusters, tied=False
        )
        correct = [
            ((logits.argmax(dim=1) == 0) & (logits.argmin(dim=1) != 0)).sum().item()
            for logits in expected
        ]
        nll = [
            F.cross_entropy(
                logits, torch.zeros(len(logits), dtype=torch.long), reduction="sum"
            ).item()
            for logits in expected
        ]
        assert prediction.frames == chosen.sum()
        assert prediction.correct.item() == pytest.approx(sum(correct) / len(clusters))
        assert prediction.nll.item() == pytest.approx(sum(nll), rel=1e-5)
        if len(clusters) > 1:
            assert [each.correct.item() for each in prediction.codebooks] == correct
            assert [each.nll.item() for each in prediction.codebooks] == pytest.approx(
                nll, rel=1e-5
            )
        else:
            assert not prediction.codebooks


@pytest.mark.parametrize("masked", [True, False])
def test_one_codebook_equals_torchaudio(masked: bool) -> None:
    """Its LogitGenerator: another port of the expanded formulation, with padding classes
    nowhere.
    """
    components = pytest.importorskip("torchaudio.models.wav2vec2.components")
    part = Case().micro_batch(3)
    ((layer,), (head,)) = Case().networks()
    theirs = components.LogitGenerator(
        D, num_classes=7, final_dim=5, skip_masked=False, skip_nomask=False
    )
    theirs.load_state_dict(
        {
            "final_proj.weight": head.projection.weight,
            "final_proj.bias": head.projection.bias,
            "label_embeddings": head.unit_embeddings,
        }
    )
    encoded = layer(part["input"]).detach()
    ids = part["ids"][..., 0]
    logits = theirs(encoded, ids, part["mask"], ~part["mask"])[0 if masked else 1]
    expected = F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long), reduction="sum")
    expected.backward()
    result = ours(
        head,
        encoded,
        ids,
        part["mask"],
        ONE,
        weights=LossWeights(masked=float(masked), unmasked=float(not masked)),
    )
    result.loss.backward()
    torch.testing.assert_close(result.loss, expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(
        head.projection.weight.grad, theirs.final_proj.weight.grad, rtol=1e-4, atol=1e-5
    )
    torch.testing.assert_close(
        head.unit_embeddings.grad, theirs.label_embeddings.grad, rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("clusters", [ONE, TWO])
@pytest.mark.parametrize("kind", [CodebookHead, SoftmaxHead])
def test_soft_targets_are_a_mean_over_hard_ones(clusters: list[int], kind: type[Head]) -> None:
    """Cross entropy is linear in the targets: p-weighted sum over clusters of the loss of that
    cluster, written as -sum p log q.
    """
    part = Case(clusters).micro_batch(4)
    draw = torch.Generator().manual_seed(1)
    torch.manual_seed(0)
    head = SoftmaxHead(D, clusters) if kind is SoftmaxHead else CodebookHead(D, 5, clusters)
    soft = torch.cat([torch.randn(B, T, k, generator=draw).softmax(-1) for k in clusters], dim=-1)
    result = ours(head, part["input"], soft, part["mask"], clusters)
    result.loss.backward()
    found = gradients(head)
    head.zero_grad()
    logits = head(part["input"][part["mask"]]).split(clusters, -1)
    targets = soft[part["mask"]].split(clusters, -1)
    expected = sum(
        -(p * (q - q.logsumexp(-1, keepdim=True))).sum()
        for p, q in zip(targets, logits, strict=True)
    )
    expected.backward()  # type: ignore[union-attr]
    torch.testing.assert_close(result.loss, expected, rtol=1e-6, atol=1e-5)
    for one, other in zip(found, gradients(head), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)

    hard = torch.cat(
        [F.one_hot(part["ids"][..., n], k) for n, k in enumerate(clusters)], dim=-1
    ).float()
    sharp, plain = (
        ours(head, part["input"], targets, part["mask"], clusters)
        for targets in (hard, part["ids"])
    )
    torch.testing.assert_close(sharp.loss, plain.loss, rtol=1e-6, atol=1e-5)
    assert sharp.masked.correct == plain.masked.correct


def test_unmasked_frames_that_only_get_measured_change_no_gradient() -> None:
    found = []
    for measure in (False, True):
        part = Case().micro_batch(5)
        (layers, heads) = Case().networks()
        ours(
            heads[0],
            layers[0](part["input"]),
            part["ids"],
            part["mask"],
            ONE,
            measure_unmasked=measure,
        ).loss.backward()
        found.append(gradients(layers, heads))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("shape", [(B, T, 2), (B, T, 3), (B,)])
def test_targets_of_other_codebooks_are_refused(shape: tuple[int, ...]) -> None:
    part = Case().micro_batch(5)
    (_, heads) = Case().networks()
    with pytest.raises(
        DataError, match=r"the head has 1 codebooks of 7 clusters; expected ids \(B, T, 1\)"
    ):
        ours(heads[0], part["input"], torch.zeros(shape, dtype=torch.long), part["mask"], ONE)
    with pytest.raises(DataError, match=r"soft targets \(B, T, 7\)"):
        ours(heads[0], part["input"], torch.zeros(shape), part["mask"], ONE)
