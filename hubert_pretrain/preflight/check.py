"""`stage=check`: what can be known before anything expensive runs, and the part of it that every
stage asks when it starts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from hubert_pretrain.config import compose
from hubert_pretrain.config.schema import Recipe
from hubert_pretrain.data.corpus import Corpus
from hubert_pretrain.data.storage import Cache
from hubert_pretrain.errors import HubertPretrainError
from hubert_pretrain.files import write_json
from hubert_pretrain.pipeline import plan
from hubert_pretrain.pipeline.plan import Stage
from hubert_pretrain.pipeline.workspace import Workspace
from hubert_pretrain.preflight import budget, machine, report, training_cost
from hubert_pretrain.preflight.report import ERROR, WARNING, CheckResult, skipped

PLAN = "batch_seconds", "micro_batch_seconds", "max_crop_seconds", "min_seconds", "max_shapes"
SPLITS = ("train_split", "valid_split", "test_split")


def run(recipe: Recipe, workspace: Workspace) -> None:
    """Prints one table and writes check.json. Raises HubertPretrainError when a row of it is an
    error.
    """
    stages = plan.stages(recipe)
    rows = [
        machine.locks(workspace, [stage.name for stage in stages]),
        *_machine(recipe, workspace, stages),
    ]
    rows += [*_checkpoints(recipe, workspace), *_artefacts(recipe, workspace)]
    report.show(rows, f"{recipe.name} in {workspace.root}")
    write_json(workspace.check_path, {"recipe": recipe.name, **report.as_json(rows)})
    if failed := ", ".join(row.name for row in rows if row.state == ERROR):
        raise HubertPretrainError(
            f"the check found errors in {failed}; the table says how to mend them"
        )


def check_machine(recipe: Recipe, workspace: Workspace, stage: Stage) -> None:
    """The rows about the machine, for one stage that is about to run: a line for each that is not
    well; an error ends the stage here.
    """
    for row in _machine(recipe, workspace, [stage]):
        if row.state == ERROR:
            raise HubertPretrainError(report.line(row))
        if row.state == WARNING:
            print(report.line(row), flush=True)


def _machine(
    recipe: Recipe, workspace: Workspace, stages: Sequence[Stage]
) -> Iterator[CheckResult]:
    pending = [stage for stage in stages if not workspace.is_done(stage.name)]
    verbs = {stage.verb for stage in pending}
    hardware = recipe.trainer
    audio = budget.audio_of(workspace)
    works = [
        budget.work_of(stage.name, stage.verb, recipe.model, workspace, stage.sections)
        for stage in pending
    ]
    features = [iteration.features for iteration in recipe.iterations.values()]
    loggers = list((recipe.logger or {}).values())
    nodes = {
        "prepare": [recipe.data.corpus],
        "cluster": features,
        "label": features,
        "pretrain": loggers,
        "finetune": loggers,
    }
    more = [
        f"launch.kind={recipe.launch.kind}",
        *([f"export.format={recipe.export.format}"] if "export" in verbs else []),
    ]
    yield from (
        machine.work_dir(workspace.root),
        machine.packages([*budget.targets(nodes, verbs), *more]),
    )
    yield machine.disk(budget.disk(works, audio), workspace.root, audio.unknown)
    if verbs <= {"prepare", "export"}:
        return  # they compute little, and to ask more would load torch
    yield machine.device(
        accelerator=hardware.accelerator, devices=hardware.devices, precision=hardware.precision
    )
    size = machine.device_memory(hardware.accelerator)
    gpu = machine.gpu_precision(hardware.accelerator, hardware.precision)
    precision = gpu or ("32-true" if hardware.precision == "auto" else hardware.precision)
    held = budget.memory(
        works,
        audio,
        processes=hardware.devices * hardware.loader_workers,
        on_cpu=None if gpu else precision,
    )
    yield machine.memory(held, machine.available_memory(), audio.unknown)
    form = {"recompute": hardware.gradient_checkpointing, "eager": hardware.attention == "eager"}
    devices = hardware.devices * hardware.num_nodes
    trainings = [work.training for work in works if work.training is not None]
    yield from training_cost.rows(
        trainings, devices=devices, device_bytes=size, precision=precision, **form
    )


def _checkpoints(recipe: Recipe, workspace: Workspace) -> list[CheckResult]:
    from hubert_pretrain.preflight import artefacts, corpus

    sources = {name: one.features.get("checkpoint") for name, one in recipe.iterations.items()}
    named = {str(source): f"{name}/cluster" for name, source in sources.items() if source}
    named |= {task.checkpoint: f"finetune/{name}" for name, task in recipe.finetune.items()}
    for stage in plan.stages(recipe):
        named.pop(stage.name, None)
    row, models = artefacts.readable_checkpoints(workspace, named)
    noises = {
        str(one.pretrain.augment.noise)
        for one in recipe.iterations.values()
        if one.pretrain.augment.noise
    }
    return [
        row,
        artefacts.normalisation({"the model": recipe.model, **models}),
        corpus.noise(sorted(noises)),
    ]


def _artefacts(recipe: Recipe, workspace: Workspace) -> Iterator[CheckResult]:
    from hubert_pretrain.preflight import artefacts, shards, throughput
    from hubert_pretrain.preflight import corpus as about

    corpus = _corpus(recipe, workspace)
    grid = recipe.model.grid
    loading: dict[str, Any] = {
        "seed": recipe.seed,
        "readers": recipe.trainer.loader_workers,
        "devices": recipe.trainer.devices,
    }
    precision = machine.gpu_precision(recipe.trainer.accelerator, recipe.trainer.precision)
    yield from [
        about.root(recipe.data.root),
        shards.cache(recipe.data.cache_dir, recipe.data.cache_gigabytes),
    ]
    asked = {"sample": recipe.check.sample, "seed": recipe.seed, "workers": recipe.data.workers}
    yield from about.rows(corpus, grid=grid, everything=recipe.check.all, **asked)
    yield shards.shards(corpus, everything=recipe.check.all, **asked)
    for name, iteration in recipe.iterations.items():
        values = {key: getattr(iteration.pretrain, key) for key in PLAN}
        cut = (
            about.crops(corpus, f"crops {name}", grid=grid, seed=recipe.seed, **values)
            if corpus
            else skipped(f"crops {name}", "prepare")
        )
        asking = (
            {}
            if cut.state == ERROR
            else {"model": recipe.model, "precision": precision, **loading, **values}
        )
        yield from (
            cut,
            throughput.loader_throughput(f"loader {name}", corpus, **asking)
            if asking
            else skipped(f"loader {name}", cut.name),
        )
        if corpus is None or not workspace.is_done(label := f"{name}/label"):
            yield skipped(f"targets {name}", f"{name}/label")
            continue
        cluster = (
            workspace.folder(f"{name}/cluster") if workspace.is_done(f"{name}/cluster") else None
        )
        yield artefacts.stored_targets(
            f"targets {name}", workspace.folder(label), corpus, grid, cluster
        )
        yield artefacts.target_quality(f"clusters {name}", workspace.artefact(label).facts)
    for name, task in recipe.finetune.items():
        splits = {key: getattr(task, key) for key in SPLITS}
        row = f"finetune/{name}"
        yield (
            artefacts.task_labels(row, compose.build(task.task), corpus.manifest, grid, splits)
            if corpus
            else skipped(row, "prepare")
        )


def _corpus(recipe: Recipe, workspace: Workspace) -> Corpus | None:
    """The prepared corpus; None before `prepare` has run."""
    if not workspace.is_done("prepare"):
        return None
    cache = Cache.of(recipe.data.cache_dir, recipe.data.cache_gigabytes)
    return Corpus.open(workspace.folder("prepare"), cache)
