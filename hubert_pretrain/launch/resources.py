"""Resources of each stage's SLURM job, as options of sbatch, checked before anything is queued."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from hubert_pretrain.config import validate
from hubert_pretrain.config.schema import Recipe, ResourcesConfig
from hubert_pretrain.errors import ConfigError, did_you_mean
from hubert_pretrain.pipeline import plan
from hubert_pretrain.pipeline.plan import SHARED, VERBS, Stage

TRAINS = ("pretrain", "spin", "finetune")
"""Verbs that use the devices and nodes of the trainer."""


@dataclass(frozen=True)
class Resources:
    """Resources of one job, defaults filled in."""

    request: ResourcesConfig
    nodes: int
    tasks: int
    """Processes per node."""
    gpus: int
    """Per process."""
    array: int
    """Elements; 0: no array."""

    @property
    def processes(self) -> int:
        """All processes of the job."""
        return self.nodes * self.tasks


def resources_of(recipe: Recipe, stage: Stage) -> Resources:
    """`launch.resources`, then the values of the stage's verb and of its name; the rest by
    default."""
    request = dataclasses.replace(recipe.launch.resources)
    for key in (stage.verb, stage.name):
        if own := recipe.launch.stages.get(key):
            request = _merged(request, own)
    hardware = recipe.trainer
    trains = stage.verb in TRAINS
    on_gpu = stage.verb in SHARED and hardware.accelerator in ("gpu", "cuda")
    return Resources(
        request,
        nodes=_first(request.nodes, hardware.num_nodes if trains else 1),
        tasks=_first(request.tasks, hardware.devices if trains else 1),
        gpus=_first(request.gpus, int(on_gpu)),
        array=_first(request.array, 0),
    )


def _merged(request: ResourcesConfig, own: ResourcesConfig) -> ResourcesConfig:
    """`request` with the values that `own` gives."""
    given = {
        each.name: getattr(own, each.name)
        for each in dataclasses.fields(own)
        if getattr(own, each.name) is not None
    }
    given["options"] = request.options | own.options
    return dataclasses.replace(request, **given)


def _first(value: int | None, default: int) -> int:
    return default if value is None else value


def sbatch_options(recipe: Recipe, stage: Stage) -> dict[str, Any]:
    """Options of sbatch for the job of a stage; None where the cluster's default counts."""
    found = resources_of(recipe, stage)
    request = found.request
    options: dict[str, Any] = {
        "job-name": f"{recipe.name}:{stage.name}",
        "nodes": found.nodes,
        "ntasks-per-node": found.tasks,
        "cpus-per-task": request.cpus,
        "gpus-per-node": found.gpus * found.tasks or None,
        "mem": f"{round(request.memory_gb * 1024)}M" if request.memory_gb else None,
        "time": request.time_minutes,
        "partition": request.partition,
        "account": request.account,
        "qos": request.qos,
        "constraint": request.constraint,
        "open-mode": "append",
        "requeue": True,
        "kill-on-invalid-dep": "yes",
        "signal": f"USR2@{recipe.launch.signal_seconds}",
    }
    if found.array:
        options["array"] = f"0-{found.array - 1}"
    return options | request.options


def check(recipe: Recipe, stages: list[Stage]) -> None:
    """Raises ConfigError for jobs that cannot be: of unknown stages, or of processes that cannot
    share the work of their stage."""
    known = [*VERBS, *[stage.name for stage in plan.stages(recipe)]]
    for key in recipe.launch.stages:
        if key not in known:
            raise ConfigError(
                f"launch.stages.{key}: no such stage{did_you_mean(key, known)}; "
                f"expected one of {', '.join(known)}"
            )
    for stage in stages:
        _check_stage(recipe, stage)


def _check_stage(recipe: Recipe, stage: Stage) -> None:
    found = resources_of(recipe, stage)
    if found.nodes < 1 or found.tasks < 1:
        raise ConfigError(
            f"launch: {stage.name} would have {found.nodes} nodes of {found.tasks} tasks; "
            "expected 1 or more of each"
        )
    if found.processes > 1 and stage.verb not in SHARED:
        raise ConfigError(
            f"launch: {stage.name} is one process, which starts its own; set its nodes and tasks "
            "to 1 and give it more cpus"
        )
    if found.array and (stage.verb != "label" or found.processes > 1):
        raise ConfigError(
            f"launch: {stage.name} has array={found.array}; only label can be an array, with "
            "nodes=1 and tasks=1"
        )
    if stage.verb == "cluster" and found.processes > 1:
        iteration, _, _ = stage.name.partition("/")
        if recipe.iterations[iteration].clustering.engine == "minibatch":
            raise ConfigError(
                f"launch: {stage.name} would be {found.processes} processes, but engine=minibatch "
                "works in one; use engine=torch"
            )
    if stage.verb in TRAINS:
        validate.check_shares(recipe, stage.name, found.processes)
