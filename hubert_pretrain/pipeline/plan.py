"""Recipe -> ordered stages with their inputs; list them, run one.

HuBERT's loop closes over artefacts: iteration 2 is the same three stages as iteration 1, with a
checkpoint named in its features.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from hubert_pretrain.config.schema import IterationConfig, Recipe
from hubert_pretrain.errors import ArtefactError, ConfigError, did_you_mean
from hubert_pretrain.pipeline.workspace import Workspace, differing_fields

VERBS = ("prepare", "cluster", "label", "pretrain", "finetune", "export")
"""In the order in which they run; `stages/<verb>.py` does the work of each."""
SHARED = ("cluster", "label", "pretrain", "finetune")
"""Verbs whose work several processes share; the others are one process."""

_NOT_SCIENCE = {
    *("workers", "max_bad_fraction", "download", "mirror", "cache_dir", "cache_gigabytes"),
    *("log_every_steps", "valid_every_steps", "checkpoint_every_steps", "probe"),
}
"""Fields that change how or how often something is done, not what comes out: left out of
fingerprints.
"""


@dataclass(frozen=True)
class Stage:
    """One step of the pipeline: what it reads, and the part of the recipe that determines what it
    writes.
    """

    name: str
    verb: str
    inputs: tuple[
        str, ...
    ] = ()  # stages of this run, or folders of stages that other runs finished
    sections: dict[str, Any] = field(default_factory=dict)  # of the recipe

    @property
    def config(self) -> dict[str, Any]:
        """Every value that determines the result, for people to read."""
        return {name: _science(section) for name, section in self.sections.items()}

    @property
    def identity(self) -> dict[str, Any]:
        """The same without values at their default. Fingerprints are made of this, so that a run
        goes on under a later version of this package that has more fields. (Hence: the default of a
        field in `config.py` never changes its meaning.)"""
        return {
            name: _science(section, with_defaults=False) for name, section in self.sections.items()
        }


def stages(recipe: Recipe) -> list[Stage]:
    """All stages of a recipe in the order in which they run."""
    found = [Stage("prepare", "prepare", (), {"data": recipe.data, "seed": recipe.seed})]
    for name, iteration in recipe.iterations.items():
        found += _targets_of(name, iteration, recipe.seed)
        pretraining = {"model": recipe.model, "pretrain": iteration.pretrain, "seed": recipe.seed}
        begun = (iteration.pretrain.start_from,) if iteration.pretrain.start_from else ()
        found.append(
            Stage(f"{name}/pretrain", "pretrain", ("prepare", f"{name}/label", *begun), pretraining)
        )
    for name, task in recipe.finetune.items():
        found.append(
            Stage(
                f"finetune/{name}",
                "finetune",
                ("prepare", task.checkpoint),
                {"finetune": task, "seed": recipe.seed},
            )
        )
    if recipe.export.checkpoints:
        found.append(
            Stage("export", "export", tuple(recipe.export.checkpoints), {"export": recipe.export})
        )
    _check_references(found)
    return found


def _targets_of(name: str, iteration: IterationConfig, seed: int) -> list[Stage]:
    """The stages that make the targets of an iteration: clustering and labelling, or only bringing
    in those of others.
    """
    if iteration.targets:
        return [
            Stage(
                f"{name}/label",
                "label",
                ("prepare", iteration.targets),
                {"targets": iteration.targets},
            )
        ]
    clustering = {"features": iteration.features, "clustering": iteration.clustering, "seed": seed}
    if iteration.features.get("layer") == "auto":
        clustering["layer_choice"] = iteration.layer_choice
    return [
        Stage(
            f"{name}/cluster", "cluster", ("prepare", *_checkpoints(iteration.features)), clustering
        ),
        Stage(
            f"{name}/label",
            "label",
            ("prepare", f"{name}/cluster"),
            {"features": iteration.features},
        ),
    ]


def _checkpoints(node: Any) -> list[str]:
    """What features are made with: every `checkpoint` of a node, at any depth."""
    if isinstance(node, dict):
        own = [str(node["checkpoint"])] if node.get("checkpoint") else []
        node = [value for key, value in node.items() if key != "checkpoint"]
    else:
        own = []
    found = own + [
        name for value in node if isinstance(value, (dict, list)) for name in _checkpoints(value)
    ]
    return list(dict.fromkeys(found))


def find(recipe: Recipe, name: str) -> Stage:
    """The stage of that name. Raises ConfigError naming the nearest one."""
    names = {stage.name: stage for stage in stages(recipe)}
    if name not in names:
        raise ConfigError(
            f"stage={name}: no such stage{did_you_mean(name, list(names))}; the stages are all, list, check, {', '.join(names)}"
        )
    return names[name]


def state(stage: Stage, workspace: Workspace) -> str:
    """`done`, `changed` (done, but by another configuration), `interrupted` or `pending`."""
    if workspace.is_done(stage.name):
        fingerprint = fingerprint_of(stage, workspace)
        return (
            "done"
            if fingerprint in (None, workspace.artefact(stage.name).fingerprint)
            else "changed"
        )
    return "interrupted" if workspace.partial_folder(stage.name).exists() else "pending"


def fingerprint_of(stage: Stage, workspace: Workspace) -> str | None:
    """Hash of the stage's configuration and of the fingerprints of its inputs; None while an input
    is missing.
    """
    try:
        inputs = {name: workspace.resolve(name).fingerprint for name in stage.inputs}
    except ArtefactError:
        return None
    text = json.dumps(
        {"stage": stage.verb, "config": stage.identity, "inputs": inputs}, sort_keys=True
    )
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def check_unchanged(stage: Stage, workspace: Workspace) -> None:
    """Raises ArtefactError, naming what differs, when a finished stage was made by another
    configuration.
    """
    if state(stage, workspace) != "changed":
        return
    made = workspace.artefact(stage.name)
    inputs = {name: workspace.resolve(name).fingerprint for name in stage.inputs}
    found = differing_fields(
        {**made.meta["config"], "inputs": made.meta["inputs"]}, {**stage.config, "inputs": inputs}
    )
    raise ArtefactError(
        f"{made.path}: made with another configuration ({'; '.join(found)}). Restore those values, choose another work_dir, "
        f"or delete {made.path} and what was made from it"
    )


def _science(section: Any, with_defaults: bool = True) -> Any:
    """A part of the recipe as plain containers, without the fields that do not change the
    result.
    """
    if dataclasses.is_dataclass(section):
        defaults = {
            each.name: each.default_factory() if callable(each.default_factory) else each.default
            for each in fields(section)
        }
        section = {
            name: getattr(section, name)
            for name in defaults
            if with_defaults or getattr(section, name) != defaults[name]
        }
    if isinstance(section, dict):
        return {
            key: _science(value, with_defaults)
            for key, value in section.items()
            if key not in _NOT_SCIENCE
        }
    return section


def _check_references(found: list[Stage]) -> None:
    """Every input is an earlier stage, or a path to a folder outside."""
    names = [stage.name for stage in found]
    for index, stage in enumerate(found):
        for name in stage.inputs:
            if name in names[index:]:
                raise ConfigError(
                    f"{stage.name} reads {name!r}, which runs after it; name one of {', '.join(names[:index])}"
                )
            if name not in names and not Path(name).expanduser().exists():
                raise ConfigError(
                    f"{stage.name} reads {name!r}, which is neither an earlier stage{did_you_mean(name, names[:index])} nor an existing folder"
                )
