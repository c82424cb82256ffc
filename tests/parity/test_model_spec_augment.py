"""The seeded re-implementation of `transformers`' masks against the original, bit by bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hubert_pretrain.errors import ConfigError, DataError
from hubert_pretrain.interop.transformers_writer import import_transformers
from hubert_pretrain.model.spec_augment import SpecAugment, span_masks


@pytest.mark.parametrize(
    "lengths", [None, [200, 199, 150, 80, 30, 10, 9, 3]], ids=["whole", "padded"]
)
@pytest.mark.parametrize(
    ("probability", "span", "min_spans"),
    [(0.05, 10, 2), (0.65, 10, 2), (0.9, 3, 0), (0.01, 10, 0), (0.5, 64, 0)],
)
def test_the_same_masks_as_the_original(
    lengths: list[int] | None, probability: float, span: int, min_spans: int
) -> None:
    import_transformers()
    from transformers.models.hubert.modeling_hubert import _compute_mask_indices

    attention_mask = (
        None if lengths is None else (torch.arange(200) < torch.tensor(lengths)[:, None]).long()
    )
    for seed in range(50):
        np.random.seed(seed)
        expected = _compute_mask_indices((8, 200), probability, span, attention_mask, min_spans)
        draw = np.random.RandomState(seed)
        found = span_masks(
            (8, 200),
            probability=probability,
            span=span,
            min_spans=min_spans,
            generator=draw,
            lengths=lengths,
        )  # type: ignore[arg-type]
        assert (found == expected).all(), seed


def test_defaults_are_theirs() -> None:
    theirs = import_transformers().HubertConfig()
    assert all(getattr(theirs, name) == value for name, value in vars(SpecAugment()).items())


def test_the_same_generator_gives_the_same_masks() -> None:
    augment = SpecAugment(mask_feature_prob=0.3)
    draws = [augment.draw(3, 99, 48, generator=np.random.default_rng(seed)) for seed in (1, 1, 2)]
    assert all((a == b).all() for a, b in zip(draws[0], draws[1], strict=True))
    assert (draws[0][0] != draws[2][0]).any()
    assert [mask.shape for mask in draws[0]] == [(3, 99), (3, 48)]


def test_impossible_spans() -> None:
    with pytest.raises(ConfigError, match="at least 1"):
        SpecAugment(mask_time_length=0).draw(1, 50, 8, generator=np.random.default_rng(0))
    with pytest.raises(DataError, match="spans of 10 positions do not fit rows of 5"):
        SpecAugment().draw(1, 5, 8, generator=np.random.default_rng(0))
