"""The two samplers of fine-tuning; that of `transformers` against `transformers` itself."""

from __future__ import annotations

import numpy as np
import pytest

from hubert_pretrain.errors import ConfigError
from hubert_pretrain.finetune.masks import ReferenceMasks, TransformersMasks, make_masks
from hubert_pretrain.model.config import SpanMask
from hubert_pretrain.model.masking import span_mask
from hubert_pretrain.seeds import generator

TIME = SpanMask(probability=0.3, span_frames=5, min_spans=2)
CHANNELS = SpanMask(probability=0.2, span_frames=4, min_spans=1)


def test_the_fields_of_transformers_mean_what_they_mean_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    transformers_hubert = pytest.importorskip("transformers.models.hubert.modeling_hubert")
    sampler = make_masks("transformers", TIME, CHANNELS, seed=3)
    assert isinstance(sampler, TransformersMasks)
    monkeypatch.setattr(
        "hubert_pretrain.finetune.masks.generator", lambda *key: np.random.RandomState(7)
    )
    time, channels = sampler.draw([4, 9, 2], [40, 50, 31], (50, 32), step=0, index=0)
    np.random.seed(7)
    draw = transformers_hubert._compute_mask_indices
    np.testing.assert_array_equal(time, draw((3, 50), mask_prob=0.3, mask_length=5, min_masks=2))
    np.testing.assert_array_equal(
        channels, draw((3, 32), mask_prob=0.2, mask_length=4, min_masks=1)
    )


@pytest.mark.parametrize("name", ["reference", "transformers"])
def test_masks_are_a_pure_function(name: str) -> None:
    one, other = (make_masks(name, TIME, CHANNELS, seed=3) for _ in range(2))
    arguments = ([4, 9, 2], [40, 50, 31], (60, 32))
    for step in range(4):
        for found, expected in zip(
            one.draw(*arguments, step=step, index=2 * step),
            other.draw(*arguments, step=step, index=2 * step),
            strict=True,
        ):
            np.testing.assert_array_equal(found, expected)
    assert not np.array_equal(
        one.draw(*arguments, step=0, index=0)[0], one.draw(*arguments, step=1, index=1)[0]
    )
    assert not np.array_equal(
        one.draw(*arguments, step=0, index=0)[0],
        make_masks(name, TIME, CHANNELS, seed=4).draw(*arguments, step=0, index=0)[0],
    )


def test_the_reference_leaves_padding_out() -> None:
    sampler = make_masks("reference", TIME, CHANNELS, seed=3)
    assert isinstance(sampler, ReferenceMasks)
    time, channels = sampler.draw([4, 9], [40, 11], (60, 32), step=0, index=0)
    assert time.shape == (2, 60)
    assert channels.shape == (2, 32)
    assert time[0].any()
    assert time[1].any()
    assert not time[0, 40:].any()
    assert not time[1, 11:].any()
    np.testing.assert_array_equal(time[0, :40], span_mask(40, TIME, generator(3, "mask", 0, 4)))


@pytest.mark.parametrize("name", ["reference", "transformers"])
def test_no_mask_when_probabilities_are_0(name: str) -> None:
    off = SpanMask(probability=0.0, span_frames=5, min_spans=2)
    time, channels = make_masks(name, off, off, seed=0).draw(
        [1, 2], [30, 20], (30, 16), step=0, index=0
    )
    assert time.shape == (2, 30)
    assert channels.shape == (2, 16)
    assert not time.any()
    assert not channels.any()


def test_an_unknown_sampler_and_what_transformers_cannot_draw_are_refused() -> None:
    with pytest.raises(
        ConfigError,
        match=r"mask_sampler='transformer': expected one of reference, transformers .*"
        "mean 'transformers'",
    ):
        make_masks("transformer", TIME, CHANNELS, seed=0)
    poisson = SpanMask(probability=0.3, span_frames=5, min_spans=2, lengths="poisson")
    with pytest.raises(
        ConfigError,
        match=r"channel_mask.lengths is 'poisson', but transformers .* mask_sampler=reference",
    ):
        make_masks("transformers", TIME, poisson, seed=0)
