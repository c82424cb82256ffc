"""Feature extractor of an iteration on its device, for the stages that compute frames: `cluster`
and `label`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from hubert_pretrain import distributed
from hubert_pretrain.config import compose
from hubert_pretrain.config.schema import Recipe
from hubert_pretrain.distributed import usable_cores
from hubert_pretrain.errors import ConfigError
from hubert_pretrain.features.extractor import FeatureExtractor
from hubert_pretrain.frames import seconds
from hubert_pretrain.pipeline import plan
from hubert_pretrain.pipeline.workspace import Workspace

MAX_WORKERS = 16
"""Batches in flight at once: each may need some 700 MB in the conv encoder of Base."""
AUTO = "auto"
"""`features.layer=auto`: the cluster stage chooses (clustering/layer_selection.py)."""


@dataclass(frozen=True)
class Extraction:
    """An extractor with its device and workers in this process."""

    extractor: FeatureExtractor
    device: torch.device
    workers: int


@contextmanager
def extraction(
    recipe: Recipe, workspace: Workspace, iteration: str, *, layer: Any = None
) -> Iterator[Extraction]:
    """The extractor of an iteration on its device. While this is open, each worker computes with
    one torch thread.

    Args:
        recipe: of the run.
        workspace: of the run.
        iteration: name of the iteration, e.g. it1.
        layer: takes the place of `features.layer=auto`: the choice of the cluster stage, which the
            codebook's `features["layer"]` states.
    """
    node = resolved(dict(recipe.iterations[iteration].features), workspace)
    if node.get("layer") == AUTO:
        node["layer"] = layer
    device = device_of(recipe)
    workers = min(MAX_WORKERS, recipe.trainer.threads or usable_cores())
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        extractor = compose.build(node).to(device)
        check_grid(extractor, recipe, iteration)
        yield Extraction(extractor, device, workers)
    finally:
        torch.set_num_threads(threads)


def check_grid(extractor: FeatureExtractor, recipe: Recipe, iteration: str) -> None:
    """Raises ConfigError for features whose targets cannot be brought to the model's frames: one of
    the two has no whole number of frames for each of the other's (targets/regrid.py).
    """
    found = extractor.grid
    expected = recipe.model.grid
    if found.fits(expected):
        return
    checkpoint = recipe.iterations[iteration].features.get("checkpoint")
    named = f"features.checkpoint={checkpoint}" if checkpoint else "features"
    raise ConfigError(
        f"iterations.{iteration}.{named}: frames {seconds(found.hop):g} s apart, but the model's "
        f"are {seconds(expected.hop):g} s apart; choose a teacher whose frames are as far apart, "
        "or a whole number of times closer or further"
    )


def check_teachers(recipe: Recipe, workspace: Workspace) -> None:
    """Check that targets of teachers from elsewhere can be brought to the model's frames, so that a
    later iteration is not refused after days of training. Raises ConfigError.
    """
    own = {stage.name for stage in plan.stages(recipe)}
    for name, iteration in recipe.iterations.items():
        teacher = None if iteration.targets else iteration.features.get("checkpoint")
        if teacher is None or teacher in own or workspace.is_done(f"{name}/label"):
            continue
        node = resolved(dict(iteration.features), workspace)
        if node.get("layer") == AUTO:
            node["layer"] = "all"
        check_grid(compose.build(node), recipe, name)


def resolved(node: Any, workspace: Workspace) -> Any:
    """A node of features with paths in place of the names of stages, at any depth."""
    if isinstance(node, list):
        return [resolved(value, workspace) for value in node]
    if not isinstance(node, dict):
        return node
    found = {key: resolved(value, workspace) for key, value in node.items()}
    if "checkpoint" in node:
        found["checkpoint"] = str(workspace.resolve(node["checkpoint"]).path)
    return found


def device_of(recipe: Recipe) -> torch.device:
    """The device of this process."""
    if recipe.trainer.accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        return torch.device("cuda", distributed.rank() % torch.cuda.device_count())
    return torch.device("cpu")
