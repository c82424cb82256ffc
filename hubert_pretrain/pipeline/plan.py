"""A run: recipe -> ordered stages with their inputs, fingerprints and states.

HuBERT's loop closes over artefacts: iteration 2 is the same three stages as iteration 1, with a
checkpoint named in its features. That may also be a task or a speaker-invariant stage of the
recipe: it is trained first then.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hubert_pretrain.config.schema import (
    EvaluateConfig,
    FinetuneConfig,
    IterationConfig,
    Recipe,
    SpinConfig,
)
from hubert_pretrain.decoding.config import DecodingConfig
from hubert_pretrain.errors import ArtefactError, ConfigError, did_you_mean
from hubert_pretrain.pipeline import fingerprint
from hubert_pretrain.pipeline.workspace import Artefact, Workspace, flatten

VERBS = ("prepare", "cluster", "label", "pretrain", "spin", "finetune", "evaluate", "export")
"""In the order in which they run; `stages/<verb>.py` does the work of each."""
SHARED = ("cluster", "label", "pretrain", "spin", "finetune", "evaluate")
"""Verbs whose work several processes share; the others are one process."""

READERS = ("list", "check", "plan", "report")
"""Values of `stage` that run no stage."""
REQUESTS = ("all", *READERS)
"""Values of `stage` that name no stage."""

DONE = "done"
CHANGED = "changed"
"""Done, but by another configuration."""
STALE = "stale"
"""Done, but from an input that was made again since, or that is out of date itself."""
OUTDATED = "outdated"
"""Done by an older version of this package."""
INTERRUPTED = "interrupted"
PENDING = "pending"
LONGER = "longer"
"""A training that is done, and whose `steps` were raised since: it goes on from its checkpoint."""
TRAININGS = ("pretrain", "spin", "finetune")
"""Verbs whose stage has `steps`."""
WITH_NAMES = ("spin", "finetune")
"""Trainings with a name and a checkpoint, in no iteration: one goes before what reads it."""
OUT_OF_DATE = (CHANGED, STALE, OUTDATED)
"""States of finished stages that `redo=true` makes again."""


@dataclass(frozen=True)
class Stage:
    """One step of the pipeline: its inputs, and the part of the recipe that determines its
    output."""

    name: str
    verb: str
    inputs: tuple[str, ...] = ()
    """Stages of this run, or absolute paths of artefacts and checkpoints made elsewhere."""
    sections: dict[str, Any] = field(default_factory=dict)
    """Parts of the recipe, by name."""
    run_stages: frozenset[str] = field(default=frozenset(), repr=False)
    """Names of all stages of the run: where they stand for an artefact, they are no paths."""
    sources: tuple[Stage, ...] = field(default=(), repr=False)
    """The inputs that are stages of this run."""

    @property
    def config(self) -> dict[str, Any]:
        """Every value that determines the result, for people to read."""
        return {
            name: fingerprint.values_of(section, self.run_stages)
            for name, section in self.sections.items()
        }

    @property
    def identity(self) -> dict[str, Any]:
        """The same in the canonical form that fingerprints are made of: without the places of
        files. Of an input the number counts (its content is in its own fingerprint), of other files
        their names and sizes. The corpus is compared when it is read (stages/listing.py).
        """
        return {
            name: fingerprint.canonical(section, self._place)
            for name, section in self.sections.items()
        }

    def _place(self, path: str) -> str:
        if path in self.run_stages or path in fingerprint.WORDS:
            return path
        path = fingerprint.absolute(path)
        if path in self.inputs:
            return f"input {self.inputs.index(path)}"
        return "" if self.verb == "prepare" else fingerprint.content_of(path)


# -- recipe -> stages


def stages(recipe: Recipe) -> list[Stage]:
    """All stages of a recipe in the order in which they run."""
    found = []
    if recipe.iterations or recipe.spin or recipe.finetune or recipe.evaluate:
        found.append(Stage("prepare", "prepare", (), {"data": recipe.data}))
    trained = [_spin_of(name, config, recipe.seed) for name, config in recipe.spin.items()]
    trained += [_finetuning_of(name, task, recipe) for name, task in recipe.finetune.items()]
    for name, iteration in recipe.iterations.items():
        of_iteration = _targets_of(name, iteration, recipe.seed)
        of_iteration.append(_pretraining_of(name, recipe))
        found += _teachers(of_iteration, trained, found)
        found += of_iteration
    for stage in trained:
        if stage not in found:
            found += [*_teachers([stage], trained, found), stage]
    for name, evaluation in evaluations(recipe).items():
        found += [
            Stage(
                f"evaluate/{name}/{split}",
                "evaluate",
                ("prepare", str(evaluation.checkpoint)),
                {"evaluate": evaluation, "seed": recipe.seed},
            )
            for split in evaluation.splits
        ]
    if recipe.export.checkpoints:
        inputs = tuple(recipe.export.checkpoints)
        found.append(Stage("export", "export", inputs, {"export": recipe.export}))
    _check_references(found)
    return _with_names(found)


def _teachers(
    readers: Sequence[Stage], trained: Sequence[Stage], before: Sequence[Stage]
) -> list[Stage]:
    """Those of `trained` (tasks, speaker-invariant stages) that these stages read, directly or
    through others, and that do not stand `before` them: they are trained first. Raises ConfigError
    for a circle.
    """
    by_name = {stage.name: stage for stage in trained}
    later = {stage.name for stage in readers}
    found: list[Stage] = []

    def add(name: str, path: tuple[str, ...]) -> None:
        if name in later or name in path:
            circle = " reads ".join([*path, name])
            raise ConfigError(f"{circle}: a circle; let one of them read an earlier stage")
        task = by_name.get(name)
        if task is None or task in before or task in found:
            return
        for source in task.inputs:
            add(source, (*path, name))
        found.append(task)

    for reader in readers:
        for source in reader.inputs:
            if source in by_name:
                add(source, (reader.name,))
    return found


def evaluations(recipe: Recipe) -> dict[str, EvaluateConfig]:
    """The evaluation of each task, then the others, with their checkpoint, task and list of
    splits.
    """
    found = {}
    for name in {**recipe.finetune, **recipe.evaluate}:
        config = recipe.evaluate.get(name) or EvaluateConfig()
        trained = recipe.finetune.get(name)
        splits = config.splits or (trained.test_split if trained else "test")
        found[name] = dataclasses.replace(
            config,
            checkpoint=config.checkpoint or f"finetune/{name}",
            splits=[splits] if isinstance(splits, str) else list(splits),
            decoding=_decoding(config, trained),
        )
    return found


def _decoding(config: EvaluateConfig, trained: FinetuneConfig | None) -> DecodingConfig:
    """That of the task, unless the evaluation has settings of its own."""
    if trained is None or config.decoding != DecodingConfig():
        return config.decoding
    return trained.decoding


def _targets_of(name: str, iteration: IterationConfig, seed: int) -> list[Stage]:
    """The stages that make the targets of an iteration: cluster and label, or only label where the
    codebook or the targets come from elsewhere."""
    if iteration.targets:
        inputs = ("prepare", iteration.targets)
        return [Stage(f"{name}/label", "label", inputs, {"targets": iteration.targets})]
    clustering = {"features": iteration.features, "clustering": iteration.clustering, "seed": seed}
    if iteration.features.get("layer") == "auto":
        clustering["layer_choice"] = iteration.layer_choice
    checkpoints = _checkpoints(iteration.features)
    labelling: dict[str, Any] = {"features": iteration.features}
    if iteration.switch_penalty > 0:
        labelling["switch_penalty"] = iteration.switch_penalty
    if iteration.codebook:
        labelling["codebook"] = iteration.codebook
        sources = ("prepare", *checkpoints, iteration.codebook)
        return [Stage(f"{name}/label", "label", sources, labelling)]
    return [
        Stage(f"{name}/cluster", "cluster", ("prepare", *checkpoints), clustering),
        Stage(f"{name}/label", "label", ("prepare", f"{name}/cluster"), labelling),
    ]


def _pretraining_of(name: str, recipe: Recipe) -> Stage:
    config = recipe.iterations[name].pretrain
    inputs = ["prepare", f"{name}/label"]
    if config.start_from:
        inputs.append(config.start_from)
    sections = {"model": recipe.model, "pretrain": config, "seed": recipe.seed}
    return Stage(f"{name}/pretrain", "pretrain", tuple(inputs), sections)


def _spin_of(name: str, config: SpinConfig, seed: int) -> Stage:
    inputs = ("prepare", config.checkpoint)
    return Stage(f"spin/{name}", "spin", inputs, {"spin": config, "seed": seed})


def _finetuning_of(name: str, config: FinetuneConfig, recipe: Recipe) -> Stage:
    """A task; one that starts from random weights reads the recipe's model, not a checkpoint."""
    sections: dict[str, Any] = {"finetune": config, "seed": recipe.seed}
    if config.checkpoint is None:
        sections["model"] = recipe.model
    start = () if config.checkpoint is None else (config.checkpoint,)
    return Stage(f"finetune/{name}", "finetune", ("prepare", *start), sections)


