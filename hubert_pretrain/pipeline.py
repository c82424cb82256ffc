"""Recipe -> ordered stages with their inputs; list them, run one.

HuBERT's loop closes over artefacts: iteration 2 is the same three stages as iteration 1, with a checkpoint named in its features.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import importlib.metadata
import json
import os
import platform
import time
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from hubert_pretrain import distributed
from hubert_pretrain.config import IterationConfig, Recipe
from hubert_pretrain.errors import ArtefactError, ConfigError, Preempted, nearest
from hubert_pretrain.workspace import Workspace, differing_fields

PACKAGES = {
    "prepare": "data",
    "cluster": "clustering",
    "label": "targets",
    "pretrain": "pretrain",
    "finetune": "finetune",
    "export": "export",
}
"""The package whose `stage.py` does the work of each verb."""

SHARED = ("cluster", "label", "pretrain", "finetune")
"""Verbs whose work several processes share; the others are one process."""
FOLLOW_SECONDS = 600.0
"""How long the other ranks wait for rank 0 to begin."""

_NOT_SCIENCE = {
    *("workers", "max_bad_fraction", "download", "mirror", "cache_dir", "cache_gigabytes"),
    *("log_every_steps", "valid_every_steps", "checkpoint_every_steps", "probe"),
}
"""Fields that change how or how often something is done, not what comes out: left out of fingerprints."""


@dataclass(frozen=True)
class Stage:
    """One step of the pipeline: what it reads, and the part of the recipe that determines what it writes."""

    name: str
    verb: str
    inputs: tuple[str, ...] = ()  # stages of this run, or folders of stages that other runs finished
    sections: dict[str, Any] = field(default_factory=dict)  # of the recipe

    @property
    def config(self) -> dict[str, Any]:
        """Every value that determines the result, for people to read."""
        return {name: _science(section) for name, section in self.sections.items()}

    @property
    def identity(self) -> dict[str, Any]:
        """The same without values at their default. Fingerprints are made of this, so that a run goes on under a later version of this
        package that has more fields. (Hence: the default of a field in `config.py` never changes its meaning.)"""
        return {name: _science(section, with_defaults=False) for name, section in self.sections.items()}

    def run(self, recipe: Recipe, workspace: Workspace, folder: Path) -> dict[str, Any]:
        """Calls the stage's own code. Returns the facts it measured."""
        if self.verb in SHARED:
            from hubert_pretrain.model.kernels import choose_kernels

            choose_kernels(tf32=recipe.trainer.tf32)
        module = importlib.import_module(f"hubert_pretrain.{PACKAGES[self.verb]}.stage")
        return dict(module.run(recipe, workspace, self.name, folder))


def stages(recipe: Recipe) -> list[Stage]:
    """All stages of a recipe in the order in which they run."""
    found = [Stage("prepare", "prepare", (), {"data": recipe.data, "seed": recipe.seed})]
    for name, iteration in recipe.iterations.items():
        found += _targets_of(name, iteration, recipe.seed)
        pretraining = {"model": recipe.model, "pretrain": iteration.pretrain, "seed": recipe.seed}
        begun = (iteration.pretrain.start_from,) if iteration.pretrain.start_from else ()
        found.append(Stage(f"{name}/pretrain", "pretrain", ("prepare", f"{name}/label", *begun), pretraining))
    for name, task in recipe.finetune.items():
        found.append(Stage(f"finetune/{name}", "finetune", ("prepare", task.checkpoint), {"finetune": task, "seed": recipe.seed}))
    if recipe.export.checkpoints:
        found.append(Stage("export", "export", tuple(recipe.export.checkpoints), {"export": recipe.export}))
    _check_references(found)
    return found


def _targets_of(name: str, iteration: IterationConfig, seed: int) -> list[Stage]:
    """The stages that make the targets of an iteration: clustering and labelling, or only bringing in those of others."""
    if iteration.targets:
        return [Stage(f"{name}/label", "label", ("prepare", iteration.targets), {"targets": iteration.targets})]
    clustering = {"features": iteration.features, "clustering": iteration.clustering, "seed": seed}
    if iteration.features.get("layer") == "auto":
        clustering["layer_choice"] = iteration.layer_choice
    return [
        Stage(f"{name}/cluster", "cluster", ("prepare", *_checkpoints(iteration.features)), clustering),
        Stage(f"{name}/label", "label", ("prepare", f"{name}/cluster"), {"features": iteration.features}),
    ]


def _checkpoints(node: Any) -> list[str]:
    """What features are made with: every `checkpoint` of a node, at any depth."""
    if isinstance(node, dict):
        own = [str(node["checkpoint"])] if node.get("checkpoint") else []
        node = [value for key, value in node.items() if key != "checkpoint"]
    else:
        own = []
    found = own + [name for value in node if isinstance(value, (dict, list)) for name in _checkpoints(value)]
    return list(dict.fromkeys(found))


def find(recipe: Recipe, name: str) -> Stage:
    """The stage of that name. Raises ConfigError naming the nearest one."""
    names = {stage.name: stage for stage in stages(recipe)}
    if name not in names:
        raise ConfigError(f"stage={name}: no such stage{nearest(name, list(names))}; the stages are all, list, check, {', '.join(names)}")
    return names[name]


def state(stage: Stage, workspace: Workspace) -> str:
    """`done`, `changed` (done, but by another configuration), `interrupted` or `pending`."""
    if workspace.is_done(stage.name):
        fingerprint = fingerprint_of(stage, workspace)
        return "done" if fingerprint in (None, workspace.artefact(stage.name).fingerprint) else "changed"
    return "interrupted" if workspace.partial_folder(stage.name).exists() else "pending"


