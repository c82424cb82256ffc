"""Everything that the page of a run shows, as plain JSON values from the artefacts of the run.

A stage that has not finished, or whose files are damaged, is named in `missing`, and the rest of
the page is made.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from hubert_pretrain.config.schema import Recipe
from hubert_pretrain.data.corpus import Corpus
from hubert_pretrain.errors import HubertPretrainError
from hubert_pretrain.evaluation.report import UTTERANCES
from hubert_pretrain.files import read_json, size_in_bytes
from hubert_pretrain.pipeline import plan
from hubert_pretrain.pipeline.plan import Stage
from hubert_pretrain.pipeline.workspace import Workspace, flatten
from hubert_pretrain.report import clips, units
from hubert_pretrain.targets.store import TargetStore
from hubert_pretrain.training.curves import PUBLISHED
from hubert_pretrain.training.metrics_file import read_metrics

WORST = 12
"""Utterances of an evaluated split that are shown."""
MOST_POINTS = 1000
"""Points of a curve."""
METRICS = (
    "loss",
    "loss/masked",
    "loss/unmasked",
    "accuracy/masked",
    "accuracy/unmasked",
    "gradient_norm",
    "health/pnmi",
    "health/data_wait",
    "health/mfu",
    "health/codebook_use/predictions",
    "health/alarms",
    "audio_seconds_per_second",
    "valid/loss",
    "valid/loss/masked",
    "valid/loss/unmasked",
    "valid/accuracy/masked",
    "valid/accuracy/unmasked",
    "valid/wer",
    "valid/cer",
    "valid/accuracy",
)
"""Columns of metrics.csv that are drawn."""

Value = TypeVar("Value")


def collect(recipe: Recipe, workspace: Workspace) -> dict[str, Any]:
    """The content of the page."""
    missing: list[str] = []
    stages = plan.stages(recipe)
    corpus = _try(missing, "prepare", lambda: _corpus(recipe, workspace))
    stores = {
        name: store
        for name in recipe.iterations
        if corpus is not None
        and (store := _try(missing, f"{name}/label", partial(_store, workspace, name)))
    }
    tasks = _tasks(recipe, workspace, stages, missing)
    content: dict[str, Any] = {
        "recipe": recipe.name,
        "run": workspace.root.name,
        "made": time.strftime("%Y-%m-%d %H:%M %Z"),
        "stages": [_stage(stage, workspace) for stage in stages],
        "iterations": {
            name: _iteration(recipe, workspace, name, missing) for name in recipe.iterations
        },
        "tasks": tasks,
        "configuration": _configuration(workspace),
        "corpus": None,
        "units": {},
        "clips": [],
    }
    if corpus is not None:
        content["corpus"] = _try(missing, "prepare", lambda: corpus.card)
        for name, store in stores.items():
            folder = workspace.folder(f"{name}/cluster")
            codebook = folder if workspace.is_done(f"{name}/cluster") else None
            measure = partial(units.unit_table, store, corpus, codebook)
            table = _try(missing, f"{name}/label", measure)
            if table is not None:
                content["units"][name] = table
        rows = clips.choose(list(stores.values()), corpus, _rows_of_worst(corpus, tasks))
        content["clips"] = clips.make(rows, stores, corpus, workspace.report_cache_path)
    content["missing"] = missing
    return content


def _try(missing: list[str], stage: str, read: Callable[[], Value]) -> Value | None:
    """The value, or None with a sentence in `missing` when the stage is not there or damaged."""
    try:
        return read()
    except (HubertPretrainError, OSError, ValueError, KeyError) as error:
        sentence = f"{stage}: {error}"
        if sentence not in missing:
            missing.append(sentence)
        return None


def _corpus(recipe: Recipe, workspace: Workspace) -> Corpus:
    return Corpus.open(workspace.artefact("prepare").path, moved=plan.moved(recipe, workspace))


def _store(workspace: Workspace, name: str) -> TargetStore:
    return TargetStore.open(workspace.artefact(f"{name}/label").path)


def _stage(stage: Stage, workspace: Workspace) -> dict[str, Any]:
    """A box of the diagram and a row of the table of costs."""
    done = workspace.is_done(stage.name)
    folder = workspace.folder(stage.name) if done else workspace.partial_folder(stage.name)
    meta = read_json(folder / "meta.json") or {}
    return {
        "name": stage.name,
        "verb": stage.verb,
        "state": plan.state(stage, workspace),
        "inputs": [name for name in stage.inputs if name in stage.run_stages],
        "outside": [Path(name).name for name in stage.inputs if name not in stage.run_stages],
        "seconds": meta.get("seconds"),
        "bytes": size_in_bytes(folder) if folder.is_dir() else 0,
        "finished": meta.get("finished", ""),
        "versions": meta.get("versions", {}),
        "facts": _numbers(meta.get("facts", {})),
    }


def _iteration(
    recipe: Recipe, workspace: Workspace, name: str, missing: list[str]
) -> dict[str, Any]:
    """Facts of the three stages, and the curves of the training."""
    facts: dict[str, Any] = {}
    for verb in ("cluster", "label", "pretrain"):
        stage = f"{name}/{verb}"
        if workspace.is_done(stage):
            artefact = _try(missing, stage, partial(workspace.artefact, stage))
            facts[verb] = {} if artefact is None else artefact.facts
    published = PUBLISHED.get(name)
    is_papers = published is not None and recipe.name.startswith("base_")
    return {
        "facts": facts,
        "layers": _layers(facts.get("cluster", {})),
        "curves": _curves(workspace, f"{name}/pretrain"),
        "steps": recipe.iterations[name].pretrain.steps,
        "published": {
            "label": published.label,
            "points": {str(step): list(point) for step, point in published.points.items()},
        }
        if published is not None and is_papers
        else None,
    }


def _layers(cluster: Mapping[str, Any]) -> Any:
    """Scores of the layers, where `features.layer=auto` chose one."""
    return cluster.get("layer_choice")


def _curves(workspace: Workspace, stage: str) -> dict[str, list[list[float]]]:
    """Name -> [steps, values] of a training, also of one that is under way."""
    done = workspace.is_done(stage)
    folder = workspace.folder(stage) if done else workspace.partial_folder(stage)
    rows = read_metrics(folder / "logs" / "metrics.csv")
    curves = {}
    for name in METRICS:
        points = [(row["step"], row[name]) for row in rows if name in row]
        if points:
            keep = np.linspace(0, len(points) - 1, min(len(points), MOST_POINTS)).astype(int)
            steps, values = zip(*(points[place] for place in keep), strict=True)
            curves[name] = [list(steps), list(values)]
    return curves


def _tasks(
    recipe: Recipe, workspace: Workspace, stages: Sequence[Stage], missing: list[str]
) -> dict[str, dict[str, Any]]:
    """Curves of each fine-tuning, and the scores and worst utterances of each evaluated split."""
    found: dict[str, dict[str, Any]] = {
        name: {"curves": _curves(workspace, f"finetune/{name}"), "splits": {}}
        for name in recipe.finetune
    }
    for stage in stages:
        if stage.verb != "evaluate" or not workspace.is_done(stage.name):
            continue
        _, name, split = stage.name.split("/")
        task = found.setdefault(name, {"curves": {}, "splits": {}})
        evaluation = _try(missing, stage.name, partial(_evaluation, workspace, stage.name))
        if evaluation is not None:
            task["splits"][split] = evaluation
    return found


def _evaluation(workspace: Workspace, stage: str) -> dict[str, Any]:
    """Scores of a split with their intervals, and the utterances with the most errors."""
    artefact = workspace.artefact(stage)
    with open(artefact.path / UTTERANCES, encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    worst = [
        {
            "id": row["id"],
            "reference": row["reference"],
            "prediction": row.get("hypothesis", row.get("prediction")),
            "errors": _errors(row),
        }
        for row in rows
    ]
    worst = [each for each in worst if each["errors"]]
    worst.sort(key=lambda each: -each["errors"])
    return {"facts": artefact.facts, "worst": worst[:WORST]}


def _errors(row: Mapping[str, Any]) -> float:
    """The share of an utterance that is wrong: words, phones, trials; or 1 for a wrong class."""
    for rate in ("wer", "per"):
        if rate in row:
            return float(row[rate])
    if "trials" in row:
        return float(row["errors"] / max(1, row["trials"]))
    return float(not row.get("right", True))


def _rows_of_worst(corpus: Corpus, tasks: Mapping[str, dict[str, Any]]) -> list[int]:
    """Manifest rows of the utterances with the most errors."""
    ids_of_worst = {
        each["id"]
        for task in tasks.values()
        for evaluation in task["splits"].values()
        for each in evaluation["worst"]
    }
    if not ids_of_worst:
        return []
    rows = corpus.manifest.rows()
    if len(rows) > 1_000_000:
        return []  # their ids would have to be searched
    ids = corpus.manifest.take("id", rows).to_pylist()
    return [int(row) for row, name in zip(rows, ids, strict=True) if name in ids_of_worst]


def _configuration(workspace: Workspace) -> dict[str, str]:
    """The whole recipe as it was run, key by key."""
    if not workspace.recipe_path.is_file():
        return {}
    import yaml

    try:
        tree = yaml.safe_load(workspace.recipe_path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError):
        return {}
    return {key: str(value) for key, value in flatten(tree).items()}


def _numbers(facts: Mapping[str, Any]) -> dict[str, Any]:
    """The facts that are plain numbers or short words."""
    return {
        name: value
        for name, value in facts.items()
        if isinstance(value, (int, float)) or (isinstance(value, str) and len(value) < 60)
    }