def _checkpoints(node: Any) -> list[str]:
    """Every `checkpoint` of a node of features, at any depth, each once."""
    if isinstance(node, dict):
        own = [str(node["checkpoint"])] if node.get("checkpoint") else []
        inner = [value for key, value in node.items() if key != "checkpoint"]
    else:
        own = []
        inner = node if isinstance(node, list) else []
    for value in inner:
        own += _checkpoints(value)
    return list(dict.fromkeys(own))


def _check_references(found: list[Stage]) -> None:
    """Every input is an earlier stage, or a path to something outside."""
    names = [stage.name for stage in found]
    for index, stage in enumerate(found):
        for name in stage.inputs:
            if name in names[index:]:
                raise ConfigError(
                    f"{stage.name} reads {name!r}, which runs after it; "
                    f"name one of {', '.join(names[:index])}"
                )
            if name not in names and not Path(name).expanduser().exists():
                # Those too that go before an iteration that reads them.
                others = [each.name for each in found[index + 1 :] if each.verb in WITH_NAMES]
                key = stage.name.replace("/", ".") if stage.verb in WITH_NAMES else ""
                fix = f"; set {key}.checkpoint to one of them" if key else ""
                fix += ", or to null" if stage.verb == "finetune" else ""
                raise ConfigError(
                    f"{stage.name} reads {name!r}, which is neither an earlier stage"
                    f"{did_you_mean(name, [*names[:index], *others])} nor an existing folder{fix}"
                )


