"""Everything that a page shows, as plain JSON values from the artefacts of its runs.

A stage that has not finished, or whose files are damaged, is named in `missing`, and the rest of
the page is made.
"""

from __future__ import annotations

import heapq
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from hubert_pretrain.config.schema import Recipe
from hubert_pretrain.data.corpus import Corpus
from hubert_pretrain.errors import HubertPretrainError
from hubert_pretrain.evaluation.report import EVALUATION, UTTERANCES
from hubert_pretrain.files import read_json, size_in_bytes
from hubert_pretrain.pipeline import plan
from hubert_pretrain.pipeline.plan import Stage
from hubert_pretrain.pipeline.workspace import Workspace
from hubert_pretrain.pretrain.alarms import ADVICE, COLUMN
from hubert_pretrain.report import clips, configuration, differences, units
from hubert_pretrain.report.runs import Run
from hubert_pretrain.targets.store import TargetStore
from hubert_pretrain.training.curves import PUBLISHED
from hubert_pretrain.training.metrics_file import read_metrics

WORST = 12
"""Utterances of an evaluated split that are shown."""
MOST_IDS = 100_000
"""Rows of a split that these are looked for in."""
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
    "health/codebook_use/targets",
    "health/alarms",
    "audio_seconds_per_second",
    "valid/loss",
    "valid/loss/masked",
    "valid/loss/unmasked",
    "valid/accuracy/masked",
    "valid/accuracy/unmasked",
)
"""Columns of metrics.csv of a pretraining that are drawn. Of a task it is the loss, and what valid
has."""

Value = TypeVar("Value")


@dataclass(frozen=True)
class _Parts:
    """Opened once, for several sections."""

    corpus: Corpus | None
    stores: dict[str, TargetStore]
    """Targets by iteration."""
    missing: list[str]
    """A sentence for each part that is not there."""


def collect(runs: Sequence[Run], unreadable: Sequence[str] = ()) -> dict[str, Any]:
    """The content of the page of one run, or of several beside each other.

    Audio is that of the first run. Units of a run with another corpus are not aligned with it.

    Args:
        unreadable: a sentence for each run that has no part in the page.
    """
    parts = [_open(run) for run in runs]
    pages = [_of_run(run, part) for run, part in zip(runs, parts, strict=True)]
    content: dict[str, Any] = {
        "made": time.strftime("%Y-%m-%d %H:%M %Z"),
        "runs": pages,
        "configuration": configuration.side_by_side(runs),
        "differences": differences.of_scores([run.workspace for run in runs]),
        "units": {},
        "clips": [],
        "missing": list(unreadable),
    }
    for run, part in zip(runs, parts, strict=True):
        of_run = f"{run.name}: " if len(runs) > 1 else ""
        for name, store in part.stores.items():
            assert part.corpus is not None
            folder = run.workspace.folder(f"{name}/cluster")
            codebook = folder if run.workspace.is_done(f"{name}/cluster") else None
            measure = partial(units.unit_table, store, part.corpus, codebook)
            table = _try(part.missing, f"{name}/label", measure)
            if table is not None:
                content["units"][f"{of_run}{name}"] = table
        content["missing"] += [f"{of_run}{sentence}" for sentence in part.missing]
    content["clips"] = _clips(runs, parts, pages)
    return content


def _open(run: Run) -> _Parts:
    """The corpus and the targets of a run, as far as they are there."""
    missing: list[str] = []
    corpus = _try(missing, "prepare", lambda: _corpus(run.recipe, run.workspace))
    stores = {
        name: store
        for name in run.recipe.iterations
        if corpus is not None
        and (store := _try(missing, f"{name}/label", partial(_store, run.workspace, name)))
    }
    return _Parts(corpus, stores, missing)


def _of_run(run: Run, parts: _Parts) -> dict[str, Any]:
    """The sections that each run has for itself."""
    recipe = run.recipe
    workspace = run.workspace
    stages = plan.stages(recipe)
    corpus = parts.corpus
    return {
        "name": run.name,
        "recipe": recipe.name,
        "stages": [_stage(stage, workspace) for stage in stages],
        "iterations": {
            name: _iteration(recipe, workspace, name, parts.missing) for name in recipe.iterations
        },
        "tasks": _tasks(recipe, workspace, stages, parts.missing),
        "corpus": None
        if corpus is None
        else _try(parts.missing, "prepare", lambda: corpus.card | {"id": _corpus_id(corpus)}),
    }


def _corpus_id(corpus: Corpus) -> str:
    """Tells whether two runs have the same utterances."""
    return corpus.manifest.fingerprint


