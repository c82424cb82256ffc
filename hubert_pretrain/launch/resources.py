"""What the job of each stage asks SLURM for, as parameters of submitit, checked before anything is
queued.
"""

from __future__ import annotations

import dataclasses
from dataclasses import fields
from typing import Any

from hubert_pretrain.config import validate
from hubert_pretrain.config.schema import Recipe, ResourcesConfig
from hubert_pretrain.errors import ConfigError, did_you_mean
from hubert_pretrain.pipeline import plan
from hubert_pretrain.pipeline.plan import SHARED, VERBS, Stage

TRAINS = ("pretrain", "finetune")


def resources_of(recipe: Recipe, stage: Stage) -> ResourcesConfig:
    """`launch.resources`, what the stage's verb and its name have of their own, and the defaults
    that depend on the stage.
    """
    launch = recipe.launch
    hardware = recipe.trainer
    merged = dataclasses.replace(launch.resources, options=dict(launch.resources.options))
    for key in (stage.verb, stage.name):
        own = launch.stages.get(key)
        for each in fields(ResourcesConfig) if own else ():
            value = getattr(own, each.name)
            if each.name == "options":
                merged.options |= value
            elif value is not None:
                setattr(merged, each.name, value)
    trains = stage.verb in TRAINS
    defaults = {
        "nodes": hardware.num_nodes if trains else 1,
        "tasks": hardware.devices if trains else 1,
        "gpus": int(stage.verb in SHARED and hardware.accelerator in ("gpu", "cuda")),
        "array": 0,
    }
    for name, value in defaults.items():
        if getattr(merged, name) is None:
            setattr(merged, name, value)
    return merged


def parameters(recipe: Recipe, stage: Stage, dependency: str | None) -> dict[str, Any]:
    """Parameters of submitit's SlurmExecutor for the job of a stage."""
    launch = recipe.launch
    wanted = resources_of(recipe, stage)
    assert wanted.tasks is not None  # resources_of() saw to it
    more: dict[str, Any] = {
        "requeue": True,
        "kill-on-invalid-dep": "yes",
        "signal": f"USR2@{launch.signal_seconds}",
    }
    if wanted.array:
        more |= {"array": f"0-{wanted.array - 1}"}
    return {
        "job_name": f"{recipe.name}:{stage.name}",
        "nodes": wanted.nodes,
        "ntasks_per_node": wanted.tasks,
        "cpus_per_task": wanted.cpus,
        "gpus_per_node": wanted.gpus * wanted.tasks if wanted.gpus else None,
        "mem": f"{round(wanted.memory_gb * 1024)}M" if wanted.memory_gb else None,
        "time": wanted.time_minutes,
        "wckey": None,  # submitit's own would be refused where such keys are checked
        "dependency": dependency,
        "stderr_to_stdout": True,
        "use_srun": False,
        **{name: getattr(wanted, name) for name in ("partition", "account", "qos", "constraint")},
        "additional_parameters": more | wanted.options,
    }


def check(recipe: Recipe, stages: list[Stage]) -> None:
    """Raises ConfigError for what no job can be made of: unknown stages, and processes that cannot
    share the work of one.
    """
    known = [*VERBS, *[stage.name for stage in plan.stages(recipe)]]
    for key in recipe.launch.stages:
        if key not in known:
            raise ConfigError(
                f"launch.stages.{key}: no such stage{did_you_mean(key, known)}; expected one of {', '.join(known)}"
            )
    for stage in stages:
        wanted = resources_of(recipe, stage)
        processes = (wanted.nodes or 0) * (wanted.tasks or 0)
        if processes < 1:
            raise ConfigError(
                f"launch: {stage.name} would have {wanted.nodes} nodes of {wanted.tasks} tasks; expected 1 or more of each"
            )
        if processes > 1 and stage.verb not in SHARED:
            raise ConfigError(
                f"launch: {stage.name} is one process, which starts its own; set its nodes and tasks to 1 and give it more cpus"
            )
        if wanted.array and (stage.verb != "label" or processes > 1):
            raise ConfigError(
                f"launch: {stage.name} has array={wanted.array}; only label can be an array, with nodes=1 and tasks=1"
            )
        if (
            stage.verb == "cluster"
            and processes > 1
            and recipe.iterations[stage.name.split("/")[0]].clustering.engine == "minibatch"
        ):
            raise ConfigError(
                f"launch: {stage.name} would be {processes} processes, but engine=minibatch works in one; use engine=torch"
            )
        if stage.verb in TRAINS:
            validate.check_shares(recipe, stage.name, processes)
