"""`stage=check`: checks of machine, inputs, corpus and artefacts before anything expensive runs.
Every stage repeats the checks of the machine when it starts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from hubert_pretrain import distributed
from hubert_pretrain.config import compose
from hubert_pretrain.config.schema import FinetuneConfig, IterationConfig, Recipe
from hubert_pretrain.data.corpus import Corpus
from hubert_pretrain.data.storage import Cache
from hubert_pretrain.errors import ConfigError, HubertPretrainError, did_you_mean
from hubert_pretrain.fields import AUTO
from hubert_pretrain.files import write_json
from hubert_pretrain.frames import FrameGrid
from hubert_pretrain.model.config import HubertConfig
from hubert_pretrain.pipeline import plan
from hubert_pretrain.pipeline.plan import Stage
from hubert_pretrain.pipeline.workspace import Workspace
from hubert_pretrain.preflight import budget, changes, machine, report, training_cost
from hubert_pretrain.preflight.report import ERROR, WARNING, CheckResult, skipped


def run(recipe: Recipe, workspace: Workspace) -> None:
    """Print the table of all checks and write check.json. Raises HubertPretrainError when one of
    them is an error."""
    stages = _chosen_stages(recipe)
    verbs = {stage.verb for stage in stages}
    names = {stage.name for stage in stages}
    corpus = _corpus(recipe, workspace)
    results = [machine.locks(workspace, [stage.name for stage in stages])]
    results += _check_machine(recipe, workspace, stages)
    inputs, models = _check_inputs(recipe, workspace, stages)
    results += inputs
    if verbs != {"export"}:
        results += _check_corpus(recipe, workspace, corpus)
    for name, iteration in recipe.iterations.items():
        if any(stage.startswith(f"{name}/") for stage in names):
            results += _check_iteration(name, iteration, recipe, workspace, corpus)
    for name, task in recipe.finetune.items():
        if f"finetune/{name}" in names:
            grid = models.get(task.checkpoint or "", recipe.model).grid
            results.append(_check_task(f"finetune/{name}", task, grid, corpus))

    report.show(results, f"{recipe.name} in {workspace.root}")
    write_json(workspace.check_path, {"recipe": recipe.name, **report.as_json(results)})
    if failed := [result.name for result in results if result.state == ERROR]:
        raise HubertPretrainError(
            f"the check found errors in {', '.join(failed)}; the table says how to fix them"
        )


def check_labels(recipe: Recipe, workspace: Workspace) -> None:
    """Check that the pending tasks can learn from the prepared corpus: transcripts, classes,
    splits. Raises HubertPretrainError, with a line for each task that cannot.
    """
    tasks = {
        name: task
        for name, task in recipe.finetune.items()
        if not workspace.is_done(f"finetune/{name}")
    }
    if not tasks or not workspace.is_done("prepare"):
        return
    corpus = _corpus(recipe, workspace)
    results = [
        _check_task(f"finetune/{name}", task, recipe.model.grid, corpus)
        for name, task in tasks.items()
    ]
    failed = [result for result in results if result.state == ERROR]
    if failed:
        raise HubertPretrainError(
            "\n".join([*map(report.line, failed), _advice(recipe, [one.name for one in failed])])
        )


def _advice(recipe: Recipe, failed: Sequence[str]) -> str:
    """The words that leave these tasks out of a run."""
    words = [f"'~{name.replace('/', '.')}'" for name in failed]
    exported = recipe.export.checkpoints
    if set(failed) & set(exported):
        left = ",".join(name for name in exported if name not in failed)
        words.append(f"'export.checkpoints=[{left}]'")
    return (
        "nothing was trained yet. Give the corpus those labels, or leave the tasks out: "
        f"{' '.join(words)}; +recipe=my_audio needs no labels"
    )


def check_machine(recipe: Recipe, workspace: Workspace, stage: Stage) -> None:
    """Check the machine for one stage that is about to run: prints warnings, raises
    HubertPretrainError for the first error."""
    for result in _check_machine(recipe, workspace, [stage]):
        if result.state == ERROR:
            raise HubertPretrainError(report.line(result))
        if result.state == WARNING:
            print(report.line(result), flush=True)


def check_place(recipe: Recipe, workspace: Workspace) -> None:
    """Raises HubertPretrainError when the recipe says another place for the corpus than it was
    prepared from, and it does not lie there."""
    corpus = _corpus(recipe, workspace)
    if corpus is not None and (moved := plan.moved(recipe, workspace)):
        from hubert_pretrain.preflight import corpus as about

        result = about.moved(corpus, moved)
        if result.state == ERROR:
            raise HubertPretrainError(f"{result.found}; {result.fix}")


def _corpus(recipe: Recipe, workspace: Workspace) -> Corpus | None:
    """The prepared corpus; None before `prepare` has run."""
    if not workspace.is_done("prepare"):
        return None
    cache = Cache.of(recipe.data.cache_dir, recipe.data.cache_gigabytes)
    moved = plan.moved(recipe, workspace)
    return Corpus.open(workspace.artefact("prepare").path, cache, moved)


def _chosen_stages(recipe: Recipe) -> list[Stage]:
    """The stages that `check.stages` names; all when it names none."""
    stages = plan.stages(recipe)
    known = [stage.name for stage in stages]
    for name in recipe.check.stages:
        if name not in known:
            raise ConfigError(
                f"check.stages: no such stage {name!r}{did_you_mean(name, known)}; the stages are "
                f"{', '.join(known)}"
            )
    return [stage for stage in stages if stage.name in (recipe.check.stages or known)]


def _check_machine(
    recipe: Recipe, workspace: Workspace, stages: Sequence[Stage]
) -> Iterator[CheckResult]:
    """Place to write to, packages, disk, devices, memory, cost of the stages that are pending."""
    pending = [stage for stage in stages if not plan.is_complete(stage, workspace)]
    works = [budget.work_of(stage, recipe.model, workspace) for stage in pending]
    audio = budget.audio_of(workspace)
    verbs = {stage.verb for stage in pending}
    yield machine.work_dir(workspace.root)
    yield machine.packages(_classes_and_choices(recipe, verbs))
    needs = budget.disk(works, audio, checkpoints=recipe.trainer.keep_checkpoints)
    yield machine.disk(needs, workspace.root, audio.unknown)
    if verbs <= {"prepare", "export"}:
        return  # they compute little, and the next checks would import torch

    hardware = recipe.trainer
    yield machine.device(
        accelerator=hardware.accelerator, devices=hardware.devices, precision=hardware.precision
    )
    gpu_precision = machine.gpu_precision(hardware.accelerator, hardware.precision)
    cpu_precision = "32-true" if hardware.precision == "auto" else hardware.precision
    if "pretrain" in verbs and hardware.compile != "none":
        yield machine.compiler(hardware.compile, on_gpu=gpu_precision is not None)
    needs = budget.memory(
        works,
        audio,
        processes=hardware.devices * hardware.loader_workers,
        on_cpu=None if gpu_precision else cpu_precision,
    )
    yield machine.memory(needs, machine.available_memory(), audio.unknown)
    trainings = [work.training for work in works if work.training is not None]
    processes = hardware.devices * hardware.num_nodes if trainings else 1
    yield machine.port(max(processes, distributed.launched()))
    fused = 1 if hardware.fuse == AUTO else int(hardware.fuse)
    yield machine.shared_memory(
        fused * max((each.audio_bytes for each in trainings), default=0),
        workers=hardware.devices * hardware.loader_workers if trainings else 0,
    )
    if trainings:
        yield machine.operations(
            recipe.model,
            precision=gpu_precision or cpu_precision,
            on_gpu=gpu_precision is not None,
        )
    yield from training_cost.check(
        [budget.sharded(each, hardware) for each in trainings],
        devices=hardware.devices * hardware.num_nodes,
        device_bytes=machine.device_memory(hardware.accelerator),
        precision=gpu_precision or cpu_precision,
        gradient_checkpointing=hardware.gradient_checkpointing,
        eager=hardware.attention == "eager",
    )


def _classes_and_choices(recipe: Recipe, verbs: set[str]) -> list[str]:
    """Import paths of the classes that stages of these verbs build, and choices that need a
    package."""
    features = [iteration.features for iteration in recipe.iterations.values()]
    loggers = list((recipe.logger or {}).values())
    nodes = {
        "prepare": [recipe.data.corpus],
        "cluster": features,
        "label": features,
        "pretrain": loggers,
        "spin": loggers,
        "finetune": loggers,
    }
    found = budget.targets(nodes, verbs)
    if "export" in verbs:
        chosen = recipe.export.format
        formats = [chosen] if isinstance(chosen, str) else chosen
        found += [f"export.format={name}" for name in formats]
    return found


def _check_inputs(
    recipe: Recipe, workspace: Workspace, stages: Sequence[Stage]
) -> tuple[list[CheckResult], dict[str, HubertConfig]]:
    """Checkpoints of other runs and projects that these stages read, and noise; and the networks
    of those checkpoints, by reference."""
    from hubert_pretrain.preflight import artefacts, corpus

    readers = {
        str(iteration.features["checkpoint"]): f"{name}/cluster"
        for name, iteration in recipe.iterations.items()
        if iteration.features.get("checkpoint")
    }
    readers |= {each.checkpoint: f"spin/{name}" for name, each in recipe.spin.items()}
    readers |= {
        task.checkpoint: f"finetune/{name}"
        for name, task in recipe.finetune.items()
        if task.checkpoint is not None
    }
    readers |= dict.fromkeys(recipe.export.checkpoints, "export")
    own = {stage.name for stage in plan.stages(recipe)}
    chosen = {stage.name for stage in stages}
    readers = {
        checkpoint: stage
        for checkpoint, stage in readers.items()
        if checkpoint not in own and stage in chosen
    }
    readable, models = artefacts.readable_checkpoints(workspace, readers)
    noise = {iteration.pretrain.augment.noise for iteration in recipe.iterations.values()}
    is_trained = recipe.iterations or any(
        task.checkpoint is None for task in recipe.finetune.values()
    )
    networks = {"the model": recipe.model} if is_trained else {}
    results = [
        readable,
        artefacts.normalisation(networks | models),
        corpus.noise(sorted(str(folder) for folder in noise if folder)),
    ]
    return results, models


def _check_corpus(
    recipe: Recipe, workspace: Workspace, corpus: Corpus | None
) -> Iterator[CheckResult]:
    """The place of the corpus, the cache, and the prepared corpus: tables, audio, shards."""
    from hubert_pretrain.preflight import corpus as about
    from hubert_pretrain.preflight import shards

    moved = plan.moved(recipe, workspace) if corpus is not None else {}
    yield about.moved(corpus, moved) if corpus and moved else about.root(recipe.data.root)
    yield changes.check(recipe, workspace)
    yield shards.cache(recipe.data.cache_dir, recipe.data.cache_gigabytes)
    yield from about.check(
        corpus,
        grid=recipe.model.grid,
        sample=recipe.check.sample,
        everything=recipe.check.all,
        seed=recipe.seed,
        workers=recipe.data.workers,
    )
    yield shards.shards(
        corpus,
        sample=recipe.check.sample,
        everything=recipe.check.all,
        seed=recipe.seed,
        workers=recipe.data.workers,
    )


def _check_iteration(
    name: str,
    iteration: IterationConfig,
    recipe: Recipe,
    workspace: Workspace,
    corpus: Corpus | None,
) -> Iterator[CheckResult]:
    """Crops, loader and targets of one iteration."""
    from hubert_pretrain.preflight import artefacts, throughput
    from hubert_pretrain.preflight import corpus as about

    if corpus is None:
        for check in ("crops", "loader", "targets"):
            stage = f"{name}/label" if check == "targets" else "prepare"
            yield skipped(f"{check} {name}", stage)
        return

    crops = about.crops(
        corpus, f"crops {name}", iteration.pretrain, grid=recipe.model.grid, seed=recipe.seed
    )
    yield crops
    if crops.state == ERROR:
        yield skipped(f"loader {name}", crops.name)
    else:
        yield throughput.loader_throughput(
            f"loader {name}",
            corpus,
            iteration.pretrain,
            model=recipe.model,
            seed=recipe.seed,
            readers=recipe.trainer.loader_workers,
            devices=recipe.trainer.devices,
            precision=machine.gpu_precision(recipe.trainer.accelerator, recipe.trainer.precision),
        )

    label = f"{name}/label"
    cluster = f"{name}/cluster"
    if not workspace.is_done(label):
        yield skipped(f"targets {name}", label)
        return
    codebooks = workspace.folder(cluster) if workspace.is_done(cluster) else None
    yield artefacts.stored_targets(
        f"targets {name}", workspace.folder(label), corpus, recipe.model.grid, codebooks
    )
    yield artefacts.target_quality(f"clusters {name}", workspace.artefact(label).facts)


def _check_task(
    name: str, config: FinetuneConfig, grid: FrameGrid, corpus: Corpus | None
) -> CheckResult:
    """Labels of a fine-tuning task."""
    from hubert_pretrain.preflight import artefacts

    if corpus is None:
        return skipped(name, "prepare")
    splits = {
        "train_split": config.train_split,
        "valid_split": config.valid_split,
        "test_split": config.test_split,
    }
    task = compose.build(config.task)
    return artefacts.task_labels(
        name, task, corpus, grid, splits, config.decoding, config.train_hours
    )
