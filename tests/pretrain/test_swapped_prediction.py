"""The loss of Spin against plain versions of its formulas, alone and on two ranks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from hubert_pretrain.pretrain.swapped_prediction import equal_partition, swapped_prediction

TEMPERATURE = 0.1


def cosines(frames: int = 60, codewords: int = 7, seed: int = 0) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    points = torch.nn.functional.normalize(torch.randn(frames, 4, generator=draw), dim=1)
    units = torch.nn.functional.normalize(torch.randn(codewords, 4, generator=draw), dim=1)
    return points @ units.T


def plain_sinkhorn(cosines: np.ndarray, epsilon: float, iterations: int) -> np.ndarray:
    """The formula of the paper: K x N, rows sum to 1 / K, then columns to 1 / N."""
    shares = np.exp(cosines.astype(np.float64) / epsilon).T
    shares /= shares.sum()
    size, frames = shares.shape
    for _ in range(iterations):
        for row in range(size):
            shares[row] /= shares[row].sum() * size
        for column in range(frames):
            shares[:, column] /= shares[:, column].sum() * frames
    return (shares * frames).T


@pytest.mark.parametrize("iterations", [1, 3])
@pytest.mark.parametrize("epsilon", [0.02, 0.05, 0.5])
def test_targets_are_those_of_sinkhorns_formula(epsilon: float, iterations: int) -> None:
    found = equal_partition(cosines(), epsilon=epsilon, iterations=iterations)
    expected = plain_sinkhorn(cosines().numpy(), epsilon, iterations)
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-6)


def test_marginals() -> None:
    few = equal_partition(cosines(), epsilon=0.5, iterations=3)
    many = equal_partition(cosines(), epsilon=0.5, iterations=60)
    torch.testing.assert_close(few.sum(1), torch.ones(60))
    torch.testing.assert_close(many.sum(1), torch.ones(60))
    torch.testing.assert_close(many.sum(0), torch.full((7,), 60 / 7), atol=1e-3, rtol=0)
    unequal = (cosines() / 0.5).softmax(1).sum(0)
    assert few.sum(0).std() < unequal.std() / 3


def test_the_least_epsilon_stays_in_range() -> None:
    """The limit that the configuration has."""
    found = equal_partition(-torch.ones(4, 2) + 1e-3 * torch.eye(4, 2), epsilon=0.005, iterations=3)
    torch.testing.assert_close(found.sum(1), torch.ones(4))


def test_loss_is_that_of_a_plain_loop() -> None:
    first = (cosines(seed=1) / TEMPERATURE).requires_grad_()
    second = (cosines(seed=1) + 0.2 * cosines(seed=2)) / TEMPERATURE
    result = swapped_prediction(first, second, temperature=TEMPERATURE, epsilon=0.05, iterations=3)
    views = [first.detach().double().numpy(), second.double().numpy()]
    targets = [plain_sinkhorn(view * TEMPERATURE, 0.05, 3) for view in views]
    expected = 0.0
    for frame in range(60):
        for view, target in ((views[0], targets[1]), (views[1], targets[0])):
            total = np.log(np.exp(view[frame]).sum())
            for word in range(7):
                expected -= target[frame, word] * (view[frame, word] - total) / 2
    assert float(result.loss.detach()) == pytest.approx(expected, rel=1e-5)
    agreeing = (views[0].argmax(1) == views[1].argmax(1)).sum()
    assert int(result.agreeing) == agreeing
    assert 0 < agreeing < 60
    assert result.codewords.tolist() == [*views[0].argmax(1), *views[1].argmax(1)]

    # Targets have no gradient: that of the first view is (p1 - q2) / 2.
    result.loss.backward()
    assert first.grad is not None
    expected_gradient = (first.detach().softmax(1) - torch.from_numpy(targets[1])) / 2
    torch.testing.assert_close(first.grad, expected_gradient.float(), atol=1e-5, rtol=0)
