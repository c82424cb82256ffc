"""Many iterations from one short form: `series` of a recipe.

`it1` stays as it is; `it2` is the model of all later ones, each on clusters of the network before
it. Steps, clusters and layers grow linearly from a first to a last value. What a recipe or the
command line states of a single iteration goes before that.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from omegaconf import OmegaConf

from hubert_pretrain.config.nodes import TARGET
from hubert_pretrain.config.schema import IterationConfig, Recipe
from hubert_pretrain.fields import faults_of_values


def faults(recipe: Recipe) -> Iterator[str]:
    """A line for each value that cannot be."""
    config = recipe.series
    if not config.count:
        return
    if config.count < 3:
        yield f"series.count={config.count}: expected 3 or more iterations, or 0 for no series"
    for name in ("it1", "it2"):
        if name not in recipe.iterations:
            yield f"series needs iterations.{name}: the first one, and the model of all later ones"
    yield from faults_of_values(config, "series").values()
    second = recipe.iterations.get("it2")
    if second is not None and second.features.get("checkpoint") != "it1/pretrain":
        yield (
            f"iterations.it2.features.checkpoint={second.features.get('checkpoint')}: in a series "
            "it is it1/pretrain, and that of each later iteration the one before it"
        )


def beyond(count: int, missing: Iterable[str]) -> Iterator[str]:
    """A line for each iteration after the last one of a series that lacks values.

    missing: keys without a value.
    """
    if not count:
        return
    names = {key.split(".")[1] for key in missing if key.startswith("iterations.")}
    for name in sorted(names - {"it1", "it2", *made(count)}):
        yield (
            f"iterations.{name}: a series of series.count={count} ends with it{count}; raise "
            f"series.count, or set all that {name} needs"
        )


def made(count: int) -> list[str]:
    """Names of the iterations that a series of this length makes: all but the first two."""
    return [f"it{number}" for number in range(3, count + 1)]


def expanded(recipe: Recipe, stated: Mapping[str, Any]) -> dict[str, IterationConfig]:
    """All iterations of a recipe.

    stated: values of iterations that the series makes, by their names: they go before its own.
    """
    config = recipe.series
    if not config.count:
        return recipe.iterations
    found = {}
    for number in range(1, config.count + 1):
        name = f"it{number}"
        iteration = copy.deepcopy(recipe.iterations["it1" if number == 1 else "it2"])
        if number > 1:
            iteration.features["checkpoint"] = f"it{number - 1}/pretrain"
        if config.layers and number > 1:
            iteration.features["layer"] = between(config.layers, number - 1, config.count - 1)
        if config.n_clusters:
            size = between(config.n_clusters, number, config.count)
            iteration.clustering = dataclasses.replace(iteration.clustering, n_clusters=size)
        if config.steps:
            steps = between(config.steps, number, config.count)
            iteration.pretrain = dataclasses.replace(iteration.pretrain, steps=steps)
        found[name] = _with_stated(iteration, stated[name]) if name in stated else iteration
    return {
        **found,
        **{name: recipe.iterations[name] for name in recipe.iterations if name not in found},
    }


def _with_stated(iteration: IterationConfig, values: Mapping[str, Any]) -> IterationConfig:
    """An iteration with these values in place of its own. Features of another class replace it."""
    kind = values.get("features", {}).get(TARGET, iteration.features.get(TARGET))
    if kind != iteration.features.get(TARGET):
        iteration.features = {}
    merged = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(iteration), values))
    assert isinstance(merged, IterationConfig)
    return merged


def between(ends: list[int], number: int, count: int) -> int:
    """The value of the iteration `number` (from 1) of `count`, on the line from first to last."""
    first, last = ends
    return round(first + (last - first) * (number - 1) / max(1, count - 1))