def _clips(
    runs: Sequence[Run], parts: Sequence[_Parts], pages: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Utterances of the first run that has a corpus, with the units of every run of that corpus."""
    first = next((place for place, each in enumerate(parts) if each.corpus is not None), None)
    if first is None:
        return []
    corpus = parts[first].corpus
    assert corpus is not None
    stores = {
        f"{run.name}: {name}" if len(runs) > 1 else name: store
        for run, each in zip(runs, parts, strict=True)
        if each.corpus is not None and _corpus_id(each.corpus) == _corpus_id(corpus)
        for name, store in each.stores.items()
    }
    worst = _rows_of_worst(corpus, [page["tasks"] for page in pages])
    rows = clips.choose(list(stores.values()), corpus, worst)
    cache_path = runs[first].workspace.report_cache_path
    return clips.make(rows, stores, corpus, cache_path, keep=len(runs) == 1)


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
        "command": meta.get("command", ""),
        "machine": meta.get("machine", {}),
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
    rows = _metrics(workspace, f"{name}/pretrain")
    published = PUBLISHED.get(name)
    is_papers = published is not None and recipe.name.startswith("base_")
    return {
        "facts": facts,
        "layers": _layers(facts.get("cluster", {})),
        "curves": _curves(rows, METRICS),
        "alarms": _alarms(rows),
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


def _metrics(workspace: Workspace, stage: str) -> list[dict[str, float]]:
    """The rows of a training's metrics, also of one that is under way."""
    done = workspace.is_done(stage)
    folder = workspace.folder(stage) if done else workspace.partial_folder(stage)
    return read_metrics(folder / "logs" / "metrics.csv")


def _alarms(rows: Sequence[Mapping[str, float]]) -> list[dict[str, Any]]:
    """The alarms of a pretraining, the first one first, with the steps at which each was logged."""
    steps: dict[str, list[float]] = {}
    for row in rows:
        for name in row:
            if name.startswith(COLUMN):
                steps.setdefault(name.removeprefix(COLUMN), []).append(row["step"])
    logs = sum("health/alarms" in row for row in rows)
    return [
        {
            "name": name,
            "first": found[0],
            "last": found[-1],
            "logs": len(found),
            "of": logs,
            "advice": ADVICE.get(name, ""),
        }
        for name, found in steps.items()
    ]


def _task_curves(rows: Sequence[Mapping[str, float]]) -> dict[str, list[list[float]]]:
    """The loss and all scores of valid."""
    valid = dict.fromkeys(name for row in rows for name in row if name.startswith("valid/"))
    return _curves(rows, ["loss", *valid])


def _curves(
    rows: Sequence[Mapping[str, float]], names: Sequence[str]
) -> dict[str, list[list[float]]]:
    """Name -> [steps, values] of a training."""
    curves = {}
    for name in names:
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
        name: {"curves": _task_curves(_metrics(workspace, f"finetune/{name}")), "splits": {}}
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
    scores = (read_json(artefact.path / EVALUATION) or {}).get("scores", {})
    with open(artefact.path / UTTERANCES, encoding="utf-8") as file:
        rows = (json.loads(line) for line in file)
        worst = heapq.nlargest(WORST, filter(_errors, rows), key=_errors)
    return {
        "facts": {name: score["value"] for name, score in scores.items()} | artefact.facts,
        "worst": [
            {
                "id": row["id"],
                "reference": row["reference"],
                "prediction": row.get("hypothesis", row.get("prediction")),
                "errors": _errors(row),
                "is_share": "error" not in row,
            }
            for row in worst
        ],
    }


def _errors(row: Mapping[str, Any]) -> float:
    """The share of an utterance that is wrong: words, phones, trials; or 1 for a wrong class; or
    the error that its task measures.
    """
    for rate in ("wer", "per", "error"):
        if rate in row:
            return float(row[rate])
    if "trials" in row:
        return float(row["errors"] / max(1, row["trials"]))
    return float(not row.get("right", True))


def _rows_of_worst(corpus: Corpus, tasks: Sequence[Mapping[str, dict[str, Any]]]) -> list[int]:
    """Manifest rows of the utterances with the most errors. They are looked for in their split, at
    most in MOST_IDS rows.
    """
    ids_by_split: dict[str, set[str]] = {}
    for of_run in tasks:
        for task in of_run.values():
            for split, evaluation in task["splits"].items():
                of_split = ids_by_split.setdefault(split, set())
                of_split.update(each["id"] for each in evaluation["worst"])
    manifest = corpus.manifest
    found: list[int] = []
    for split, ids in ids_by_split.items():
        if not ids or split not in manifest.splits:
            continue
        rows = manifest.split_range(split)[:MOST_IDS]
        names = manifest.take("id", np.array(rows)).to_pylist()
        found += [row for row, name in zip(rows, names, strict=True) if name in ids]
    return found


def _numbers(facts: Mapping[str, Any]) -> dict[str, Any]:
    """The facts that are plain numbers or short words."""
    return {
        name: value
        for name, value in facts.items()
        if isinstance(value, (int, float)) or (isinstance(value, str) and len(value) < 60)
    }
