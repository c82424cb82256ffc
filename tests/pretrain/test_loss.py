"""Cost of the loss: no tensor larger than the logits of the predicted frames, and no device
synchronisation.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hubert_pretrain.model.heads import CodebookHead, SoftmaxHead
from hubert_pretrain.pretrain.loss import (
    LN_2,
    LossWeights,
    PretrainLoss,
    SupervisedLayer,
    masked_prediction_loss,
)

B = 4
T = 50
D = 16
HIDDEN = 20
CLUSTERS = [60, 40]


def prepare(kind: str, device: str, **settings: Any) -> Callable[[], PretrainLoss]:
    """Everything but the loss: two codebooks, two layers, their targets."""
    with torch.device(device):
        head = SoftmaxHead(D, CLUSTERS) if kind == "softmax" else CodebookHead(D, 8, CLUSTERS)
    encoded = torch.randn(B, T, D, device=device, requires_grad=True)
    layers = [SupervisedLayer(head, encoded, 0.5), SupervisedLayer(head, encoded * 2)]
    mask = torch.zeros(B, T, dtype=torch.bool, device=device)
    mask[:, :HIDDEN] = True
    hard = torch.zeros(B, T, 2, dtype=torch.long, device=device)
    soft = torch.full((B, T, sum(CLUSTERS)), 0.01, device=device)
    sizes = {"n_clusters": CLUSTERS, "masked_frames": B * HIDDEN, "normaliser": B * HIDDEN}
    penalty = torch.zeros((), device=device)
    return partial(
        masked_prediction_loss,
        layers,
        soft if kind == "soft" else hard,
        mask,
        penalty,
        **sizes,
        **settings,
    )


@pytest.mark.parametrize(
    "settings", [{}, {"weights": LossWeights(unmasked=0.5)}, {"measure_unmasked": True}]
)
@pytest.mark.parametrize("kind", ["hard", "soft", "softmax"])
def test_a_gpu_is_never_waited_for(kind: str, settings: dict[str, Any]) -> None:
    """Fake CUDA tensors have shapes and no values: anything whose size or branch depends on a value
    raises.
    """
    with FakeTensorMode():
        result = prepare(kind, "cuda", **settings)()
    assert result.loss.shape == result.masked.correct.shape == ()
    assert result.loss.device.type == "cuda"


class Sizes(TorchDispatchMode):
    """The number of elements of the largest tensor that any operation made, not counting views."""

    largest = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        made = function(*args, **(kwargs or {}))
        known = {
            leaf.untyped_storage().data_ptr()
            for leaf in tree_leaves((args, kwargs))
            if isinstance(leaf, Tensor)
        }
        for leaf in tree_leaves(made):
            if isinstance(leaf, Tensor) and leaf.untyped_storage().data_ptr() not in known:
                self.largest = max(self.largest, leaf.numel())
        return made


@pytest.mark.parametrize("kind", ["hard", "softmax"])
def test_nothing_is_larger_than_the_scores_of_the_hidden_frames(kind: str) -> None:
    loss = prepare(kind, "cpu")
    with Sizes() as sizes:
        loss().loss.backward()
    assert sizes.largest == B * HIDDEN * sum(CLUSTERS)


def test_bits_are_nats_divided_by_ln_2() -> None:
    assert pytest.approx(math.log(2), rel=1e-15) == LN_2


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["hard", "soft"])
def test_a_real_gpu_is_never_waited_for(kind: str) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    loss = prepare(kind, "cuda", weights=LossWeights(unmasked=0.5))
    loss().loss.backward()  # the first time libraries are loaded
    torch.cuda.set_sync_debug_mode("error")
    try:
        result = loss()
        result.loss.backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.isfinite(result.loss)
