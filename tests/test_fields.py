"""Fields of the configuration: defaults, allowed values, and the check of all of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from hubert_pretrain import fields
from hubert_pretrain.clustering.kmeans import ENGINES
from hubert_pretrain.clustering.layer_selection import CRITERIA
from hubert_pretrain.config.schema import (
    ClusteringConfig,
    ExportConfig,
    LayerChoiceConfig,
    TrainerConfig,
)
from hubert_pretrain.errors import ConfigError
from hubert_pretrain.fields import Allowed, check_values, choice, field, names_of
from hubert_pretrain.interop.registry import FORMATS
from hubert_pretrain.training.strategies import STRATEGIES


@dataclass
class Inner:
    engine: str = field("torch", choice("torch", "faiss"))
    rate: float | None = field(None, fields.positive)


@dataclass
class Outer:
    inner: Inner = field(Inner)
    parts: dict[str, Inner] = field({})
    sizes: list[int] = field([1, 2])


@pytest.mark.parametrize(
    ("allowed", "good", "bad"),
    [
        (fields.positive, [1e-9, 3], [0, -1]),
        (fields.zero_or_more, [0, 2], [-1]),
        (fields.share, [0, 0.5, 1], [-0.1, 1.1]),
        (fields.share_above_zero, [0.1, 1], [0, 1.5]),
        (fields.share_below_one, [0, 0.9], [1, -0.1]),
        (fields.all_positive, [[], [1, 2]], [[1, 0]]),
        (fields.decibels, [[-5, 5], [1, 1]], [[5, -5], [1], [1, 2, 3]]),
        (choice("a", "b"), ["a", "b"], ["c", ""]),
    ],
)
def test_allowed_values(allowed: Allowed, good: list[Any], bad: list[Any]) -> None:
    for value in good:
        allowed.check("key", value)
    for value in bad:
        with pytest.raises(ConfigError, match=f"^key=.*: expected {allowed.expected[:10]}"):
            allowed.check("key", value)


def test_messages_have_key_value_expectation_and_nearest_name() -> None:
    with pytest.raises(ConfigError) as wrong:
        check_values(Outer(inner=Inner("fais")))
    assert str(wrong.value) == (
        "inner.engine='fais': expected one of torch, faiss (did you mean 'faiss'?)"
    )


def test_sections_inside_dicts_are_checked_and_null_is_allowed() -> None:
    check_values(Outer(parts={"it1": Inner()}))
    with pytest.raises(ConfigError, match=r"^parts\.it2\.rate=-1: expected a number above 0$"):
        check_values(Outer(parts={"it1": Inner(), "it2": Inner(rate=-1)}))


def test_mutable_defaults_are_made_for_each_instance() -> None:
    first = Outer()
    first.sizes.append(3)
    first.parts["it1"] = Inner()
    first.inner.engine = "faiss"
    assert Outer() == Outer(Inner("torch"), {}, [1, 2])


def test_names_are_those_of_the_code() -> None:
    """The schema states them because these modules import torch."""
    assert names_of(ClusteringConfig, "engine") == list(ENGINES)
    assert names_of(LayerChoiceConfig, "criterion") == list(CRITERIA)
    assert sorted(names_of(ExportConfig, "format")) == sorted(FORMATS)
    assert names_of(TrainerConfig, "strategy") == list(STRATEGIES)