def fingerprint_of(stage: Stage, workspace: Workspace) -> str | None:
    """Hash of the stage's configuration and of the fingerprints of its inputs; None while an input is missing."""
    try:
        inputs = {name: workspace.resolve(name).fingerprint for name in stage.inputs}
    except ArtefactError:
        return None
    text = json.dumps({"stage": stage.verb, "config": stage.identity, "inputs": inputs}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def check_unchanged(stage: Stage, workspace: Workspace) -> None:
    """Raises ArtefactError, naming what differs, when a finished stage was made by another configuration."""
    if state(stage, workspace) != "changed":
        return
    made = workspace.artefact(stage.name)
    inputs = {name: workspace.resolve(name).fingerprint for name in stage.inputs}
    found = differing_fields({**made.meta["config"], "inputs": made.meta["inputs"]}, {**stage.config, "inputs": inputs})
    raise ArtefactError(
        f"{made.path}: made with another configuration ({'; '.join(found)}). Restore those values, choose another work_dir, "
        f"or delete {made.path} and what was made from it"
    )


def check(recipe: Recipe, workspace: Workspace) -> None:
    """`stage=check`: everything that can be known before anything expensive runs. Raises HubertPretrainError for what cannot work."""
    _doctor().run(recipe, workspace)


def _doctor() -> Any:
    return importlib.import_module("hubert_pretrain.doctor.stage")


def run_stage(recipe: Recipe, workspace: Workspace, stage: Stage) -> None:
    """Runs one stage in this process, unless it is done. Only rank 0 touches the workspace's bookkeeping."""
    for name in stage.inputs:
        workspace.resolve(name)
    check_unchanged(stage, workspace)
    if workspace.is_done(stage.name):
        return
    if distributed.rank() > 0:
        _follow(recipe, workspace, stage)
        return
    _doctor().before(recipe, workspace, stage)
    fingerprint = fingerprint_of(stage, workspace)
    assert fingerprint is not None  # every input was resolved above
    with workspace.lock(stage.name):
        folder = workspace.begin(stage.name, fingerprint, stage.config)
        started = time.time()
        facts = stage.run(recipe, workspace, folder)
        workspace.finish(
            stage.name,
            {
                "stage": stage.name,
                "fingerprint": fingerprint,
                "config": stage.config,
                "inputs": {name: workspace.resolve(name).fingerprint for name in stage.inputs},
                "facts": facts,
                "seconds": round(time.time() - started, 1),
                "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
                "versions": _versions(),
                "sha256": _hashes(folder),
            },
        )


def _follow(recipe: Recipe, workspace: Workspace, stage: Stage) -> None:
    """What the other ranks do: wait until rank 0 holds the stage and has opened its folder, then work in there with it.

    Stages that one process does are none of their business.
    """
    if stage.verb not in SHARED:
        return
    fingerprint = fingerprint_of(stage, workspace)
    assert fingerprint is not None  # every input was resolved by run_stage
    deadline = time.monotonic() + FOLLOW_SECONDS
    while not workspace.has_begun(stage.name, fingerprint):
        if workspace.is_done(stage.name):
            return
        if time.monotonic() > deadline:
            message = f"{stage.name}: rank 0 has not begun after {FOLLOW_SECONDS:g} seconds"
            if "SLURM_ARRAY_TASK_ID" in os.environ:  # it may still be waiting for a node
                raise Preempted(f"{message}; trying again later")
            raise ArtefactError(f"{message}; see what it says, and that all ranks have the same work_dir")
        time.sleep(0.1)
    stage.run(recipe, workspace, workspace.partial_folder(stage.name))


def _science(section: Any, with_defaults: bool = True) -> Any:
    """A part of the recipe as plain containers, without the fields that do not change the result."""
    if dataclasses.is_dataclass(section):
        defaults = {each.name: each.default_factory() if callable(each.default_factory) else each.default for each in fields(section)}
        section = {name: getattr(section, name) for name in defaults if with_defaults or getattr(section, name) != defaults[name]}
    if isinstance(section, dict):
        return {key: _science(value, with_defaults) for key, value in section.items() if key not in _NOT_SCIENCE}
    return section


def _check_references(found: list[Stage]) -> None:
    """Every input is an earlier stage, or a path to a folder outside."""
    names = [stage.name for stage in found]
    for index, stage in enumerate(found):
        for name in stage.inputs:
            if name in names[index:]:
                raise ConfigError(f"{stage.name} reads {name!r}, which runs after it; name one of {', '.join(names[:index])}")
            if name not in names and not Path(name).expanduser().exists():
                raise ConfigError(
                    f"{stage.name} reads {name!r}, which is neither an earlier stage{nearest(name, names[:index])} nor an existing folder"
                )


def _versions() -> dict[str, str]:
    packages = ["hubert-pretrain", "torch", "lightning", "numpy", "scikit-learn", "transformers"]
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in packages}


def _hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of the files that lie directly in an artefact."""
    hashes = {}
    for path in sorted(folder.iterdir()):
        if path.is_file() and path.name != "partial.json":
            digest = hashlib.sha256()
            with open(path, "rb") as file:
                while chunk := file.read(1 << 22):
                    digest.update(chunk)
            hashes[path.name] = digest.hexdigest()
    return hashes