def _with_names(found: list[Stage]) -> list[Stage]:
    """The stages, knowing each other, with one spelling for each path of their inputs."""
    names = frozenset(stage.name for stage in found)
    complete: dict[str, Stage] = {}
    for stage in found:
        inputs = tuple(fingerprint.absolute(name, names) for name in stage.inputs)
        sources = tuple(complete[name] for name in inputs if name in names)
        complete[stage.name] = dataclasses.replace(
            stage, inputs=inputs, run_stages=names, sources=sources
        )
    return list(complete.values())


def with_followers(first: Sequence[Stage], all_stages: Sequence[Stage]) -> list[Stage]:
    """Some stages and every stage that reads one of them, directly or through others, in order."""
    names = {stage.name for stage in first}
    for stage in all_stages:
        if names & set(stage.inputs):
            names.add(stage.name)
    return [stage for stage in all_stages if stage.name in names]


def find(recipe: Recipe, name: str) -> Stage:
    """The stage of that name. Raises ConfigError naming the nearest one."""
    found = matching(recipe, name)
    if [stage.name for stage in found] != [name]:
        raise ConfigError(f"{name}: names several stages; expected one of them")
    return found[0]


def matching(recipe: Recipe, name: str, *, key: str = "stage") -> list[Stage]:
    """The stage of that name, or all stages below it, e.g. of it1, finetune or evaluate/asr. Raises
    ConfigError naming the `key` and the nearest one."""
    names = {stage.name: stage for stage in stages(recipe)}
    if name in names:
        return [names[name]]
    below = [stage for stage in names.values() if stage.name.startswith(f"{name}/")]
    if not below:
        known = [*(REQUESTS if key == "stage" else ()), *names]
        raise ConfigError(
            f"{key}={name}: no such stage{did_you_mean(name, known)}; "
            f"the stages are {', '.join(known)}"
        )
    return below


# -- states


def state(stage: Stage, workspace: Workspace) -> str:
    """DONE, LONGER, CHANGED, STALE, OUTDATED, INTERRUPTED or PENDING."""
    if not workspace.is_done(stage.name):
        begun = workspace.partial_folder(stage.name).exists()
        return INTERRUPTED if begun else PENDING
    try:
        made = workspace.artefact(stage.name)
    except ArtefactError:
        return OUTDATED
    is_longer = raised_steps(stage, made) is not None
    if not is_longer and _changes(stage, made):
        return CHANGED
    if any(state(source, workspace) in (*OUT_OF_DATE, LONGER) for source in stage.sources):
        return STALE
    if _other_inputs(stage, workspace, made):
        return STALE
    return LONGER if is_longer else DONE


def is_complete(stage: Stage, workspace: Workspace) -> bool:
    """True when a stage has finished and is not to be trained further."""
    return workspace.is_done(stage.name) and state(stage, workspace) != LONGER


def raised_steps(stage: Stage, made: Artefact) -> tuple[int, int] | None:
    """The steps of a finished training and those of its recipe, where they are more, nothing else
    has changed, and there is a checkpoint to go on from. None for any other stage.
    """
    if stage.verb not in TRAININGS:
        return None
    config = stage.sections[stage.verb]
    before = made.meta.get("config", {}).get(stage.verb, {}).get("steps")
    if before is None or before >= config.steps:
        return None
    is_same = made.meta.get("identity") == fingerprint.digest(_with_steps(stage, before).identity)
    has_checkpoint = any((made.path / "checkpoints").glob("step=*.ckpt"))
    return (before, config.steps) if is_same and has_checkpoint else None


def raised_while_interrupted(stage: Stage, workspace: Workspace) -> tuple[int, int] | None:
    """The steps of an interrupted training and those of its recipe, where they are more and nothing
    else has changed. None for any other stage.
    """
    if stage.verb not in TRAININGS:
        return None
    left = workspace.interrupted(stage.name)
    now = stage.sections[stage.verb].steps
    before = left.get("config", {}).get(stage.verb, {}).get("steps")
    if before is None or before >= now:
        return None
    is_same = left["fingerprint"] == fingerprint_of(_with_steps(stage, before), workspace)
    return (before, now) if is_same else None


def _with_steps(stage: Stage, steps: int) -> Stage:
    """A training with another number of steps."""
    config = dataclasses.replace(stage.sections[stage.verb], steps=steps)
    return dataclasses.replace(stage, sections={**stage.sections, stage.verb: config})


def fingerprint_of(stage: Stage, workspace: Workspace) -> str | None:
    """Hash of the stage's configuration and of the fingerprints of its inputs; None while an input
    is missing."""
    inputs = [_fingerprint_of_input(name, workspace) for name in stage.inputs]
    if None in inputs:
        return None
    return fingerprint.digest({"stage": stage.verb, "config": stage.identity, "inputs": inputs})


def check_unchanged(stage: Stage, workspace: Workspace) -> None:
    """Raises ArtefactError when a finished stage was made by another configuration, with the
    differences, from other inputs, or by an older version."""
    if not workspace.is_done(stage.name):
        return
    made = workspace.artefact(stage.name)
    found = state(stage, workspace)
    fix = f"choose another work_dir, or make it and what follows again: stage=all redo={stage.name}"
    if found == CHANGED:
        raise ArtefactError(
            f"{made.path}: made with another configuration ({'; '.join(_changes(stage, made))}). "
            f"Restore those values, {fix}"
        )
    if found == STALE:
        for source in stage.sources:
            check_unchanged(source, workspace)
            if state(source, workspace) == LONGER:
                raise ArtefactError(
                    f"{made.path}: made from {source.name}, which is to be trained further "
                    f"({_steps(source, workspace)}); choose another work_dir, or make what follows "
                    "it again too: stage=all redo=true"
                )
        inputs = ", ".join(_other_inputs(stage, workspace, made))
        raise ArtefactError(
            f"{made.path}: made from another {inputs} than there is now (stale); {fix}"
        )


def moved(recipe: Recipe, workspace: Workspace) -> dict[str, str]:
    """Folder -> the folder that stands in its place since `prepare` has read the corpus."""
    before = workspace.artefact("prepare").meta.get("places", [])
    return fingerprint.moved(before, fingerprint.places(recipe.data))


def check_sources(stage: Stage, workspace: Workspace) -> None:
    """Raises ArtefactError when a stage that this one reads is not up to date."""
    for source in stage.sources:
        check_unchanged(source, workspace)
        if workspace.is_done(source.name) and state(source, workspace) == LONGER:
            raise ArtefactError(
                f"{source.name} is to be trained further ({_steps(source, workspace)}); do that "
                f"first: stage={source.name}, or stage=all"
            )


def _steps(stage: Stage, workspace: Workspace) -> str:
    """`steps: 100 -> 200`, of a training that is to go on."""
    before, now = raised_steps(stage, workspace.artefact(stage.name)) or (0, 0)
    return f"steps: {before} -> {now}"


def _changes(stage: Stage, made: Artefact) -> list[str]:
    """The values of the configuration that differ from those that made an artefact."""
    if made.meta.get("identity") == fingerprint.digest(stage.identity):
        return []
    before = flatten(made.meta["config"])
    now = flatten(stage.config)
    differing = [key for key, value in now.items() if before.get(key) != value]
    if "identity" not in made.meta:  # of an earlier version, which had fewer fields
        differing = [key for key in differing if key in before]
    elif not differing:
        read = [path for each in stage.sections.values() for path in fingerprint.places(each)]
        files = [path for path in read if path not in stage.inputs and Path(path).exists()]
        return [f"the content of {' or '.join(files)}" if files else "files that it reads"]
    return [f"{key}: {before.get(key)} -> {now[key]}" for key in differing]


def _other_inputs(stage: Stage, workspace: Workspace, made: Artefact) -> list[str]:
    """The inputs that are there, and are not those that an artefact was made from."""
    before = list(made.meta["inputs"].values())
    now = [_fingerprint_of_input(name, workspace) for name in stage.inputs]
    if len(before) != len(now):
        return list(stage.inputs)
    return [
        name
        for name, old, new in zip(stage.inputs, before, now, strict=True)
        if new not in (None, old)
    ]


def _fingerprint_of_input(name: str, workspace: Workspace) -> str | None:
    try:
        return workspace.resolve(name).fingerprint
    except ArtefactError:
        return None
